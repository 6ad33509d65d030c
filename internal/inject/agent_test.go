// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
)

// planted starts a victim and plants an agent in it; the victim waits for
// input in a read.
func planted(t testing.TB) (*victim, *Agent, uintptr) {
	t.Helper()
	v, line := start(t, "pages")
	a := plant(t, v)
	t.Cleanup(func() {
		a.Release()
		reapAgent(a)
	})
	v.cont(0)
	return v, a, parseAddr(t, line)
}

// plant plants an agent in a victim that is about to block, and leaves that stopped.
func plant(t testing.TB, v *victim) *Agent {
	t.Helper()
	v.blocked()
	v.interrupt()
	s := v.open()
	a, err := Plant(s)
	if err != nil {
		t.Fatal(err)
	}
	closeSession(t, s)
	return a
}

// reapAgent takes the agent's exit status as a tracer does, if it is there.
func reapAgent(a *Agent) (ws unix.WaitStatus) {
	for {
		_, err := unix.Wait4(a.Tid(), &ws, unix.WALL, nil)
		if err == nil && ws.Stopped() {
			a.Stopped(ws)
		} else if err != unix.EINTR {
			a.Exited()
			return ws
		}
	}
}

// gone reports that no task with this id is left, not even a zombie.
func gone(tid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d", tid))
	return os.IsNotExist(err)
}

func mustGo(t testing.TB, tid int) {
	t.Helper()
	eventually(t, fmt.Sprintf("task %d is gone", tid), func() bool { return gone(tid) })
}

func TestAgent(t *testing.T) {
	v, a, _ := planted(t)
	if pid, err := a.Call(unix.SYS_GETPID); err != nil || int(pid) != a.Tid() {
		t.Errorf("getpid: %d, %v; want %d", pid, err, a.Tid())
	}
	if sid, err := a.Call(unix.SYS_GETSID, 0); err != nil || int(sid) != a.Tid() {
		t.Errorf("session %d, %v; want its own, %d", sid, err, a.Tid())
	}
	if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", a.Tid())); string(name) != agentName+"\n" {
		t.Errorf("named %q", name)
	}
	if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.Tid())); err != nil || len(fds) != 0 {
		t.Errorf("it holds descriptors %v, %v", fds, err)
	}
	if st, err := readStatus(a.Tid()); err != nil || st.ppid != os.Getpid() {
		t.Errorf("its parent is %d, want us, %d (%v)", st.ppid, os.Getpid(), err)
	}
	if was, err := subreaper(); was || err != nil {
		t.Errorf("still a subreaper: %v, %v", was, err)
	}
	for _, r := range a.Ranges() {
		maps := mapsOf(t, v.pid)
		if !strings.Contains(maps, fmt.Sprintf("%x-%x ", uint64(r.Start), uint64(r.End))) {
			t.Errorf("%v is not in the program's maps:\n%s", r, maps)
		}
		if !strings.Contains(vmFlags(t, v.pid, uint64(r.Start)), " dc ") {
			t.Errorf("%v would be inherited by children", r)
		}
	}
	m, err := a.Call(unix.SYS_MMAP, 0, 12288, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
	if err != nil {
		t.Fatal(err)
	}
	if vmFlags(t, v.pid, uint64(m)) == "" {
		t.Errorf("what the agent maps at %#x is not in the program", m)
	}
	copy(a.Data(), "hello")
	got := make([]byte, 5)
	if _, err := vmIO(unix.SYS_PROCESS_VM_READV, v.pid, uintptr(a.DataAddr()), got); err != nil || string(got) != "hello" {
		t.Errorf("the program sees %q in Data, %v", got, err)
	}
	if _, err := a.Call(unix.SYS_CLOSE, 77); err != unix.EBADF {
		t.Errorf("close(77): %v", err)
	}
	if err := a.SetCPU(0); err != nil {
		t.Error(err)
	}

	// A line lets the program check that it has no children, forks, and ends.
	v.in.Write([]byte("\n"))
	pid := v.pid
	for {
		var ws unix.WaitStatus
		tid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		if err != nil || tid == pid && ws.Exited() {
			if ws.ExitStatus() != 0 {
				t.Errorf("program ended with %#x: %s", ws, v.rest())
			}
			break
		}
		ptrace(unix.PTRACE_CONT, tid, 0, signalOf(ws))
	}
	v.pid = 0
	mustGo(t, pid) // the agent does not hold up its end
	a.Kill()
	if ws := reapAgent(a); ws.Signal() != unix.SIGKILL {
		t.Errorf("agent ended with %#x", ws)
	}
	mustGo(t, a.Tid())
	if err := a.Run(make([]Op, 1)); !errors.Is(err, ErrAgentDead) {
		t.Errorf("run on a dead agent: %v", err)
	}
}

