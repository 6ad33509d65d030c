// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
)

// launched starts a program in the test process.
func launched(t *testing.T, h Handler, argv ...string) *Tracer {
	t.Helper()
	tr, err := Start(Options{Path: argv[0], Argv: argv, Env: os.Environ(), Dir: t.TempDir(), Handler: h})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tr.Kill()
		within(t, "the tree to die", tr.Done())
		if n := len(tr.threads) + len(tr.procs) + len(tr.parked) + len(tr.foreign); n != 0 {
			t.Errorf("%d entries left in the tracer's maps", n)
		}
	})
	return tr
}

// within fails the test if ch is not closed in time.
func within[T any](t *testing.T, what string, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(budget):
		t.Fatalf("waited in vain for %s", what)
	}
	return v
}

// ended runs the program to its end.
func ended(t *testing.T, tr *Tracer) Status {
	t.Helper()
	tr.Continue()
	within(t, "the program's end", tr.RootExited())
	s, err := tr.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestExitStatus(t *testing.T) {
	for code := range 256 {
		tr := launched(t, nil, "/bin/sh", "-c", fmt.Sprint("exit ", code))
		if s := ended(t, tr); s.Code() != code || s.Signal() != 0 || s.Core() {
			t.Errorf("status %d: %v", code, s)
		}
	}
	for _, code := range []int{0, 1, 125, 126, 127, 128, 255} {
		cmd := mini(t, "sh", "-c", fmt.Sprint("exit ", code))
		cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != code {
			t.Errorf("the command exits with %d for %d", got, code)
		}
	}
}

// deadly are the signals that end a program by default, and whether with a
// core dump.
var deadly = map[syscall.Signal]bool{
	unix.SIGHUP: false, unix.SIGINT: false, unix.SIGQUIT: true, unix.SIGILL: true, unix.SIGTRAP: true,
	unix.SIGABRT: true, unix.SIGBUS: true, unix.SIGFPE: true, unix.SIGKILL: false, unix.SIGUSR1: false,
	unix.SIGSEGV: true, unix.SIGUSR2: false, unix.SIGPIPE: false, unix.SIGALRM: false, unix.SIGTERM: false,
	unix.SIGSTKFLT: false, unix.SIGXCPU: true, unix.SIGXFSZ: true, unix.SIGVTALRM: false, unix.SIGPROF: false,
	unix.SIGIO: false, unix.SIGPWR: false, unix.SIGSYS: true, 34: false, 50: false, 63: false, 64: false,
}

func TestKilledBySignal(t *testing.T) {
	bin := tool(t, "raise")
	pattern, _ := os.ReadFile("/proc/sys/kernel/core_pattern")
	cores := !bytes.HasPrefix(pattern, []byte("|"))
	for sig, core := range deadly {
		arg := fmt.Sprint(int(sig))
		tr := launched(t, nil, bin, arg, "core")
		if s := ended(t, tr); s.Signal() != sig || s.Code() != -1 || cores && s.Core() != core {
			t.Errorf("signal %d: %v", sig, s)
		}
		// And by the command, whose parent sees the same.
		cmd := mini(t, bin, arg)
		cmd.Dir = t.TempDir()
		cmd.Run()
		ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if !ws.Signaled() || ws.Signal() != sig {
			t.Errorf("signal %d: the command ended with %v", sig, cmd.ProcessState)
		}
		if left, _ := filepath.Glob(cmd.Dir + "/*"); len(left) != 0 {
			t.Errorf("signal %d: left behind %v", sig, left)
		}
	}
}

// The program must inherit what the supervisor was started with. Signals
// that the Go runtime handles (TERM, QUIT, PIPE, USR1) are the difficult
// ones.
func TestInheritance(t *testing.T) {
	state, enter := tool(t, "state"), tool(t, "enter")
	for name, sets := range map[string][2]string{
		"nothing":       {"", ""},
		"nohup":         {"1", ""},
		"background":    {"2,3", ""},
		"service":       {"13", ""},
		"everything":    {"1,2,3,10,12,13,14,15,20,21,22,28,29,30,35,62", ""},
		"blocked":       {"", "10,12,13,14,18,20,21,28,35,63,64"},
		"both":          {"1,15,17,18", "18,10"},
		"child ignored": {"17", ""},
		"runtime's own": {"23,26,63", ""},
	} {
		t.Run(name, func(t *testing.T) {
			run := func(cmd *exec.Cmd) string {
				cmd.Env = []string{"A=1", "A=2", "B", "PATH=" + os.Getenv("PATH")}
				cmd.Dir = t.TempDir()
				f, err := os.Open(cmd.Dir) // an unusual standard input
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				cmd.Stdin, cmd.Stderr = f, nil
				out, err := cmd.Output()
				if err != nil {
					t.Fatalf("%v: %v", cmd.Args, err)
				}
				return strings.ReplaceAll(string(out), cmd.Dir, "DIR")
			}
			m := mini(t, state, "two  words", "")
			want := run(exec.Command(enter, sets[0], sets[1], state, "two  words", ""))
			got := run(exec.Command(enter, append([]string{sets[0], sets[1]}, m.Args...)...))
			if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("alone (-), traced (+):\n%s", diff)
			}
		})
	}
}

