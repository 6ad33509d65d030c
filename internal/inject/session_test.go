// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
)

// TestWaits injects into threads that sleep in a system call. The program
// must see the call go on as if nothing had been: no EINTR but where a
// handler ran, no data lost, the timeout as it was.
func TestWaits(t *testing.T) {
	for _, tc := range []struct {
		mode string
		sig  unix.Signal // sent while the thread is borrowed
		feed bool        // the program needs input
	}{
		{mode: "nanosleep"}, {mode: "futex"}, {mode: "poll"}, {mode: "semop"},
		{mode: "read", feed: true}, {mode: "epoll", feed: true}, {mode: "wait4", feed: true},
		{mode: "pause", sig: unix.SIGUSR1}, {mode: "sigsuspend", sig: unix.SIGUSR1},
		{mode: "ppoll", sig: unix.SIGUSR1}, {mode: "epoll_pwait", sig: unix.SIGUSR1},
		{mode: "read_restart", sig: unix.SIGUSR1, feed: true}, {mode: "read_eintr", sig: unix.SIGUSR1},
	} {
		t.Run(tc.mode, func(t *testing.T) {
			v, _ := start(t, tc.mode)
			v.blocked()
			for range 3 {
				v.interrupt()
				s := v.open()
				if err := meddle(s, v.pid); err != nil {
					t.Error(err)
				}
				if tc.sig != 0 {
					// Once is enough: a second instance would be merged or not.
					unix.Tgkill(v.pid, v.pid, tc.sig)
					if err := meddle(s, v.pid); err != nil {
						t.Error(err)
					}
				}
				closeSession(t, s)
				if tc.sig != 0 {
					break
				}
				v.cont(0)
				v.blocked()
			}
			if tc.sig == 0 {
				v.interrupt()
				if err := KeepWaiting(v.pid); err != nil {
					t.Error(err)
				}
			}
			v.finish()
		})
	}
}

// TestRegisters compares all registers, the vector registers through the
// program's own eyes.
func TestRegisters(t *testing.T) {
	v, line := start(t, "registers")
	flag := parseAddr(t, line)
	for range 20 {
		v.interrupt()
		var before, after regs
		if err := getRegs(v.pid, &before); err != nil {
			t.Fatal(err)
		}
		mask, _ := getMask(v.pid)
		s := v.open()
		if err := meddle(s, v.pid); err != nil {
			t.Fatal(err)
		}
		closeSession(t, s)
		if err := getRegs(v.pid, &after); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(before, after); d != "" {
			t.Errorf("registers changed:\n%s", d)
		}
		if m, _ := getMask(v.pid); m != mask {
			t.Errorf("signal mask %#x, was %#x", m, mask)
		}
		if got := s.Status(); got.StopSignal() != unix.SIGTRAP || int(got>>16) != unix.PTRACE_EVENT_STOP {
			t.Errorf("status after close is %#x", got)
		}
		v.cont(0)
	}
	v.interrupt()
	s := v.open()
	if _, err := s.WriteAt([]byte{1}, int64(flag)); err != nil {
		t.Fatal(err)
	}
	closeSession(t, s)
	v.finish()
}

