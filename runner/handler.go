// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/place"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
)

// handler receives the events of the tree, all on the tracer's thread.
type handler struct {
	*Run
	calls map[*tracee.Thread]tracee.Call // of threads that we see again at their exit
	// ceded is what was given up for a call that a thread is about to make again.
	ceded map[*tracee.Thread]mem.Range
	// memCalls are calls on /proc/PID/mem.
	memCalls map[*tracee.Thread]memCall
	// urgent is set once the tracer's thread runs before normal ones: every
	// stopped thread waits for it, and the bound for the stops it makes.
	urgent bool
}

func newHandler(r *Run) *handler {
	return &handler{
		Run:      r,
		calls:    make(map[*tracee.Thread]tracee.Call),
		ceded:    make(map[*tracee.Thread]mem.Range),
		memCalls: make(map[*tracee.Thread]memCall),
	}
}

// Exec is tracee.Handler's.
func (h *handler) Exec(p *tracee.Process, _ *tracee.Space) {
	if !h.urgent {
		h.urgent = true
		place.Urgent()
	}
	if p.Compat() {
		// It cannot be bounded, and must not run as if it were.
		h.fatal(tracee.ErrCompat)
		return
	}
	h.processes.Add(1)
	h.add(p.Space(), nil)
	h.hurry()
}

// Fork is tracee.Handler's. The child is stopped, and the parent's event has
// been read, or it would still be waiting.
func (h *handler) Fork(parent, child *tracee.Process) {
	h.processes.Add(1)
	if child.Space() == parent.Space() {
		return // vfork, or clone with CLONE_VM
	}
	e := h.engagementOf(parent.Space())
	if e == nil {
		h.add(child.Space(), nil) // the parent has no descriptor, and had none when it forked
		return
	}
	ce := h.newEngagement(child.Space())
	h.add(child.Space(), ce) // with that, or the monitor could engage it first
	h.fork(e, ce, child)
}

// Thread is tracee.Handler's. The kernel clears a word when a thread ends, and
// wakes who waits for that in pthread_join(3). By then the thread gets no
// fault served any more (userfaultfd(2) answers an exiting task with SIGBUS):
// if the word's page is outside, the other one sleeps for ever. It must be
// there, and stay.
func (h *handler) Thread(th *tracee.Thread, id mem.Addr) {
	if id == 0 {
		return
	}
	sp := th.Process().Space()
	h.mu.Lock()
	s := h.spaces[sp]
	var e *engagement
	if s != nil {
		if s.ids == nil {
			s.ids = make(map[mem.Addr]struct{})
		}
		s.ids[id] = struct{}{} // stacks are used again: the set stays small
		e = s.engagement
	}
	h.mu.Unlock()
	if e != nil && e.live.Load() {
		e.hold(id)
	}
}

// add makes a space known, with the engagement that it has, if any.
func (h *handler) add(sp *tracee.Space, e *engagement) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.spaces[sp] == nil {
		h.spaces[sp] = &space{engagement: e}
		if e != nil {
			h.engaged.Add(1)
		}
	}
}

// SpaceGone is tracee.Handler's.
func (h *handler) SpaceGone(sp *tracee.Space) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.spaces[sp]; s != nil {
		delete(h.spaces, sp)
		h.release(s.engagement)
	}
}

// SyscallEnter is tracee.Handler's: a call that the filter has stopped. The
// exit is of interest only where the new memory has to be registered.
func (h *handler) SyscallEnter(th *tracee.Thread) bool {
	if h.engagementOf(th.Process().Space()) != nil {
		c, err := th.Call()
		if err != nil {
			return false // killed meanwhile
		}
		h.calls[th] = c
		if c.Native && positioned(c) {
			return h.enterMem(th, c)
		}
		return true
	}
	if h.pager.Resident() > 0 {
		h.hurry() // a filtered process grows while the tree is near its limit
	}
	return false
}

// SyscallExit is tracee.Handler's.
func (h *handler) SyscallExit(th *tracee.Thread) {
	c, seen := h.calls[th]
	delete(h.calls, th)
	e := h.engagementOf(th.Process().Space())
	if e == nil || !seen {
		return
	}
	if c.Native && positioned(c) {
		h.exitMem(th, c)
		return
	}
	ceded := h.ceded[th]
	delete(h.ceded, th)
	if !ceded.Empty() {
		e.removePrivate(ceded) // unless the call has failed again, it is another descriptor's now
	}
	exit, err := th.Call()
	switch {
	case err != nil:
		return // killed meanwhile
	case exit.Errno != 0 && !ceded.Empty():
		e.rescan() // it is ours again
		return
	case exit.Errno == unix.EBUSY:
		if r := registers(th, c); !r.Empty() && e.cede(r) && inject.Again(th.Tid(), c.Nr, c.Args) == nil {
			h.ceded[th] = r
		}
		return
	case exit.Errno != 0:
		return // nothing was mapped
	}
	c.Ret = exit.Ret
	if !e.called(th, c) && inject.Again(th.Tid(), c.Nr, c.Args) != nil {
		return // killed meanwhile
	}
}

