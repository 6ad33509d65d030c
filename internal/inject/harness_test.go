// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
)

// victimPath builds testdata/victim.c once.
var victimPath = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "inject-test-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "victim")
	out, err := exec.Command("gcc", "-O1", "-Wall", "-pthread", "-o", bin, "testdata/victim.c").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("gcc: %v\n%s", err, out)
	}
	return bin, err
})

func TestMain(m *testing.M) {
	if mode := os.Getenv("INJECT_TEST_SUPERVISOR"); mode != "" {
		runtime.LockOSThread()
		supervise(mode)
		return
	}
	code := m.Run()
	if bin, err := victimPath(); err == nil {
		os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

// options are what the tracer of faultline sets.
const options = Options

// refuseSuspension makes the program's filters apply to what is injected, as without
// CAP_SYS_ADMIN.
func refuseSuspension(t *testing.T) {
	const unknown = 1 << 30
	suspend = unknown
	t.Cleanup(func() { suspend = unix.PTRACE_O_SUSPEND_SECCOMP })
}

// victim is a running testdata/victim.c, seized by the test's locked thread.
type victim struct {
	t    testing.TB
	pid  int
	in   *os.File
	outr *os.File
	out  *bufio.Reader
}

// start runs the victim in a mode, up to its first line, and seizes it.
func start(t testing.TB, mode string) (*victim, string) {
	t.Helper()
	bin, err := victimPath()
	testutil.Need(t, err == nil, fmt.Sprint("no victim: ", err))
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	v := launch(t, bin, mode)
	t.Cleanup(v.kill)
	line := v.line()
	if err := ptrace(unix.PTRACE_SEIZE, v.pid, 0, options); err != nil {
		t.Fatalf("seize: %v", err)
	}
	return v, line
}

func launch(t testing.TB, bin, mode string) *victim {
	inr, inw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outr, outw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := syscall.ForkExec(bin, []string{bin, mode}, &syscall.ProcAttr{
		Files: []uintptr{inr.Fd(), outw.Fd(), 2},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	inr.Close()
	outw.Close()
	outr.SetReadDeadline(time.Now().Add(20 * time.Second))
	return &victim{t: t, pid: pid, in: inw, outr: outr, out: bufio.NewReader(outr)}
}

// kill ends the victim whatever its state, and reaps it.
func (v *victim) kill() {
	if v.pid != 0 {
		unix.Kill(v.pid, unix.SIGKILL)
		for {
			var ws unix.WaitStatus
			if _, err := unix.Wait4(v.pid, &ws, unix.WALL, nil); err == unix.EINTR || err == nil && ws.Stopped() {
				continue
			}
			break
		}
	}
	v.in.Close()
	v.outr.Close()
}

func (v *victim) line() string {
	v.t.Helper()
	s, err := v.out.ReadString('\n')
	if err != nil {
		v.t.Fatalf("read the victim: %q, %v", s, err)
	}
	return strings.TrimSpace(s)
}

// interrupt stops thread pid and returns when it is.
func (v *victim) interrupt() {
	v.t.Helper()
	if err := ptrace(unix.PTRACE_INTERRUPT, v.pid, 0, 0); err != nil {
		v.t.Fatal(err)
	}
	v.waitFor(unix.PTRACE_EVENT_STOP)
}

// waitFor waits for the stop with the given event.
func (v *victim) waitFor(event int) {
	v.t.Helper()
	code, err := waitStop(v.pid)
	if err != nil || code>>8 != event {
		v.t.Fatalf("stop %#x, %v; want event %d", code, err, event)
	}
}

func (v *victim) cont(sig int) {
	v.t.Helper()
	if err := ptrace(unix.PTRACE_CONT, v.pid, 0, uintptr(sig)); err != nil {
		v.t.Fatal(err)
	}
}

// blocked waits until the victim sleeps in a system call.
func (v *victim) blocked() {
	v.t.Helper()
	eventually(v.t, "the victim sleeps", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", v.pid))
		st, err2 := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.pid))
		return err == nil && err2 == nil && !bytes.HasPrefix(b, []byte("running")) &&
			!bytes.HasPrefix(b, []byte("-1")) && bytes.Contains(st, []byte(") S "))
	})
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not in 10 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// finish resumes the victim until it ends, passing signals on, and checks
// that it printed "ok" and returned 0.
func (v *victim) finish() {
	v.t.Helper()
	v.in.Write([]byte("go\n"))
	v.cont(0)
	v.follow(func(int, int) (int, bool) { return 0, false }, unix.PTRACE_CONT)
	if got := v.rest(); got != "ok\n" {
		v.t.Fatalf("victim printed %q", got)
	}
}

func (v *victim) rest() string {
	var b bytes.Buffer
	b.ReadFrom(v.out)
	return b.String()
}

// follow is a tracer's loop over the whole tree. at is called for every stop
// and may have left the thread in another stop, which it returns. It ends
// when the victim has ended with status 0 and all else is reaped.
func (v *victim) follow(at func(tid, code int) (int, bool), req int) {
	v.t.Helper()
	for {
		var ws unix.WaitStatus
		tid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ECHILD:
			return
		case err != nil:
			v.t.Fatal(err)
		}
		if !ws.Stopped() {
			if tid == v.pid {
				v.pid = 0
				if !ws.Exited() || ws.ExitStatus() != 0 {
					v.t.Errorf("victim ended with %#x: %s", ws, v.rest())
				}
			}
			continue
		}
		code := int(ws>>8) & 0xffffff
		if c, changed := at(tid, code); changed {
			code = c
		}
		sig := 0
		if code>>8 == 0 && code != int(unix.SIGTRAP)|0x80 {
			sig = code
		}
		if err := ptrace(req, tid, 0, uintptr(sig)); err != nil && !errors.Is(err, ErrGone) {
			v.t.Fatal(err)
		}
	}
}

// open borrows the victim.
func (v *victim) open() *Session {
	v.t.Helper()
	s, err := Open(v.pid)
	if err != nil {
		v.t.Fatalf("open: %v", err)
	}
	return s
}

// closeSession gives it back.
func closeSession(t testing.TB, s *Session) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// meddle runs some harmless calls in the borrowed thread and checks them.
func meddle(s *Session, tgid int) error {
	if pid, err := s.Syscall(unix.SYS_GETPID); err != nil || tgid != 0 && int(pid) != tgid {
		return fmt.Errorf("injected getpid: %d, %w; want %d", pid, err, tgid)
	}
	if _, err := s.Syscall(unix.SYS_CLOSE, 12345); err != unix.EBADF {
		return fmt.Errorf("injected close(12345): %v", err)
	}
	m, err := s.Syscall(unix.SYS_MMAP, 0, 8192, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
	if err != nil {
		return fmt.Errorf("injected mmap: %w", err)
	}
	want, got := []byte("faultline"), make([]byte, 9)
	if _, err := s.WriteAt(want, int64(m)+4090); err != nil {
		return err
	}
	if _, err := s.ReadAt(got, int64(m)+4090); err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("read back %q, %w", got, err)
	}
	_, err = s.Syscall(unix.SYS_MUNMAP, m, 8192)
	return err
}

func parseAddr(t testing.TB, s string) uintptr {
	t.Helper()
	v, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return uintptr(v)
}

// sigqueue sends a signal with a number, like sigqueue(3), to one thread.
func sigqueue(pid int, sig unix.Signal, value int) error {
	const siQueue = -1
	si := struct {
		signo, errno, code, _ int32
		pid, uid              int32
		value                 int64
		_                     [96]byte
	}{signo: int32(sig), code: siQueue, pid: int32(os.Getpid()), value: int64(value)}
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_TGSIGQUEUEINFO, uintptr(pid), uintptr(pid),
		uintptr(sig), uintptr(unsafe.Pointer(&si)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// mapsOf returns the memory map of a process, proc_pid_maps(5).
func mapsOf(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