func TestStandardStreams(t *testing.T) {
	in := make([]byte, 8<<20)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(in)
	cmd := mini(t, "sh", "-c", "echo oops >&2; cat | cat; exit 5")
	var out, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &stderr
	cmd.Run()
	if sha256.Sum256(in) != sha256.Sum256(out.Bytes()) {
		t.Errorf("%d bytes went in, %d others came out", len(in), out.Len())
	}
	if stderr.String() != "oops\n" || cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("%q, %v", stderr.String(), cmd.ProcessState)
	}
}

func TestStartFailures(t *testing.T) {
	dir := t.TempDir()
	plain, text := filepath.Join(dir, "plain"), filepath.Join(dir, "text")
	for name, mode := range map[string]os.FileMode{plain: 0o644, text: 0o755} {
		if err := os.WriteFile(name, []byte("no program\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]error{
		filepath.Join(dir, "none"): unix.ENOENT,
		plain + "/below":           unix.ENOTDIR,
		plain:                      unix.EACCES,
		text:                       unix.ENOEXEC,
		dir:                        unix.EACCES,
		"nul\x00":                  unix.EINVAL,
	} {
		tr, err := Start(Options{Path: path})
		se, ok := errors.AsType[*StartError](err)
		if tr != nil || !ok || se.Path != path || !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", path, err, want)
		}
	}
	var ws unix.WaitStatus
	if pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("a child is left: %d, %v", pid, err)
	}
}

// Before Continue the program has not run, and can be killed.
func TestStartedIsStopped(t *testing.T) {
	file := filepath.Join(t.TempDir(), "made")
	tr := launched(t, nil, "/bin/sh", "-c", "echo >"+file)
	err := tr.Stopped(t.Context(), tr.Root().Space(), func(th *Thread) error {
		if th.Tid() != tr.Root().Pid() {
			return fmt.Errorf("thread %d of process %d", th.Tid(), tr.Root().Pid())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	tr.Kill()
	within(t, "the program's death", tr.Done())
	if s, err := tr.Wait(); s.Signal() != unix.SIGKILL || err != nil {
		t.Error(s, err)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the program has run")
	}
	if tr.Do(func() {}) {
		t.Error("Do runs functions after the end")
	}
	if err := tr.Stopped(t.Context(), tr.Root().Space(), nil); err != ErrGone {
		t.Error(err)
	}
}

// A 32-bit program is not started, and told by Compat where a 64-bit one has
// become it.
func TestCompat(t *testing.T) {
	testutil.Need(t, runtime.GOARCH == "amd64", "needs an architecture with 32-bit programs")
	bin := filepath.Join(t.TempDir(), "elf32")
	if err := os.WriteFile(bin, elf32(), 0o755); err != nil {
		t.Fatal(err)
	}
	err := exec.Command(bin).Run()
	_, ran := errors.AsType[*exec.ExitError](err)
	if !ran {
		// Nothing could mend that, nor is there anything to be told then.
		t.Skip("the kernel runs no 32-bit programs")
	}

	if _, err := Start(Options{Path: bin}); !errors.Is(err, ErrCompat) {
		t.Errorf("a 32-bit program: %v", err)
	}
	h := &compats{}
	tr := launched(t, h, "/bin/sh", "-c", bin+"; exec "+bin)
	if tr.Root().Compat() {
		t.Error("a 64-bit program is taken for a 32-bit one")
	}
	ended(t, tr)
	if diff := cmp.Diff([]bool{false, true, true}, h.seen); diff != "" {
		t.Error(diff)
	}
}

type compats struct {
	NopHandler
	seen []bool
}

func (c *compats) Exec(p *Process, _ *Space) { c.seen = append(c.seen, p.Compat()) }

// elf32 returns a static i386 program that exits with status 7.
func elf32() []byte {
	const base, head = 0x8048000, 52 + 32
	code := []byte{0xb8, 1, 0, 0, 0, 0xbb, 7, 0, 0, 0, 0xcd, 0x80} // exit(7)
	b := []byte{0x7f, 'E', 'L', 'F', 1, 1, 1, 15: 0}
	le := binary.LittleEndian
	b = le.AppendUint16(b, 2) // executable
	b = le.AppendUint16(b, 3) // i386
	for _, w := range []uint32{1, base + head, 52, 0, 0} {
		b = le.AppendUint32(b, w)
	}
	for _, h := range []uint16{52, 32, 1, 0, 0, 0} {
		b = le.AppendUint16(b, h)
	}
	size := uint32(head + len(code))
	for _, w := range []uint32{1, 0, base, base, size, size, 5, 0x1000} {
		b = le.AppendUint32(b, w)
	}
	return append(b, code...)
}
