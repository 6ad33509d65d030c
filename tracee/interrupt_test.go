// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"testing"

	"golang.org/x/sys/unix"
)

// interrupter interrupts the threads of both sides at each fork.
type interrupter struct {
	NopHandler
	t         *testing.T
	want, got int
	pending   map[int]bool
}

func (h *interrupter) Fork(parent, child *Process) {
	for _, p := range []*Process{parent, child} {
		for _, th := range p.Threads() {
			if h.pending[th.tid] {
				h.t.Errorf("thread %d has come here and has not been stopped", th.tid)
			}
			h.want++
			h.pending[th.tid] = true
			th.Interrupt(func() {
				h.got++
				delete(h.pending, th.tid)
				if si, err := getSiginfo(th.tid); err != nil || si.code>>8 != unix.PTRACE_EVENT_STOP {
					h.t.Errorf("thread %d is not in a stop of its own: %+v, %v", th.tid, si.code, err)
				}
			})
		}
	}
}

// A thread that stands in another stop when it is interrupted, as these do, or
// comes to one first, stops nevertheless before it runs.
func TestInterrupt(t *testing.T) {
	bin := tool(t, "tasks")
	for _, what := range []string{"many", "stops", "vfork", "leader"} {
		h := &interrupter{t: t, pending: map[int]bool{}}
		if s := ended(t, launched(t, h, bin, what)); s.Code() != 0 {
			t.Errorf("%s: %v", what, s)
		}
		if h.want == 0 || h.got != h.want {
			t.Errorf("%s: %d of %d interrupts were answered", what, h.got, h.want)
		}
	}
}

// Threads that run, sleep, or stand in a group stop are interrupted all the
// same, and go on as they were.
func TestInterruptAll(t *testing.T) {
	tr := launched(t, nil, tool(t, "tree"))
	tr.Continue()
	for stopped := range 2 {
		done := make(chan struct{}, 9)
		want := 0
		for want < 9 { // until all are there
			tr.Do(func() {
				if want = len(tr.threads); want < 9 {
					return
				}
				for _, th := range tr.threads {
					th.Interrupt(func() { done <- struct{}{} })
				}
			})
		}
		for range want {
			within(t, "an interrupt", done)
		}
		if stopped == 0 {
			for _, p := range tr.Processes() {
				unix.Kill(p.pid, unix.SIGSTOP)
			}
			for n := 0; n < 9; {
				tr.Do(func() {
					n = 0
					for _, th := range tr.threads {
						if th.state == listening {
							n++
						}
					}
				})
			}
		}
	}
	tr.Kill()
	within(t, "the end", tr.Done())
}

// forkCounter counts them.
type forkCounter struct {
	NopHandler
	n int
}

func (h *forkCounter) Fork(_, _ *Process) { h.n++ }

// An interrupt that comes when the thread is on its way into another stop is
// forgotten by the kernel, and made again.
func TestInterruptMeetsStop(t *testing.T) {
	const forks = 1000
	h := &forkCounter{}
	tr := launched(t, h, tool(t, "tasks"), "many")
	var root *Thread
	tr.Do(func() { root = tr.root.Threads()[0] })
	tr.Continue()
	for asked := 0; ; asked++ {
		done, before := make(chan struct{}), forks
		tr.Do(func() {
			before = h.n
			root.Interrupt(func() { close(done) })
		})
		select {
		case <-done:
			continue
		case <-tr.RootExited():
		}
		select {
		case <-done: // both were there, and select took the end
		default:
			// It has ended without another stop: all of its forks lie behind it.
			if before != forks {
				t.Errorf("interrupt %d, after %d forks, was not answered", asked, before)
			}
		}
		break
	}
	within(t, "the end", tr.Done())
}
