// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"fmt"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// job is a supervised program in a process group of its own.
type job struct {
	t     *testing.T
	cmd   *exec.Cmd
	pid   int // of the supervisor
	root  int // of the program
	lines chan string
}

func startJob(t *testing.T, args ...string) *job {
	t.Helper()
	cmd := mini(t, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	j := &job{t: t, cmd: cmd, pid: cmd.Process.Pid, lines: lineChan(out)}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	line := within(t, "the program", j.lines)
	if _, err := fmt.Sscanf(line, "ready %d", &j.root); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return j
}

func (j *job) kill(pid int, sig syscall.Signal) {
	j.t.Helper()
	if err := unix.Kill(pid, sig); err != nil {
		j.t.Fatal(err)
	}
}

func (j *job) expect(sig syscall.Signal) {
	j.t.Helper()
	if got, want := within(j.t, "a signal", j.lines), fmt.Sprint("got ", int(sig)); got != want {
		j.t.Fatalf("%q, want %q", got, want)
	}
}

// state waits for the next change of the supervisor's state.
func (j *job) state() syscall.WaitStatus {
	j.t.Helper()
	ch := make(chan syscall.WaitStatus, 1)
	go func() {
		var ws syscall.WaitStatus
		for {
			_, err := syscall.Wait4(j.pid, &ws, unix.WUNTRACED|unix.WCONTINUED, nil)
			if err != syscall.EINTR {
				break
			}
		}
		ch <- ws
	}()
	return within(j.t, "the supervisor's state", ch)
}

// Each signal arrives exactly once, whether it is sent to the supervisor
// alone, to the program alone or to the whole group. That nothing comes twice
// is seen by the signal after it, which takes the slowest way.
func TestSignalsForwarded(t *testing.T) {
	bin := tool(t, "sigs")
	for _, threads := range []string{"0", "5"} {
		j := startJob(t, bin, "handler", threads)
		for _, sig := range []syscall.Signal{
			unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGUSR2, unix.SIGALRM, unix.SIGVTALRM,
			unix.SIGCONT, unix.SIGWINCH, unix.SIGIO, unix.SIGPWR, 35, 62,
		} {
			j.kill(j.pid, sig)
			j.expect(sig)
			j.kill(j.pid, sig) // again, within the time in which copies are looked for
			j.expect(sig)
			j.kill(-j.pid, sig)
			j.expect(sig)
			j.kill(j.root, unix.SIGUSR1)
			j.expect(unix.SIGUSR1)
			j.kill(j.pid, unix.SIGTTIN) // ignored: not for the program
			j.kill(j.pid, unix.SIGPROF)
			j.kill(j.pid, 40)
			j.expect(40)
		}
		j.kill(j.pid, unix.SIGTERM)
		j.expect(unix.SIGTERM)
		if ws := j.state(); !ws.Exited() || ws.ExitStatus() != 0 {
			t.Errorf("%#x", ws)
		}
	}
}

// The default action of a forwarded signal kills the program, and the
// supervisor dies by the same.
func TestForwardedDeath(t *testing.T) {
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGINT, unix.SIGUSR1, unix.SIGABRT} {
		j := startJob(t, "sh", "-c", "ulimit -c 0; echo ready $$; exec sleep 100")
		j.kill(j.pid, sig)
		if ws := j.state(); !ws.Signaled() || ws.Signal() != sig {
			t.Errorf("signal %d: %#x", sig, ws)
		}
	}
}

// TestStoppedByItsChild: the supervisor stopped with the program, and so the child that
// was to continue it went on no more. It does stop when the child ends instead.
func TestStoppedByItsChild(t *testing.T) {
	const stop = `kill -STOP $PPID; until grep -q "State:.[tT]" /proc/$PPID/status; do :; done; `
	child := func(script string) *job {
		return startJob(t, "sh", "-c", `echo ready $$; sh -c '`+script+`'; echo got 1`)
	}
	// Its forks have to be seen by the supervisor, which took a moment to stop.
	j := child(stop + "for i in $(seq 100); do /bin/true; done; kill -CONT $PPID")
	j.expect(1)
	if ws := j.state(); !ws.Exited() || ws.ExitStatus() != 0 {
		t.Errorf("%#x, want an exit", ws)
	}
	j = child(stop)
	if ws := j.state(); !ws.Stopped() || ws.StopSignal() != unix.SIGSTOP {
		t.Fatalf("%#x, want a stop", ws)
	}
	j.kill(-j.pid, unix.SIGCONT)
	if ws := j.state(); !ws.Continued() {
		t.Fatalf("%#x, want continued", ws)
	}
	j.expect(1)
}

// Whoever waits for the supervisor sees it stop when the program stops, and
// both continue.
func TestStopSeenFromOutside(t *testing.T) {
	bin := tool(t, "sigs")
	for _, tc := range []struct {
		name     string
		stop     syscall.Signal
		stopRoot bool // or the group, or the supervisor alone for TSTP
		contPid  int  // 1: the supervisor, -1: the group
	}{
		{"stop program, continue group", unix.SIGSTOP, true, -1},
		{"stop program, continue supervisor", unix.SIGSTOP, true, 1},
		{"terminal stop of group", unix.SIGTSTP, false, -1},
		{"terminal output of group", unix.SIGTTOU, false, -1},
		{"terminal stop of supervisor", unix.SIGTSTP, false, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			j := startJob(t, bin, "handler", "4")
			for range 3 {
				switch {
				case tc.stopRoot:
					j.kill(j.root, tc.stop)
				default:
					j.kill(tc.contPid*j.pid, tc.stop)
				}
				if ws := j.state(); !ws.Stopped() || ws.StopSignal() != tc.stop {
					t.Fatalf("%#x, want a stop by %d", ws, tc.stop)
				}
				j.kill(tc.contPid*j.pid, unix.SIGCONT)
				if ws := j.state(); !ws.Continued() {
					t.Fatalf("%#x, want continued", ws)
				}
				j.expect(unix.SIGCONT)
				j.kill(j.pid, unix.SIGUSR1)
				j.expect(unix.SIGUSR1)
			}
			j.kill(j.pid, unix.SIGKILL)
			if ws := j.state(); !ws.Signaled() {
				t.Errorf("%#x", ws)
			}
		})
	}
}