func signalOf(ws unix.WaitStatus) uintptr {
	if ws.Stopped() && ws>>16 == 0 && ws.StopSignal() != unix.SIGTRAP|0x80 {
		return uintptr(ws.StopSignal())
	}
	return 0
}

// vmFlags returns the VmFlags of the mapping at addr, "" if there is none.
func vmFlags(t *testing.T, pid int, addr uint64) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	in := false
	for line := range strings.Lines(string(b)) {
		if lo, rest, ok := strings.Cut(line, "-"); ok && !strings.Contains(lo, " ") {
			hi, _, _ := strings.Cut(rest, " ")
			start, _ := strconv.ParseUint(lo, 16, 64)
			end, err := strconv.ParseUint(hi, 16, 64)
			in = err == nil && start <= addr && addr < end
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && in {
			return flags
		}
	}
	return ""
}

// TestSignalWhileCalled: somebody sends the agent signals while the tracer's
// own thread waits for it, as it does when the agent is made. Nobody else can
// take their stops.
func TestSignalWhileCalled(t *testing.T) {
	_, a, _ := planted(t)
	for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGTERM, unix.SIGTSTP, unix.SIGUSR1} {
		if err := unix.Kill(a.Tid(), sig); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := a.Call(unix.SYS_GETPID); err != nil {
			t.Fatalf("after signal %d: %v", sig, err)
		}
		if d := time.Since(began); d > answerTime/2 {
			t.Errorf("after signal %d the agent answered after %v", sig, d)
		}
	}
}

func TestBatch(t *testing.T) {
	_, a, _ := planted(t)
	ops := make([]Op, 3*MaxOps+5)
	for i := range ops {
		ops[i] = Op{NR: unix.SYS_CLOSE, Args: [6]uintptr{uintptr(9000 + i)}}
		if i%2 == 0 {
			ops[i].NR = unix.SYS_GETPID
		}
	}
	if err := a.Run(ops); err != nil {
		t.Fatal(err)
	}
	for i := range ops {
		if i%2 == 0 && int(ops[i].Ret) != a.Tid() || i%2 == 1 && ops[i].Err() != unix.EBADF {
			t.Fatalf("op %d: %#x", i, ops[i].Ret)
		}
	}
	// Stop in the second round trip: what was before is done, nothing after.
	for i := range ops {
		ops[i] = Op{NR: unix.SYS_GETPID, StopOnError: true}
	}
	ops[MaxOps+7].NR = unix.SYS_CLOSE
	ops[MaxOps+7].Args[0] = 9999
	if err := a.Run(ops); err != nil {
		t.Fatal(err)
	}
	for i := range ops {
		want := error(nil)
		switch {
		case i == MaxOps+7:
			want = unix.EBADF
		case i > MaxOps+7:
			want = unix.ECANCELED
		}
		if ops[i].Err() != want {
			t.Fatalf("op %d: %v, want %v", i, ops[i].Err(), want)
		}
	}
	// An error at the very end of a full round trip stops too.
	ops[MaxOps+7] = ops[0]
	ops[MaxOps-1].NR, ops[MaxOps-1].Args[0] = unix.SYS_CLOSE, 9999
	if err := a.Run(ops); err != nil || ops[MaxOps].Err() != unix.ECANCELED {
		t.Errorf("after an error in the last operation of a round trip: %v, %v", ops[MaxOps].Err(), err)
	}
	if n := testing.AllocsPerRun(100, func() { a.Run(ops[:8]) }); n != 0 {
		t.Errorf("Run allocates %v times", n)
	}
}

