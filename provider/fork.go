// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/sysargs"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/vkernel"
)

// The kernel copies an address space in one step. Our own copy is made a moment
// later, when the tracer is told, and must be of the same pages with the same
// permissions: so nothing of the space is changed from before the call is made
// until the copy is there. Who wants to change it waits, as for the kernel's lock.
type gate struct {
	forks   int // calls under way that copy the space
	changes int // calls under way that the threads make themselves, and that change it
	waiting []*task
}

// open lets those go on who wait.
func (g *gate) open() {
	for _, t := range g.waiting {
		t.wake()
	}
	g.waiting = nil
}

// await waits until closed no longer holds. It reports whether the thread is still
// there.
func (t *task) await(closed func(*gate) bool) bool {
	for g := &t.sp.gate; !t.gone && closed(g); {
		g.waiting = append(g.waiting, t)
		t.as(waitElsewhere, t.park)
		g.waiting = slices.DeleteFunc(g.waiting, func(o *task) bool { return o == t })
	}
	return !t.gone
}

func copying(g *gate) bool { return g.forks > 0 }

// busy reports whether what we know of the space may be out of date.
func (g *gate) busy() bool { return g.forks > 0 || g.changes > 0 }

// change has f done, in which the thread itself changes the space. When it comes to
// wait for an event to be read, that is done.
func (t *task) change(f func()) {
	t.changing = true
	t.sp.gate.changes++
	f()
	t.endChange()
}

func (t *task) endChange() {
	if t.changing {
		t.changing = false
		t.sp.gate.changes--
		t.sp.gate.open()
	}
}

// fork lets a thread make a copy of its address space, or start another thread.
//
// What the call reads and writes comes first: a description that was missing made it
// fail, and a thread's id that could not be written is no error to the kernel.
func (t *task) fork(c tracee.Call) {
	t.ranges = sysargs.Ranges(t.ranges[:0], c.Nr, c.Args, t.sp.Load)
	if !t.hold() {
		return
	}
	t.ids(c)
	if !t.hold() {
		return
	}
	if t.sharesMemory(c) {
		t.resume(0)
		return
	}
	if !t.await(func(g *gate) bool { return g.forks > 0 || g.changes > 0 }) {
		return
	}
	g := &t.sp.gate
	g.forks++
	done := func() {
		g.forks--
		g.open()
	}
	t.forking = true
	alive := t.run()
	t.forking = false
	child := t.child
	t.child = nil
	if !alive || child == nil {
		done()
		t.resume(0)
		return
	}
	t.copySpace(child, true, done)
}

// ids adds to t.ranges where a call that makes a task writes the id of that, in the
// caller's memory and in the child's, which is a copy; and the ids that it asks for.
func (t *task) ids(c tracee.Call) {
	add := func(a, n uint64, write bool) {
		if r := mem.MakeRange(mem.Addr(a), n); a < userEnd && n < userEnd {
			t.ranges = append(t.ranges, sysargs.Range{Range: r, Write: write})
		}
	}
	switch c.Nr {
	case unix.SYS_CLONE:
		// The order of the last ones differs; what is a thread's own is there anyhow.
		for _, a := range c.Args[2:5] {
			add(uint64(a), 4, true)
		}
	case unix.SYS_CLONE3:
		var b [80]byte // struct clone_args up to set_tid_size
		if t.sp.Load(addr(c.Args[0]), b[:min(len(b), int(min(c.Args[1], 80)))]) < 64 {
			return // it fails
		}
		word := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
		for _, i := range []int{1, 2, 3} { // pidfd, child_tid, parent_tid
			add(word(i), 4, true)
		}
		add(word(8), 4*min(word(9), 32), false)
	}
}

// sharesMemory reports whether what a call makes shares the memory of who calls.
func (t *task) sharesMemory(c tracee.Call) bool {
	flags := uint64(c.Args[0])
	switch c.Nr {
	case unix.SYS_CLONE:
	case unix.SYS_CLONE3:
		var b [8]byte
		if t.sp.Load(addr(c.Args[0]), b[:]) < len(b) {
			return true // it fails
		}
		flags = binary.LittleEndian.Uint64(b[:])
	default:
		return c.Nr == sysVfork
	}
	return flags&unix.CLONE_VM != 0
}

// forked makes the mirror of a child. The thread that has called fork goes on when
// the event was read.
func (sp *space) forked(child *tracee.Process) {
	by := child.By()
	if by == nil || by.Process().Space() != sp.ts {
		return
	}
	t := sp.p.task(by)
	switch {
	case t.forking:
		by.Keep()
		t.child = child
		t.next()
		t.p.settle()
	case t.job == nil:
		// None of its memory was registered when it made the call. It may be by now,
		// but nothing has left.
		if sp.managed != nil {
			delete(sp.managed.unsure, by.Tid())
		}
		t.start(func() { t.copySpace(child, false, func() {}) })
	}
}

// copySpace makes the mirror, and calls made when it is there. The child's memory has
// the permissions that its parent's had: they stay where its faults are to be told,
// and are given back where they are not. known says that nothing has changed since the
// call began: if not, nobody knows what they were.
func (t *task) copySpace(child *tracee.Process, known bool, made func()) {
	t.as(waitCall, func() {
		t.v.ForkWith(func(v *vkernel.Process) {
			t.sp.inherit(child, v, known)
			made()
		})
	})
	// The descriptor may have been closed before anybody has read of the child:
	// nobody's is its memory then.
	if c := t.p.spaces[child.Space()]; c != nil {
		c.follow()
	}
	t.resume(0)
}

// inherit makes the space of a child that was just made and is stopped.
func (sp *space) inherit(child *tracee.Process, v *vkernel.Process, known bool) {
	c := &space{p: sp.p, ts: child.Space(), action: sp.action}
	if known {
		c.prot = sp.prot.clone()
	}
	c.adopt(v)
	c.guarded = slices.Clone(sp.guarded)
	c.inheritUpkeep(sp, child)
	c.wiped(v.Wiped())
	threads := child.Threads()
	if len(sp.guarded) == 0 || len(threads) == 0 {
		c.guarded = nil
		return
	}
	if err := c.open(); err != nil {
		if !gone(err) && unix.Kill(child.Pid(), 0) == nil {
			sp.p.fatal("look into a child", err)
		}
		return
	}
	if !sp.p.session("plant an agent in a child", threads[0], c.plant) {
		return
	}
	// Aliases are not inherited.
	all := c.guarded
	c.follow()
	for _, r := range all {
		c.mirrorShared(r)
		c.apply(r)
	}
}

// wiped notes that the kernel has given a child none of the pages of its parent in these
// ranges, nor any guards, neither the program's nor those that seal.
func (sp *space) wiped(ranges []mem.Range) {
	for _, r := range ranges {
		sp.prot.forget(r)
	}
	if sp.managed != nil {
		sp.managed.guards = mem.Subtract(sp.managed.guards, ranges)
	}
}
