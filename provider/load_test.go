// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/workload"
)

// TestLoad does to descriptors, processes and signals what programs do, while
// threads fault: see uffdload.c, which ends well on the kernel's own call.
func TestLoad(t *testing.T) {
	program := workload.Build(t, "uffdload")
	faultline := command(t)
	for _, name := range []string{"descriptors", "processes", "signals"} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if out, err := exec.CommandContext(ctx, faultline, "provide", "--", program, name, "1").CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// budget is how long a tree may take to end. What hangs takes for ever.
const budget = 20 * time.Second

// running is a tree that has said that it is ready.
type running struct {
	cmd     *exec.Cmd
	out     *bufio.Reader
	program int   // the process that has said so last
	tree    []int // pidfds of all below faultline
	pids    []int
}

// start runs a program under faultline and waits for the given number of lines.
func start(t *testing.T, lines int, args ...string) *running {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), command(t), append([]string{"provide", "--"}, args...)...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := &running{cmd: cmd, out: bufio.NewReader(out)}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		for _, fd := range r.tree {
			_ = unix.Close(fd)
		}
	})
	for range lines {
		line, err := r.out.ReadString('\n')
		if n, _ := fmt.Sscanf(line, "ready %d", &r.program); n != 1 {
			t.Fatalf("the program said %q, %v", line, err)
		}
	}
	for _, pid := range descendants(cmd.Process.Pid) {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			r.tree, r.pids = append(r.tree, fd), append(r.pids, pid)
		}
	}
	if len(r.tree) == 0 {
		t.Fatal("there is no process")
	}
	return r
}

// descendants returns the processes below pid, tasks of ours included.
func descendants(pid int) (all []int) {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, task := range tasks {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		for _, f := range strings.Fields(string(b)) {
			child, _ := strconv.Atoi(f)
			all = append(append(all, child), descendants(child)...)
		}
	}
	return all
}

// ends fails the test if anything of the tree lives on. It returns the status of
// faultline.
func (r *running) ends(t *testing.T) syscall.WaitStatus {
	t.Helper()
	deadline := time.Now().Add(budget)
	for i, fd := range r.tree {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n := 0
		for n == 0 && time.Now().Before(deadline) {
			n, _ = unix.Poll(fds, 100) // EINTR: once more
			n = max(n, 0)
		}
		if n == 0 {
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.pids[i]))
			t.Fatalf("process %d lives on:\n%s", r.pids[i], status)
		}
	}
	// Whoever has not been seen above has the other end of this.
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, r.out)
		_ = r.cmd.Wait() // the status tells
		done <- err
	}()
	select {
	case <-done:
	case <-time.After(budget):
		t.Fatal("faultline lives on, or a process that it has left behind")
	}
	return r.cmd.ProcessState.Sys().(syscall.WaitStatus)
}

// TestTerminated: a signal that ends a program ends one of which every thread
// waits. It did nothing, as those were in a stop, where no signal is seen.
func TestTerminated(t *testing.T) {
	program := workload.Build(t, "uffdload")
	for _, kind := range []string{"user", "call", "read", "event", "all"} {
		t.Run(kind, func(t *testing.T) {
			r := start(t, 1, program, "wedge", kind)
			if err := unix.Kill(r.program, unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if st := r.ends(t); st.Signal() != unix.SIGTERM {
				t.Errorf("status %#x", st)
			}
		})
	}
	// A handler runs where the kernel would let it: not in a system call that
	// has faulted, nor before an event was read.
	for _, kind := range []string{"user", "read", "all"} {
		t.Run("handled "+kind, func(t *testing.T) {
			r := start(t, 1, program, "handled", kind)
			if err := unix.Kill(r.program, unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if st := r.ends(t); st.ExitStatus() != 7 {
				t.Errorf("status %#x", st)
			}
		})
	}
}

// TestKilled kills the program, faultline, or both at once, under load and where
// every thread waits. Nothing is left.
func TestKilled(t *testing.T) {
	program := workload.Build(t, "uffdload")
	two := fmt.Sprintf("%s forever & %s forever", program, program)
	for _, tc := range []struct {
		name  string
		lines int
		args  []string
		kill  func(r *running) error
	}{
		{"program", 1, []string{program, "forever"}, func(r *running) error { return unix.Kill(r.program, unix.SIGKILL) }},
		{"program that waits", 1, []string{program, "wedge", "all"}, func(r *running) error { return unix.Kill(r.program, unix.SIGKILL) }},
		{"faultline", 1, []string{program, "forever"}, func(r *running) error { return r.cmd.Process.Kill() }},
		{"faultline of one that waits", 1, []string{program, "wedge", "all"}, func(r *running) error { return r.cmd.Process.Kill() }},
		{"faultline of two programs", 2, []string{"/bin/sh", "-c", two}, func(r *running) error { return r.cmd.Process.Kill() }},
		{"all", 2, []string{"/bin/sh", "-c", two}, func(r *running) error { return unix.Kill(-r.cmd.Process.Pid, unix.SIGKILL) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := start(t, tc.lines, tc.args...)
			if err := tc.kill(r); err != nil {
				t.Fatal(err)
			}
			if st := r.ends(t); st.Signal() != unix.SIGKILL {
				t.Errorf("status %#x", st)
			}
		})
	}
}
