// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/procmem"
)

// stopRequest is a call of Stopped that waits for a thread.
type stopRequest struct {
	ctx   context.Context // nobody is interrupted once it is over
	f     func(*Thread) error
	tried map[*Thread]bool // interrupted for it
	done  chan struct{}
	err   error // written before done is closed
}

func (r *stopRequest) finish(err error) {
	r.err = err
	close(r.done)
}

// Stopped stops a thread of s, whichever can be had, runs f with it on the
// tracer thread, and lets it go on as it was. It returns what f returns,
// [ErrGone] if there is no live thread in s any more, or the error of ctx: once
// that is over no thread is interrupted, but f may be called yet.
//
// f finds the thread in a PTRACE_EVENT_STOP, or in a stop in which it is
// kept for another reason. It may bring it to another stop, which it must
// then have consumed. f is called again with another thread if the one that
// it had was killed under it.
//
// A thread that the kernel cannot stop at the moment, because it is blocked
// in a page fault or in vfork(2), delays the call but nothing else: other
// threads are tried, and events are handled meanwhile. A call is interrupted
// as by any ptrace stop: the kernel restarts it, but for those that
// signal(7) lists as ending with EINTR after a stop signal, and those that have
// moved a part of their data. Threads that sleep in a call which moves data are
// stopped only if no other thread can be.
//
// It must not be called on the tracer thread, where it could only wait for
// itself; a handler has a stopped thread already.
func (t *Tracer) Stopped(ctx context.Context, s *Space, f func(*Thread) error) error {
	if unix.Gettid() == t.tid {
		return fmt.Errorf("stop a thread of space %d: called on the tracer thread", s.id)
	}
	r := &stopRequest{ctx: ctx, f: f, tried: map[*Thread]bool{}, done: make(chan struct{})}
	if !t.Do(func() { t.request(s, r) }) {
		return ErrGone
	}
	// The wait for a thread that cannot be stopped grows: each attempt
	// interrupts another one, and ends its sleep for a moment.
	pause := 20 * time.Millisecond
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-r.done:
			return r.err
		case <-timer.C:
			t.Do(func() { t.interruptNext(s, r) })
			pause = min(2*pause, time.Second)
			timer.Reset(pause)
		case <-ctx.Done():
			t.Do(func() {
				if t.drop(s, r) {
					r.finish(ctx.Err())
				}
			})
			<-r.done
			return r.err
		}
	}
}

// request starts a request: at once if a thread of the space is stopped.
func (t *Tracer) request(s *Space, r *stopRequest) {
	if len(s.procs) == 0 {
		r.finish(ErrGone)
		return
	}
	if err := r.ctx.Err(); err != nil {
		r.finish(err)
		return
	}
	if !t.released {
		// The only thread of the tree waits for Continue.
		for _, th := range t.root.threads {
			r.finish(r.f(th))
			return
		}
	}
	s.reqs = append(s.reqs, r)
	if !t.interruptRunning(s, r) {
		t.interruptNext(s, r)
	}
}

// interruptRunning interrupts all threads of s that want a processor: one
// alone may have to wait for its turn behind the others for many milliseconds.
// It reports whether there were any.
func (t *Tracer) interruptRunning(s *Space, r *stopRequest) (any bool) {
	for _, p := range s.procs {
		for _, th := range p.threads {
			if procmem.Running(p.pid, th.tid) && t.interrupt(r, th) {
				any = true
			}
		}
	}
	return any
}

// interruptNext interrupts a thread that has not been tried yet; if all have
// been, it begins anew.
func (t *Tracer) interruptNext(s *Space, r *stopRequest) {
	if !slices.Contains(s.reqs, r) {
		return
	}
	for range 2 {
		for how := range reluctances {
			for _, p := range s.procs {
				for _, th := range p.threads {
					if !r.tried[th] && th.reluctance() == how && t.interrupt(r, th) {
						return
					}
				}
			}
		}
		clear(r.tried)
	}
}

func (t *Tracer) interrupt(r *stopRequest, th *Thread) bool {
	if r.tried[th] || r.ctx.Err() != nil {
		return false
	}
	r.tried[th] = true
	return ptrace(unix.PTRACE_INTERRUPT, th.tid, 0, 0) == nil
}

// interruptAll finds another thread for each request after one has died.
func (t *Tracer) interruptAll(s *Space) {
	for _, r := range s.reqs {
		t.interruptNext(s, r)
	}
}

// answer runs the requests of a space with a thread that has stopped. A
// thread that was interrupted without need just goes on.
func (t *Tracer) answer(th *Thread) {
	s := th.proc.Space()
	for _, r := range slices.Clone(s.reqs) {
		err := r.f(th)
		if _, gone := getSiginfo(th.tid); err != nil && gone != nil {
			return // its death will be reported, and finds another thread
		}
		t.drop(s, r)
		r.finish(err)
	}
}

// drop removes a request and reports whether it was still there.
func (t *Tracer) drop(s *Space, r *stopRequest) bool {
	i := slices.Index(s.reqs, r)
	if i < 0 {
		return false
	}
	s.reqs = slices.Delete(s.reqs, i, i+1)
	return true
}

// abandon ends the requests of a space that is gone.
func (t *Tracer) abandon(s *Space) {
	for _, r := range s.reqs {
		r.finish(ErrGone)
	}
	s.reqs = nil
}

// Adopt makes the tracer treat a task of the tree as the supervisor's own:
// it is resumed from every stop, gets no signal but SIGKILL and those of its
// own faults, and is not a process of the tree. onExit, which may be nil, is called on the tracer
// thread when it has died.
//
// It is for a task that a callback has made in the program's name, having
// consumed its birth: the event of the thread that made it and its first
// stop. For the tracer thread only.
func (t *Tracer) Adopt(tid int, onExit func(Status)) {
	t.foreign[tid] = onExit
	if t.killing.Load() {
		_ = unix.Kill(tid, unix.SIGKILL) // ESRCH: gone already
	}
}
