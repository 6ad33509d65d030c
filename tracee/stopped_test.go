// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/internal/testutil"
)

// The program is stopped again and again while it sleeps in some call, which
// must end as if nothing had been.
func TestStopped(t *testing.T) {
	bin := tool(t, "sleeper")
	for how, want := range map[string]string{
		"spin":      "0 0 0",
		"nanosleep": "0 0 0",
		"futex":     fmt.Sprintf("-1 %d 0", unix.ETIMEDOUT),
		"poll":      "0 0 0",
		"wait":      "0 0 0",
		"vfork":     "0 0 0",
		"churn":     "0 0 0",
	} {
		t.Run(how, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "result")
			tr := launched(t, nil, bin, how, file)
			tr.Continue()
			space := tr.Root().Space()
			n := 0
			for {
				err := tr.Stopped(t.Context(), space, func(th *Thread) error {
					if _, err := getSiginfo(th.tid); err != nil {
						return fmt.Errorf("thread %d is not stopped: %w", th.tid, err)
					}
					n++
					return nil
				})
				if errors.Is(err, ErrGone) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Millisecond) // or the program never gets on
			}
			if s := ended(t, tr); s.Code() != 0 {
				t.Error(s)
			}
			if got, _ := os.ReadFile(file); string(got) != want {
				t.Errorf("after %d stops: %q, want %q", n, got, want)
			}
			if n == 0 {
				t.Error("never stopped")
			}
		})
	}
}

func fifoIn(t *testing.T, name string) string {
	t.Helper()
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestStoppedInRead(t *testing.T) {
	dir := t.TempDir()
	file, fifo := filepath.Join(dir, "result"), fifoIn(t, filepath.Join(dir, "fifo"))
	tr := launched(t, nil, tool(t, "sleeper"), "read", file, fifo)
	tr.Continue()
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if err := tr.Stopped(t.Context(), tr.Root().Space(), func(*Thread) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	f.Write([]byte("x"))
	f.Close()
	ended(t, tr)
	if got, _ := os.ReadFile(file); string(got) != "1 0 0" {
		t.Errorf("%q", got)
	}
}

// A write to a pipe ended with what it had written, because its thread was stopped,
// though another one that slept could have been.
func TestStoppedInTransfer(t *testing.T) {
	dir := t.TempDir()
	file, fifo := filepath.Join(dir, "result"), fifoIn(t, filepath.Join(dir, "fifo"))
	tr := launched(t, nil, tool(t, "sleeper"), "transfer", file, fifo)
	tr.Continue()
	f, err := os.Open(fifo)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Both threads sleep where they are to be found.
	asleep := func(nrs ...uintptr) bool {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", tr.Root().Pid()))
		if err != nil || len(tasks) != len(nrs) {
			return false
		}
		for _, task := range tasks {
			tid, _ := strconv.Atoi(task.Name())
			if nr, ok := procmem.Call(tr.Root().Pid(), tid); !ok || !slices.Contains(nrs, nr) {
				return false
			}
		}
		return true
	}
	for until := time.Now().Add(budget); !asleep(unix.SYS_WRITE, unix.SYS_PPOLL); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the program does not sleep in its calls")
		}
	}
	for range 20 {
		if err := tr.Stopped(t.Context(), tr.Root().Space(), func(*Thread) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.Copy(io.Discard, f); err != nil {
		t.Fatal(err)
	}
	ended(t, tr)
	if got, _ := os.ReadFile(file); string(got) != fmt.Sprint(1<<20, " 0 0") {
		t.Errorf("%q, want all written", got)
	}
}

// A thread in a page fault of kernel mode cannot be stopped. The tracer goes
// on meanwhile, and the call succeeds when the fault is resolved (H17).
func TestStoppedInPageFault(t *testing.T) {
	dir := t.TempDir()
	file, fifo := filepath.Join(dir, "result"), filepath.Join(dir, "fifo")
	goFifo := fifoIn(t, fifo+".go")
	tr := launched(t, nil, tool(t, "sleeper"), "blocked", file, fifo)
	tr.Continue()
	opened := make(chan *os.File, 1)
	go func() {
		f, _ := os.OpenFile(goFifo, os.O_WRONLY, 0)
		opened <- f
	}()
	var f *os.File
	select {
	case f = <-opened:
	case <-tr.RootExited():
		go func() { // let the other side of the fifo go
			f, _ := os.OpenFile(goFifo, os.O_RDONLY, 0)
			f.Close()
		}()
		testutil.Need(t, false, "needs userfaultfd(2) with faults of kernel mode")
	}
	waitFor(t, "the page fault", func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", tr.Root().Pid()))
		return string(b) == "handle_userfault"
	})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := tr.Stopped(ctx, tr.Root().Space(), func(*Thread) error { return nil })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("stopped a thread in a page fault: %v", err)
	}
	done := make(chan error, 1)
	go func() {
		done <- tr.Stopped(t.Context(), tr.Root().Space(), func(*Thread) error { return nil })
	}()
	for range 10 {
		if !tr.Do(func() {}) {
			t.Fatal("the tracer has ended")
		}
	}
	select {
	case err := <-done:
		t.Fatalf("stopped a thread in a page fault: %v", err)
	default:
	}
	f.Write([]byte("x"))
	f.Close()
	if err := within(t, "the stop", done); err != nil && !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	ended(t, tr)
	if got, _ := os.ReadFile(file); string(got) != "10 0 0" {
		t.Errorf("%q", got)
	}
}

// waitFor polls for something that nobody tells us.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(budget); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// A group-stopped program is stopped afterwards as it was before, for its
// tracer and for its parent, and goes on with SIGCONT.
func TestStoppedInGroupStop(t *testing.T) {
	file := filepath.Join(t.TempDir(), "result")
	tr := launched(t, nil, tool(t, "sleeper"), "nanosleep", file)
	tr.Continue()
	pid := tr.Root().Pid()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	isListening := func() (all bool) {
		tr.Do(func() {
			all = true
			for _, th := range tr.Root().Threads() {
				all = all && th.state == listening
			}
		})
		return all
	}
	waitFor(t, "the group stop", isListening)
	for range 20 {
		err := tr.Stopped(t.Context(), tr.Root().Space(), func(th *Thread) error {
			si, err := getSiginfo(th.tid)
			if err == nil && si.signo != int32(unix.SIGSTOP) {
				err = fmt.Errorf("stopped by signal %d", si.signo)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the group stop", isListening)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the program has run while it was stopped")
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	ended(t, tr)
	if got, _ := os.ReadFile(file); string(got) != "0 0 0" {
		t.Errorf("%q", got)
	}
}

// When the thread dies under the callback another one is taken.
func TestStoppedThreadDies(t *testing.T) {
	tr := launched(t, nil, tool(t, "sleeper"), "spin", filepath.Join(t.TempDir(), "result"))
	tr.Continue()
	n := 0
	err := tr.Stopped(t.Context(), tr.Root().Space(), func(th *Thread) error {
		n++
		unix.Kill(th.Process().Pid(), unix.SIGKILL)
		for {
			if _, err := getSiginfo(th.tid); err != nil {
				return err
			}
		}
	})
	if !errors.Is(err, ErrGone) || n != 1 {
		t.Errorf("%v after %d calls", err, n)
	}
}

func TestStoppedOnTracerThread(t *testing.T) {
	tr := launched(t, nil, "/bin/true")
	tr.Do(func() {
		if err := tr.Stopped(t.Context(), tr.Root().Space(), nil); err == nil {
			t.Error("no error")
		}
	})
}