// called keeps the table up to date with a call that has been made. It reports false
// if it has to be made again.
func (e *engagement) called(th *tracee.Thread, c tracee.Call) (done bool) {
	done = true
	switch c.Nr {
	case unix.SYS_MMAP:
		if c.Args[3]&unix.MAP_HUGETLB == 0 {
			e.register(mem.Range{
				Start: mem.Addr(c.Ret),
				End:   (mem.Addr(c.Ret) + mem.Addr(c.Args[1])).Up(),
			})
		}
	case unix.SYS_BRK:
		e.moveBrk(mem.Addr(c.Ret).Up())
	case unix.SYS_MADVISE:
		done = e.advised(mem.Range{
			Start: mem.Addr(c.Args[0]),
			End:   (mem.Addr(c.Args[0]) + mem.Addr(c.Args[1])).Up(),
		}, int(c.Args[2]))
	case unix.SYS_PROCESS_MADVISE:
		// Others than the caller's own memory are refused such advice.
		for _, r := range vector(th.Tid(), mem.Addr(c.Args[1]), c.Args[2], c.Ret) {
			done = e.advised(r, int(c.Args[3])) && done
		}
	}
	return done
}

// registers returns the range that a call registers with a descriptor of the
// program's own, if that is what it does.
func registers(th *tracee.Thread, c tracee.Call) (r mem.Range) {
	var arg [16]byte // the begin of struct uffdio_register, a struct uffdio_range
	if c.Nr != unix.SYS_IOCTL || !c.Native {
		return r
	}
	if _, err := inject.ReadMemory(th.Tid(), mem.Addr(c.Args[2]), arg[:]); err != nil {
		return r // the kernel does not find it either
	}
	start, size := binary.LittleEndian.Uint64(arg[:]), binary.LittleEndian.Uint64(arg[8:])
	if start%mem.PageSize != 0 || size%mem.PageSize != 0 || start+size < start {
		return r // the kernel refuses it
	}
	return mem.MakeRange(mem.Addr(start), size)
}

// cede gives up r, which the kernel has refused to register with a descriptor of the
// program's own since it is registered with ours. Until the call has been made again
// nobody may take it for memory that we have overlooked. It reports false if there is
// nothing to give up.
func (e *engagement) cede(r mem.Range) (any bool) {
	d, ok := e.fd.(*descriptor)
	if !ok {
		return false
	}
	e.addPrivate(r)
	for _, known := range e.pg.Regions() {
		part := known.Intersect(r)
		if part.Empty() {
			continue
		}
		any = true
		if err := e.pg.Release(part, d.Unregister); err != nil && !gone(err) {
			e.r.log.Warn("the program's own userfaultfd is refused memory", "pid", e.pid(), "err", err)
		}
	}
	if !any {
		e.removePrivate(r)
	}
	return any
}

// vector returns the ranges of which a thread has passed the kernel a list of n
// struct iovec at a, up to the given number of bytes, which it says are done.
func vector(tid int, a mem.Addr, n, done uintptr) []mem.Range {
	const size = 16 // and 1024 of them at most, UIO_MAXIOV
	list := make([]byte, min(n, 1024)*size)
	var out []mem.Range
	// An error means that the rest is not there, which the kernel has found, too.
	got, _ := inject.ReadMemory(tid, a, list)
	for list = list[:got]; len(list) >= size && done > 0; list = list[size:] {
		length := min(uintptr(binary.LittleEndian.Uint64(list[8:])), done)
		done -= length
		start := mem.Addr(binary.LittleEndian.Uint64(list))
		out = append(out, mem.Range{Start: start, End: (start + mem.Addr(length)).Up()})
	}
	return out
}

// moveBrk registers the part by which the heap has grown. That it has shrunk
// is told by an UNMAP.
func (e *engagement) moveBrk(end mem.Addr) {
	e.mu.Lock()
	old := e.brk
	e.brk = end
	e.mu.Unlock()
	switch {
	case old == 0:
		e.rescan() // the heap is new, or we do not know where it began
	case end > old:
		e.register(mem.Range{Start: old, End: end})
	}
}

// Advice whose effect on registered memory raises no event (madvise(2);
// guards since Linux 6.13).
const (
	madvGuardInstall = 102
	madvGuardRemove  = 103
)

// advised reports false for guards that were not set everywhere: the kernel lets
// UFFDIO_COPY put a page in the place of one, and some may have been on the way.
func (e *engagement) advised(r mem.Range, advice int) (done bool) {
	// An error means that the space has ended.
	switch advice {
	case unix.MADV_WIPEONFORK, unix.MADV_KEEPONFORK:
		_ = e.pg.SetWipe(r, advice == unix.MADV_WIPEONFORK)
	case madvGuardInstall:
		if e.pg.Guard(r) != nil {
			return true
		}
		done := true
		err := e.present(r, func(mem.Range) { done = false })
		return done || err != nil
	case madvGuardRemove:
		_ = e.pg.Unguard(r)
	}
	return true
}

// Exited is tracee.Handler's. A process that others share its memory with may have died
// in a call, whose end is not reported then.
func (h *handler) Exited(p *tracee.Process, _ tracee.Status) {
	h.sizes.Forget(p.Pid())
	for th, m := range h.memCalls {
		if th.Process() == p {
			m.unpin()
			delete(h.memCalls, th)
		}
	}
}
