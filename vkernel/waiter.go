// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"sync/atomic"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// waiter is a thread that sleeps on a page. It is part of its Thread; while it
// is queued, the descriptor's lock protects it.
type waiter struct {
	th    *Thread
	addr  mem.Addr // as the message has it
	flags uapi.FaultFlags
	tid   uint32

	queued bool // in the index: nobody has woken it
	// woken is set when it has left the index, for its thread to see without
	// the lock.
	woken  atomic.Bool
	unread bool // in the list of those that nobody has read

	next, prev *waiter // of the list of unread ones

	// The index is a search tree by addr, then seq, whose shape is a heap by
	// prio.
	left, right *waiter
	seq         uint64
	prio        uint64
}

// faultQueue holds the waiters of a descriptor, once in the order in which
// they are to be read and once by address, so that neither a read nor a wake
// depends on how many others wait. The descriptor's lock protects it.
type faultQueue struct {
	lifo        bool
	first, last *waiter // unread
	unread      int
	total       int
	root        *waiter
	seq         uint64
}

// add queues w as unread.
func (q *faultQueue) add(w *waiter) {
	q.seq++
	w.seq = q.seq
	// Any well mixed function of seq balances the tree, and the same run
	// gives the same tree.
	x := w.seq * 0x9e3779b97f4a7c15
	x ^= x >> 32
	w.prio = x * 0xd6e8feb86659fd93
	w.queued = true
	w.woken.Store(false)
	w.left, w.right = nil, nil
	q.root = insertWaiter(q.root, w)
	q.total++
	q.pushUnread(w)
}

func (q *faultQueue) pushUnread(w *waiter) {
	w.unread = true
	q.unread++
	switch {
	case q.first == nil:
		w.next, w.prev = nil, nil
		q.first, q.last = w, w
	case q.lifo:
		w.prev, w.next = nil, q.first
		q.first.prev = w
		q.first = w
	default:
		w.prev, w.next = q.last, nil
		q.last.next = w
		q.last = w
	}
}

// take returns the next unread waiter, which is read from now on, or nil.
func (q *faultQueue) take() *waiter {
	w := q.first
	if w != nil {
		q.unlinkUnread(w)
	}
	return w
}

func (q *faultQueue) unlinkUnread(w *waiter) {
	if !w.unread {
		return
	}
	w.unread = false
	q.unread--
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		q.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		q.last = w.prev
	}
	w.next, w.prev = nil, nil
}

// remove takes w out, read or not.
func (q *faultQueue) remove(w *waiter) {
	if !w.queued {
		return
	}
	q.unlinkUnread(w)
	q.root = removeWaiter(q.root, w)
	w.queued = false
	q.total--
	w.woken.Store(true)
}

// wake takes every waiter in r out and lets its thread go on; one that nobody
// has read stays unless unread is set. It returns how many went.
func (q *faultQueue) wake(r mem.Range, unread bool) (n int) {
	var from waiter
	from.addr = r.Start
	for {
		w := ceiling(q.root, &from)
		if w == nil || w.addr >= r.End {
			return n
		}
		if w.unread && !unread {
			from.addr, from.seq = w.addr, w.seq+1
			continue
		}
		th := w.th // the record is the thread's again once w is removed
		q.remove(w)
		th.poke()
		n++
	}
}

// wakeAll takes every waiter out.
func (q *faultQueue) wakeAll() {
	for q.root != nil {
		w := q.root
		th := w.th // the record is the thread's again once w is removed
		q.remove(w)
		th.poke()
	}
}

func (w *waiter) less(x *waiter) bool {
	return w.addr < x.addr || w.addr == x.addr && w.seq < x.seq
}

// ceiling returns the first waiter that is not before x.
func ceiling(t, x *waiter) (best *waiter) {
	for t != nil {
		if t.less(x) {
			t = t.right
		} else {
			best, t = t, t.left
		}
	}
	return best
}

func insertWaiter(t, w *waiter) *waiter {
	if t == nil {
		return w
	}
	if w.prio > t.prio {
		w.left, w.right = splitWaiters(t, w)
		return w
	}
	if w.less(t) {
		t.left = insertWaiter(t.left, w)
	} else {
		t.right = insertWaiter(t.right, w)
	}
	return t
}

// splitWaiters parts a tree at x.
func splitWaiters(t, x *waiter) (l, r *waiter) {
	if t == nil {
		return nil, nil
	}
	if t.less(x) {
		t.right, r = splitWaiters(t.right, x)
		return t, r
	}
	l, t.left = splitWaiters(t.left, x)
	return l, t
}

func joinWaiters(l, r *waiter) *waiter {
	switch {
	case l == nil:
		return r
	case r == nil:
		return l
	case l.prio > r.prio:
		l.right = joinWaiters(l.right, r)
		return l
	}
	r.left = joinWaiters(l, r.left)
	return r
}

func removeWaiter(t, w *waiter) *waiter {
	if t == w {
		return joinWaiters(t.left, t.right)
	}
	if w.less(t) {
		t.left = removeWaiter(t.left, w)
	} else {
		t.right = removeWaiter(t.right, w)
	}
	return t
}