// TestEveryStop injects at every single stop of a program that forks, vforks,
// makes threads, executes, faults, and sends itself signals, traced at every
// system call: entry and exit stops, all events, signal deliveries, first
// stops of children.
func TestEveryStop(t *testing.T) {
	for _, tc := range []struct {
		name   string
		req    int
		filter bool
	}{
		{"every call", unix.PTRACE_SYSCALL, false},
		{"events", unix.PTRACE_CONT, false},
		{"filter", unix.PTRACE_CONT, true},
		{"filter and every call", unix.PTRACE_SYSCALL, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, _ := start(t, "everything")
			v.blocked()
			v.interrupt()
			if tc.filter {
				s := v.open()
				if err := s.InstallFilter(); err != nil {
					t.Fatal(err)
				}
				closeSession(t, s)
			}
			v.in.Write([]byte("g"))
			ptrace(tc.req, v.pid, 0, 0)
			seen := make(map[string]int)
			v.follow(func(tid, code int) (int, bool) {
				s, err := Open(tid)
				kind := fmt.Sprintf("%#x", code)
				switch {
				case errors.Is(err, ErrBusy):
					seen["busy "+kind]++
					return 0, false
				case errors.Is(err, ErrGone):
					seen["gone"]++
					return 0, false
				case err != nil:
					t.Fatalf("open at stop %#x: %v", code, err)
				}
				seen[kind]++
				if err := meddle(s, 0); err != nil && !errors.Is(err, ErrGone) && !errors.Is(err, ErrExec) {
					t.Errorf("at stop %#x: %v", code, err)
				}
				if err := s.Close(); err != nil && !errors.Is(err, ErrGone) && !errors.Is(err, ErrExec) {
					t.Fatalf("close at stop %#x: %v", code, err)
				}
				left := int(s.Status()>>8) & 0xffffff
				if code>>8 == 0 && code&0x80 == 0 && left != code {
					t.Errorf("stop %#x became %#x", code, left)
				}
				return left, true
			}, tc.req)
			if got := v.rest(); got != "ok\n" {
				t.Errorf("program printed %q", got)
			}
			t.Log(seen)
			want := []string{"0x105", "0x305", "busy 0x205", "0x405", "0x8005", "0xa", "0xb", "0x22", "0x11"}
			if tc.req == unix.PTRACE_SYSCALL {
				want = append(want, "0x85")
			}
			if tc.filter {
				want = append(want, "0x705")
			}
			for _, k := range want {
				if seen[k] == 0 {
					t.Errorf("no stop of kind %s was met", k)
				}
			}
		})
	}
}

// TestSkip answers a call without its being made, and changes another.
func TestSkip(t *testing.T) {
	v, _ := start(t, "read")
	v.blocked()
	v.interrupt()
	// From the interrupt to the entry of the restarted read.
	if err := ptrace(unix.PTRACE_SYSCALL, v.pid, 0, 0); err != nil {
		t.Fatal(err)
	}
	if code, err := waitStop(v.pid); err != nil || code != int(unix.SIGTRAP)|0x80 {
		t.Fatalf("stop %#x, %v", code, err)
	}
	s := v.open()
	nr, args, ok := s.Call()
	if !ok || nr != unix.SYS_READ || args[0] != 0 || args[2] != 16 {
		t.Fatalf("call %d%v, %v; want read(0, _, 16)", nr, args, ok)
	}
	if _, err := s.WriteAt([]byte("go\n"), int64(args[1])); err != nil {
		t.Fatal(err)
	}
	s.Skip(3)
	closeSession(t, s)
	v.finish()
}

// TestSetCall has the program make another call than it was about to.
func TestSetCall(t *testing.T) {
	v, _ := start(t, "read")
	v.blocked()
	v.interrupt()
	ptrace(unix.PTRACE_SYSCALL, v.pid, 0, 0)
	waitStop(v.pid)
	s := v.open()
	if err := meddle(s, v.pid); err != nil {
		t.Error(err)
	}
	s.SetCall(unix.SYS_GETPPID, [6]uintptr{})
	closeSession(t, s)
	ptrace(unix.PTRACE_SYSCALL, v.pid, 0, 0)
	waitStop(v.pid)
	var r regs
	getRegs(v.pid, &r)
	if got := int(result(&r)); got != os.Getpid() {
		t.Errorf("read was turned into getppid and gave %d, want %d", got, os.Getpid())
	}
}

// TestGroupStop injects into a stopped program, which stays stopped.
func TestGroupStop(t *testing.T) {
	v, _ := start(t, "nanosleep")
	v.blocked()
	unix.Kill(v.pid, unix.SIGSTOP)
	if code, err := waitStop(v.pid); err != nil || code != int(unix.SIGSTOP) {
		t.Fatalf("stop %#x, %v", code, err)
	}
	v.cont(int(unix.SIGSTOP))
	v.waitFor(unix.PTRACE_EVENT_STOP)
	s := v.open()
	if err := meddle(s, v.pid); err != nil {
		t.Error(err)
	}
	closeSession(t, s)
	if st := s.Status(); st.StopSignal() != unix.SIGSTOP || int(st>>16) != unix.PTRACE_EVENT_STOP {
		t.Errorf("after close the stop is %#x, want the group stop", st)
	}
	if err := ptrace(unix.PTRACE_LISTEN, v.pid, 0, 0); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.pid))
	if !strings.Contains(string(b), "State:\tt") && !strings.Contains(string(b), "State:\tT") {
		t.Errorf("not stopped:\n%s", b)
	}
	unix.Kill(v.pid, unix.SIGCONT)
	v.waitFor(unix.PTRACE_EVENT_STOP)
	v.finish()
}

