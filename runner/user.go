// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager"
	"github.com/faultline-go/faultline/provider"
	"github.com/faultline-go/faultline/tracee"
)

// userHandler gives the events of the tree to both the runner and the engine in
// software, which sees the calls and signals of the program alone.
type userHandler struct {
	tracee.Handler // the runner's
	user           *provider.Engine
}

// withUser makes the engine in software, and returns who is to get the tree's
// events.
func (r *Run) withUser(h tracee.Handler) (tracee.Handler, error) {
	user, err := provider.NewEngine(r.log, provider.Hooks{Mapped: r.mapped, Wiped: r.wiped, Guarded: r.guarded})
	if err != nil {
		return nil, err
	}
	r.user = user
	return &userHandler{h, user}, nil
}

// Exec is tracee.Handler's.
func (h *userHandler) Exec(p *tracee.Process, old *tracee.Space) {
	h.user.Exec(p, old)
	h.Handler.Exec(p, old)
}

// Fork is tracee.Handler's. The runner has to know the child's space before the
// event is read which the engine queues.
func (h *userHandler) Fork(parent, child *tracee.Process) {
	h.Handler.Fork(parent, child)
	h.user.Fork(parent, child)
}

// Thread is tracee.Handler's.
func (h *userHandler) Thread(th *tracee.Thread, id mem.Addr) { h.user.Thread(th, id) }

// ThreadGone is tracee.Interceptor's.
func (h *userHandler) ThreadGone(th *tracee.Thread) { h.user.ThreadGone(th) }

// SpaceGone is tracee.Handler's.
func (h *userHandler) SpaceGone(sp *tracee.Space) {
	h.Handler.SpaceGone(sp)
	h.user.SpaceGone(sp)
}

// SyscallEnter is tracee.Handler's.
func (h *userHandler) SyscallEnter(th *tracee.Thread) bool { return h.user.SyscallEnter(th) }

// SyscallExit is tracee.Handler's.
func (h *userHandler) SyscallExit(th *tracee.Thread) { h.user.SyscallExit(th) }

// Signal is tracee.Interceptor's.
func (h *userHandler) Signal(th *tracee.Thread, sig syscall.Signal) syscall.Signal {
	return h.user.Signal(th, sig)
}

// Exited is tracee.Handler's.
func (h *userHandler) Exited(p *tracee.Process, st tracee.Status) {
	h.user.Exited(p, st)
	h.Handler.Exited(p, st)
}

// manage opens the descriptor of the engine in software, through a thread that is
// stopped.
func (e *engagement) manage(th *tracee.Thread) error {
	m, err := e.r.user.Manage(th)
	if err != nil {
		return err
	}
	e.setManager(m)
	return nil
}

func (e *engagement) setManager(m *provider.Manager) {
	e.fd, e.user = m, m
	e.mu.Lock()
	defer e.mu.Unlock()
	e.private = append(e.private, m.Private()...)
}

// serve makes the engagement live, served on the tracer's thread: a fault of the
// engine in software comes there, and a change of thread would cost more than all
// else.
func (e *engagement) serve(pg *pager.Space) {
	e.start(pg)
	e.user.Serve(pg.Turn)
}

// managedChild begins to serve a forked child. It is called on the tracer's thread;
// the child runs, and waits where it touches what is missing.
func (e *engagement) managedChild(raw int, child *pager.Child) {
	m, sp, err := e.r.user.Child(raw)
	if err != nil {
		child.Discard()
		if !errors.Is(err, tracee.ErrGone) {
			e.r.fatal(fmt.Errorf("descriptor of a child of pid %d: %w", e.pid(), err))
		}
		return
	}
	ce := e.r.claimed(sp)
	if ce == nil {
		child.Discard() // it has ended
		m.Close()
		return
	}
	ce.setManager(m)
	ce.serve(child.Start(m, ce.config()))
	time.AfterFunc(grace, ce.settle)
}

// claimed returns the engagement that a space has, live or not.
func (r *Run) claimed(sp *tracee.Space) *engagement {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.spaces[sp]; s != nil {
		return s.engagement
	}
	return nil
}

// mapped registers new memory.
func (r *Run) mapped(sp *tracee.Space, part mem.Range) {
	if e := r.engagementOf(sp); e != nil {
		e.register(part)
	}
}

func (r *Run) wiped(sp *tracee.Space, part mem.Range, wipe bool) {
	if e := r.engagementOf(sp); e != nil {
		_ = e.pg.SetWipe(part, wipe) // an error means that the space has ended
	}
}

func (r *Run) guarded(sp *tracee.Space, part mem.Range, on bool) {
	e := r.engagementOf(sp)
	if e == nil {
		return
	}
	// Errors mean that the space has ended.
	_ = e.pg.Guard(part)
	if !on {
		_ = e.pg.Unguard(part)
	}
}

// taker is the pager.Mover of the engine in software. What it takes out is read on
// the way: there is no window in the program.
type taker struct {
	m     *provider.Manager
	buf   []byte
	taken []provider.Taken
}

func newTaker(m *provider.Manager) *taker {
	return &taker{m: m, buf: make([]byte, takerSlots*mem.PageSize)}
}

// takerSlots is as many as the pager's largest batch has pages.
const takerSlots = 256

// Slots is pager.Mover's.
func (t *taker) Slots() int { return takerSlots }

// slots returns the memory of a run's slots, from the first on.
func slots(buf []byte, r *pager.Run, pages int) []byte {
	return buf[r.Slot*mem.PageSize : (r.Slot+pages)*mem.PageSize]
}

// Move is pager.Mover's.
func (t *taker) Move(runs []pager.Run) error {
	t.taken = t.taken[:0]
	for i := range runs {
		t.taken = append(t.taken, provider.Taken{From: runs[i].Src, To: slots(t.buf, &runs[i], runs[i].Pages)})
	}
	err := t.m.Take(t.taken)
	for i := range runs {
		runs[i].Moved, runs[i].Errno = t.taken[i].Pages, t.taken[i].Errno
	}
	return err
}

// Read is pager.Mover's.
func (t *taker) Read(runs []pager.Run, buf []byte) error {
	for i := range runs {
		copy(slots(buf, &runs[i], runs[i].Moved), slots(t.buf, &runs[i], runs[i].Moved))
	}
	return nil
}

// Drop is pager.Mover's. The window is our own memory.
func (t *taker) Drop() {}

// Flush is pager.Mover's.
func (t *taker) Flush() {}

// Unshare is pager.Mover's: pages that fork shares can be taken as they are.
func (t *taker) Unshare(mem.Range) error { return nil }

// Close is pager.Mover's.
func (t *taker) Close() {}
