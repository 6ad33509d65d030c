// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"slices"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// event is news of the address space for one descriptor. The thread whose
// call it is about sleeps until the event was read.
type event struct {
	u     *uffd
	msg   uapi.Msg
	child *uffd   // of a fork: drives the child's memory
	th    *Thread // who sleeps, nil before that
	read  bool    // protected by u.mu
}

// newEvent announces an event: from now on until its thread goes on, the
// descriptor fills nothing. Preconditions: the lock of the address space is
// held for writing.
func newEvent(u *uffd, msg uapi.Msg) *event {
	u.changing.Add(1)
	return &event{u: u, msg: msg}
}

// deliver queues the event and sleeps until it was read, the descriptor is
// closed or the thread is killed. No lock is held.
func (e *event) deliver(th *Thread) {
	u := e.u
	e.th = th
	u.k.reach(PhaseAnnounced, th, 0)
	u.mu.Lock()
	th.forget()
	u.setEvents(append(u.events, e))
	u.mu.Unlock()
	u.wakeReaders()
	u.k.reach(PhaseEvent, th, 0)
	for {
		u.mu.Lock()
		read := e.read
		gone := !read && (u.released.Load() || th.killed())
		if gone {
			u.setEvents(slices.DeleteFunc(u.events, func(x *event) bool { return x == e }))
		}
		u.mu.Unlock()
		if gone && e.child != nil {
			e.child.orphan()
		}
		if read || gone {
			break
		}
		th.sleep(InEvent)
	}
	u.k.reach(PhaseEventRead, th, 0)
	u.changing.Add(-1)
	u.k.reach(PhaseEventDone, th, 0)
}

// orphan is the end of a child's descriptor that nobody will ever have.
func (u *uffd) orphan() {
	u.released.Store(true)
	u.as.mu.Lock()
	u.disownLocked()
	u.as.mu.Unlock()
	u.faults.wakeAll()
}

// news collects the events of one call while the lock of the address space is
// held, to be delivered when it no longer is.
type news struct {
	events []*event
}

// unmap announces to each descriptor of r that all of r is unmapped, once.
func (n *news) unmap(as *space, r mem.Range) {
	as.vmas.all(r, func(v *vma) bool {
		if v.uffd != nil && v.uffd.has(uapi.UFFD_FEATURE_EVENT_UNMAP) && !n.knows(v.uffd, r) {
			n.events = append(n.events, newEvent(v.uffd, uapi.Unmap{Range: r}.Msg()))
		}
		return true
	})
}

func (n *news) knows(u *uffd, r mem.Range) bool {
	msg := uapi.Unmap{Range: r}.Msg()
	return slices.ContainsFunc(n.events, func(e *event) bool { return e.u == u && e.msg == msg })
}

// drop takes back what was announced.
func (n *news) drop() {
	for _, e := range n.events {
		e.u.changing.Add(-1)
	}
}

// deliver tells one event after the other.
func (n *news) deliver(th *Thread) {
	for _, e := range n.events {
		e.deliver(th)
	}
}