// TestStopDuring sends SIGSTOP into an injection: it must work, once.
func TestStopDuring(t *testing.T) {
	v, _ := start(t, "nanosleep")
	v.blocked()
	v.interrupt()
	s := v.open()
	unix.Kill(v.pid, unix.SIGSTOP)
	if err := meddle(s, v.pid); err != nil {
		t.Error(err)
	}
	closeSession(t, s)
	if st := s.Status(); st.StopSignal() != unix.SIGSTOP {
		t.Errorf("after close the stop is %#x, want the group stop", st)
	}
	unix.Kill(v.pid, unix.SIGCONT)
	v.finish()
}

// TestKilled kills the program under the session. Its status is left for the
// tracer.
func TestKilled(t *testing.T) {
	v, _ := start(t, "pause")
	v.blocked()
	v.interrupt()
	s := v.open()
	unix.Kill(v.pid, unix.SIGKILL)
	if _, err := s.Syscall(unix.SYS_GETPID); !errors.Is(err, ErrGone) {
		t.Errorf("call in a killed thread: %v", err)
	}
	if err := s.Close(); !errors.Is(err, ErrGone) {
		t.Errorf("close: %v", err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(v.pid, &ws, unix.WALL, nil); err != nil || ws.Signal() != unix.SIGKILL {
		t.Errorf("the tracer's wait: %#x, %v", ws, err)
	}
	if _, err := Open(v.pid); !errors.Is(err, ErrGone) {
		t.Errorf("open of a dead thread: %v", err)
	}
	v.pid = 0
}

// TestTrapped injects a call that the program's filter answers with SIGSYS.
// The program's handler must not run, and stay.
func TestTrapped(t *testing.T) {
	refuseSuspension(t)
	v, _ := start(t, "trap")
	v.blocked()
	v.interrupt()
	s := v.open()
	if _, err := s.Syscall(unix.SYS_GETPPID); !errors.Is(err, ErrFiltered) {
		t.Errorf("trapped call: %v", err)
	}
	if err := meddle(s, v.pid); err != nil {
		t.Error(err)
	}
	closeSession(t, s)
	v.finish()
}

// TestStrict leaves a thread alone that any call would kill.
func TestStrict(t *testing.T) {
	v, _ := start(t, "strict")
	v.blocked()
	v.interrupt()
	if _, err := Open(v.pid); !errors.Is(err, ErrFiltered) {
		t.Errorf("open: %v", err)
	}
}

// TestSequence borrows a thread inside a restartable sequence (rseq(2)), which
// the kernel must still know about afterwards, and abort.
func TestSequence(t *testing.T) {
	v, line := start(t, "rseq")
	if v.line() != "ready" {
		testutil.Need(t, false, "no restartable sequences in this C library")
	}
	v.interrupt()
	area := rseqArea(v.pid)
	testutil.Need(t, area != 0, "PTRACE_GET_RSEQ_CONFIGURATION needs Linux 5.13")
	v.cont(0)
	hits := 0
	for range 50 {
		eventually(t, "the thread enters the sequence", func() bool {
			var b [8]byte
			_, err := vmIO(unix.SYS_PROCESS_VM_READV, v.pid, area+8, b[:])
			return err == nil && b != [8]byte{}
		})
		v.interrupt()
		s := v.open()
		if s.rseq != 0 {
			hits++
		}
		if err := meddle(s, v.pid); err != nil {
			t.Error(err)
		}
		at, want := int64(s.rseq), s.rseqCS
		closeSession(t, s)
		var got [8]byte
		if at != 0 {
			if _, err := s.ReadAt(got[:], at); err != nil || got != want {
				t.Fatalf("sequence %x after the session, %v; want %x", got, err, want)
			}
		}
		v.cont(0)
	}
	if hits == 0 {
		t.Error("the thread was never inside the sequence")
	}
	v.interrupt()
	s := v.open()
	if _, err := s.WriteAt([]byte{1}, int64(parseAddr(t, line))); err != nil {
		t.Fatal(err)
	}
	closeSession(t, s)
	v.finish()
}
