// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
)

// TestAgentKilled kills the agent while it is in a call that never returns.
// The waiter must be told, with the tracer there or not, and the program must
// have no zombie. (H7)
func TestAgentKilled(t *testing.T) {
	for _, tracer := range []bool{true, false} {
		t.Run(fmt.Sprintf("reaped=%v", tracer), func(t *testing.T) {
			v, a, _ := planted(t)
			res := make(chan error, 1)
			go func() {
				_, err := a.Call(unix.SYS_PPOLL, 0, 0, 0, 0, 0)
				res <- err
			}()
			eventually(t, "the agent is in ppoll", func() bool {
				b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", a.Tid()))
				return strings.HasPrefix(string(b), strconv.Itoa(unix.SYS_PPOLL)+" ")
			})
			unix.Kill(a.Tid(), unix.SIGKILL)
			if tracer {
				reapAgent(a)
			}
			select {
			case err := <-res:
				if !errors.Is(err, ErrAgentDead) {
					t.Errorf("call: %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("the call hangs")
			}
			<-a.Dead()
			reapAgent(a)
			mustGo(t, a.Tid())
			v.in.Write([]byte("\n")) // checks for children with __WALL
			v.follow(func(int, int) (int, bool) { return 0, false }, unix.PTRACE_CONT)
			if got := v.rest(); got != "ok\n" {
				t.Errorf("program printed %q", got)
			}
		})
	}
}

// TestSignals sends the agent what would end or stop the program.
func TestSignals(t *testing.T) {
	v, a, _ := planted(t)
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGTSTP, unix.SIGCONT} {
		unix.Kill(a.Tid(), sig)
	}
	unix.Kill(a.Tid(), unix.SIGSTOP)
	// SIGSTOP and SIGCONT stop a seized task, each in its way.
	var ws unix.WaitStatus
	if _, err := unix.Wait4(a.Tid(), &ws, unix.WALL, nil); err != nil || !ws.Stopped() {
		t.Fatalf("SIGSTOP: %#x, %v", ws, err)
	}
	if err := a.Stopped(ws); err != nil {
		t.Fatal(err)
	}
	unix.Kill(-v.pid, unix.SIGTERM) // the process group, which is the victim's
	if _, err := unix.Wait4(v.pid, &ws, unix.WALL, nil); err != nil || ws.StopSignal() != unix.SIGTERM {
		t.Fatalf("SIGTERM for the program: %#x, %v", ws, err)
	}
	v.cont(int(unix.SIGTERM))
	unix.Wait4(v.pid, &ws, unix.WALL, nil)
	mustGo(t, v.pid)
	v.pid = 0
	res := make(chan error, 1)
	go func() {
		_, err := a.Call(unix.SYS_GETPID)
		res <- err
	}()
	eventually(t, "the agent answers after all the signals", func() bool {
		if n, _ := unix.Wait4(a.Tid(), &ws, unix.WALL|unix.WNOHANG, nil); n != 0 {
			if !ws.Stopped() {
				t.Fatalf("agent ended with %#x", ws)
			}
			a.Stopped(ws)
		}
		select {
		case err := <-res:
			if err != nil {
				t.Errorf("getpid: %v", err)
			}
			return true
		default:
			return false
		}
	})
}

// TestOwnReaper plants in a program that reaps orphans itself. The agent is
// then its child, which a plain wait does not see, and goes when it goes.
func TestOwnReaper(t *testing.T) {
	v, _ := start(t, "reaper")
	a := plant(t, v)
	defer a.Release()
	if st, err := readStatus(a.Tid()); err != nil || st.ppid != v.pid {
		t.Errorf("its parent is %d, want the program, %d (%v)", st.ppid, v.pid, err)
	}
	v.in.Write([]byte("\n"))
	v.cont(0)
	var ws unix.WaitStatus
	if _, err := unix.Wait4(v.pid, &ws, unix.WALL, nil); err != nil || !ws.Exited() || ws.ExitStatus() != 0 {
		t.Errorf("program ended with %#x, %v: %s", ws, err, v.rest())
	}
	v.pid = 0
	a.Kill()
	reapAgent(a)
	mustGo(t, a.Tid())
}

// TestExec lets the program become another. The agent stays behind with the
// old memory, until it is killed.
func TestExec(t *testing.T) {
	v, _ := start(t, "everything")
	v.blocked()
	v.interrupt()
	s := v.open()
	a, err := Plant(s)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Release()
	closeSession(t, s)
	v.in.Write([]byte("g"))
	v.cont(0)
	v.follow(func(tid, code int) (int, bool) {
		if code>>8 == unix.PTRACE_EVENT_EXEC && tid == v.pid {
			if pid, err := a.Call(unix.SYS_GETPID); err != nil || int(pid) != a.Tid() {
				t.Errorf("after exec: %d, %v", pid, err)
			}
			a.Kill()
		}
		return 0, false
	}, unix.PTRACE_CONT)
	if got := v.rest(); got != "ok\n" {
		t.Errorf("program printed %q", got)
	}
	mustGo(t, a.Tid())
}

// TestTargetKilled kills the program; the agent is then the owner's to kill.
// Neither leaves a task behind.
func TestTargetKilled(t *testing.T) {
	v, a, _ := planted(t)
	unix.Kill(v.pid, unix.SIGKILL)
	var ws unix.WaitStatus
	unix.Wait4(v.pid, &ws, unix.WALL, nil)
	mustGo(t, v.pid)
	v.pid = 0
	if _, err := a.Call(unix.SYS_GETPID); err != nil {
		t.Errorf("the agent without the program: %v", err)
	}
	a.Kill()
	reapAgent(a)
	mustGo(t, a.Tid())
}

// TestSupervisorKilled kills the tracer. The program and its agent must die
// with it, and whoever adopts them finds both dead. (H7)
func TestSupervisorKilled(t *testing.T) {
	bin, err := victimPath()
	testutil.Need(t, err == nil, fmt.Sprint("no victim: ", err))
	restore, err := adoptOrphans()
	if err != nil {
		t.Fatal(err)
	}
	defer restore()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "INJECT_TEST_SUPERVISOR="+bin)
	cmd.Stderr = os.Stderr
	in, _ := cmd.StdinPipe()
	defer in.Close()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var pid, agent int
	if _, err := fmt.Sscan(line, &pid, &agent); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	for _, tid := range []int{pid, agent} {
		var ws unix.WaitStatus
		if _, err := unix.Wait4(tid, &ws, unix.WALL, nil); err != nil || ws.Signal() != unix.SIGKILL {
			t.Errorf("task %d: %#x, %v; want killed", tid, ws, err)
		}
		mustGo(t, tid)
	}
}

// supervise is the tracer of TestSupervisorKilled, a process of its own.
func supervise(bin string) {
	t := fatal{}
	v := launch(t, bin, "pages")
	v.line()
	if err := ptrace(unix.PTRACE_SEIZE, v.pid, 0, options); err != nil {
		t.Fatal(err)
	}
	v.interrupt()
	s := v.open()
	a, err := Plant(s)
	if err != nil {
		t.Fatal(err)
	}
	closeSession(t, s)
	v.cont(0)
	fmt.Println(v.pid, a.Tid())
	io.Copy(io.Discard, os.Stdin)
}

// fatal is the part of testing.TB that supervise uses, without a test.
type fatal struct{ testing.TB }

func (fatal) Helper() {}
func (fatal) Fatal(args ...any) {
	fmt.Fprintln(os.Stderr, args...)
	os.Exit(1)
}
func (f fatal) Fatalf(format string, args ...any) { f.Fatal(fmt.Sprintf(format, args...)) }