// TestMove has the agent make a userfaultfd and move pages of the program to
// a window, which only a task of the same address space may.
func TestMove(t *testing.T) {
	v, a, pages := planted(t)
	fd, err := a.Call(unix.SYS_USERFAULTFD, unix.O_CLOEXEC)
	testutil.Need(t, err != unix.EPERM && err != unix.ENOSYS, fmt.Sprint("userfaultfd: ", err))
	if err != nil {
		t.Fatal(err)
	}
	const (
		uffdioAPI, uffdioRegister, uffdioMove = 0xc018aa3f, 0xc020aa00, 0xc028aa05
		featureMove                           = 1 << 16 // since Linux 6.8
		size                                  = 16 * 4096
	)
	own, err := a.FD(int(fd))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(own)
	if link, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", own)); link != "anon_inode:[userfaultfd]" {
		t.Errorf("took %s", link)
	}
	window, err := a.Call(unix.SYS_MMAP, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
	if err != nil {
		t.Fatal(err)
	}
	ioctl := func(req uintptr, args ...uint64) error {
		for i, v := range args {
			binary.NativeEndian.PutUint64(a.Data()[8*i:], v)
		}
		_, err := a.Call(unix.SYS_IOCTL, fd, req, uintptr(a.DataAddr()))
		return err
	}
	err = ioctl(uffdioAPI, 0xaa, featureMove, 0)
	testutil.Need(t, err != unix.EINVAL, "UFFDIO_MOVE needs Linux 6.8")
	if err != nil {
		t.Fatal(err)
	}
	if err := ioctl(uffdioRegister, uint64(window), size, 1, 0); err != nil {
		t.Fatal(err)
	}
	if err := ioctl(uffdioMove, uint64(window), uint64(pages), size, 0, 0); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	if _, err := vmIO(unix.SYS_PROCESS_VM_READV, v.pid, window, got); err != nil {
		t.Fatal(err)
	}
	for i := range 16 {
		if got[i*4096] != byte(i+1) || got[i*4096+4095] != byte(i+1) {
			t.Errorf("page %d has %d in the window", i, got[i*4096])
		}
	}
	if _, err := vmIO(unix.SYS_PROCESS_VM_READV, v.pid, pages, got); err != nil || got[0] != 0 {
		t.Errorf("after the move the source has %d, %v", got[0], err)
	}
}

// TestRefused plants where the program's filter forbids it. The error names
// the call, and nothing stays behind.
func TestRefused(t *testing.T) {
	refuseSuspension(t)
	v, _ := start(t, "eperm")
	v.blocked()
	v.interrupt()
	s := v.open()
	before := mapsOf(t, v.pid)
	_, err := Plant(s)
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "clone") || !strings.Contains(err.Error(), "seccomp") {
		t.Errorf("error %v; want clone, EPERM and the filter named", err)
	}
	if after := mapsOf(t, v.pid); after != before {
		t.Errorf("maps before:\n%s\nafter:\n%s", before, after)
	}
	closeSession(t, s)
	v.finish()
}

// TestPlantWhereFilterForbids: a program with a filter of its own could not be
// engaged, or was killed for calls that it had not made. The filter is in force again
// for the program, and not for the agent.
func TestPlantWhereFilterForbids(t *testing.T) {
	filtered, err := HasFilter(os.Getpid())
	testutil.Need(t, err == nil && !filtered, "needs a process without a seccomp filter")
	v, _ := start(t, "eperm")
	a := plant(t, v)
	// Nothing is allocated where no memory is shared: the kernel refuses that.
	if _, err := a.Call(unix.SYS_CLONE, unix.CLONE_SIGHAND); !errors.Is(err, unix.EINVAL) {
		t.Errorf("clone in the agent: %v, want the kernel's EINVAL", err)
	}
	a.Release()
	reapAgent(a)
	s := v.open()
	if err := s.resumeFilters(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Syscall(unix.SYS_CLONE, unix.CLONE_SIGHAND); !errors.Is(err, unix.EPERM) {
		t.Errorf("clone in the program: %v, want EPERM of its filter", err)
	}
	closeSession(t, s)
	v.finish()
}

// TestPlantFiltered plants in a program that has the filter already, as a
// child of an engaged program has.
func TestPlantFiltered(t *testing.T) {
	refuseSuspension(t)
	v, _ := start(t, "pages")
	v.blocked()
	v.interrupt()
	s := v.open()
	if err := s.InstallFilter(); err != nil {
		t.Fatal(err)
	}
	a, err := Plant(s)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { a.Release(); reapAgent(a) }()
	closeSession(t, s)
	res := make(chan error, 1)
	go func() { // the filter reports this one, and the tracer lets it pass
		_, err := a.Call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
		res <- err
	}()
	var ws unix.WaitStatus
	if _, err := unix.Wait4(a.Tid(), &ws, unix.WALL, nil); err != nil || int(ws>>16) != unix.PTRACE_EVENT_SECCOMP {
		t.Fatalf("stop %#x, %v; want the seccomp stop", ws, err)
	}
	if err := a.Stopped(ws); err != nil {
		t.Fatal(err)
	}
	if err := <-res; err != nil {
		t.Errorf("mmap: %v", err)
	}
}
