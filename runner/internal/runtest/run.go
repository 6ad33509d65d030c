// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// marker is a variable in the environment of all that a test starts, by
// which what is left of it is found.
const marker = "FAULTLINE_TEST_RUN"

var runs atomic.Int64

// Run is a command that runs.
type Run struct {
	Cmd   *exec.Cmd
	Ended chan struct{} // closed when Err is set
	Err   error         // of Cmd.Wait

	id  string // value of the marker
	tmp string // its TMPDIR
}

// New prepares a command, whose standard files the caller sets before Start.
func New(t *testing.T, args ...string) *Run {
	t.Helper()
	r := &Run{
		Cmd:   exec.Command(args[0], args[1:]...),
		Ended: make(chan struct{}),
		id:    fmt.Sprintf("%d-%d", os.Getpid(), runs.Add(1)),
		tmp:   t.TempDir(),
	}
	// All goroutines are printed when a hanging faultline is killed.
	r.Cmd.Env = append(os.Environ(), marker+"="+r.id, "TMPDIR="+r.tmp, "GOTRACEBACK=all", "LC_ALL=C")
	return r
}

// Start starts it. What is left of it when the test ends is killed.
func (r *Run) Start(t *testing.T) {
	t.Helper()
	if err := r.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		r.Err = r.Cmd.Wait()
		close(r.Ended)
	}()
	t.Cleanup(func() {
		r.kill()
		<-r.Ended
	})
}

// PID is that of the command: of faultline, or of the program alone.
func (r *Run) PID() int { return r.Cmd.Process.Pid }

// Await waits for the command. One that takes too long is looked at, killed
// with all that it has started, and fails the test.
func (r *Run) Await(t *testing.T, patience time.Duration) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-r.Ended:
	case <-timer.C:
		t.Errorf("%v has not ended after %v\n%s", r.Cmd.Args, patience, r.PostMortem())
		// Not a signal that is passed on, but one that makes Go print its
		// goroutines, into the standard error that is shown below.
		_ = r.Cmd.Process.Signal(syscall.SIGSEGV)
		select {
		case <-r.Ended:
		case <-time.After(5 * time.Second):
		}
		r.kill()
		<-r.Ended
		if f, ok := r.Cmd.Stderr.(*os.File); ok {
			t.Logf("stderr:\n%s", Contents(t, f))
		}
	}
}

// NothingLeft holds that no process of the run lives and no temporary file
// remains. What dies with faultline may take a moment to be gone.
func (r *Run) NothingLeft(t *testing.T) {
	t.Helper()
	var left []int
	for until := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if left = r.Processes(); len(left) == 0 || time.Now().After(until) {
			break
		}
	}
	if len(left) > 0 {
		t.Errorf("still there after %v: %s", r.Cmd.Args, r.PostMortem())
		r.kill()
	}
	files, err := os.ReadDir(r.tmp)
	if err != nil || len(files) > 0 {
		t.Errorf("left in TMPDIR: %v, %v", files, err)
	}
}

// kill kills all that the run has started, until nothing of it lives.
func (r *Run) kill() {
	for list := r.Processes(); len(list) > 0; list = r.Processes() {
		for _, pid := range list {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(time.Millisecond)
	}
}

// Processes lists those of the run that live, the agents among them.
func (r *Run) Processes() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	want := []byte(marker + "=" + r.id)
	var list []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) // empty for a zombie
		for v := range bytes.SplitSeq(env, []byte{0}) {
			if bytes.Equal(v, want) {
				list = append(list, pid)
				break
			}
		}
	}
	return list
}

// PostMortem tells where every thread of the run is.
func (r *Run) PostMortem() string {
	var b strings.Builder
	read := func(dir, name string) string {
		text, _ := os.ReadFile(filepath.Join(dir, name))
		return strings.TrimSpace(string(text))
	}
	for _, pid := range r.Processes() {
		dir := fmt.Sprintf("/proc/%d", pid)
		fmt.Fprintf(&b, "%d %s\n", pid, strings.ReplaceAll(read(dir, "cmdline"), "\x00", " "))
		tasks, _ := filepath.Glob(dir + "/task/*")
		for _, task := range tasks {
			state := ""
			for line := range strings.Lines(read(task, "status")) {
				if rest, ok := strings.CutPrefix(line, "State:"); ok {
					state = strings.TrimSpace(rest)
				}
			}
			fmt.Fprintf(&b, "  %s %s: %s, in %s, call %s\n", filepath.Base(task), read(task, "comm"),
				state, read(task, "wchan"), read(task, "syscall"))
		}
	}
	return b.String()
}
