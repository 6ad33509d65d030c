// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"slices"
	"sync/atomic"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// waiter is a thread that sleeps on a page. It is part of its Thread; while it
// is queued, the queue's lock protects it.
type waiter struct {
	th    *Thread
	addr  mem.Addr // as the message has it
	flags uapi.FaultFlags
	tid   uint32

	queued bool // nobody has woken it
	// woken is set when it has left the index, for its thread to see without
	// the lock.
	woken  atomic.Bool
	unread bool // in the list of those that nobody has read

	next, prev *waiter // of the list of unread ones

	// The index has the waiters of each page in a ring, in the order in which
	// they came, and the first of each ring in the chain of a bucket.
	after, before *waiter
	chain         *waiter
}

// faultQueue holds the waiters of a descriptor, once in the order in which
// they are to be read and once by page, so that neither a read nor the wake of
// a page depends on how many others wait.
type faultQueue struct {
	lifo bool // immutable

	// inbox has those who have come since the lock was last taken, the latest
	// first, linked by next: who faults takes no lock.
	inbox atomic.Pointer[waiter]
	_     [cacheLine]byte

	// Threads are poked without the lock: a mirror's is woken by what may take
	// long.
	lock spinLock
	// some is whether anything is unread, the inbox aside, for who looks
	// without the lock; changed with it.
	some        atomic.Bool
	first, last *waiter // unread; protected by lock, as what follows
	unread      int
	total       int
	buckets     []*waiter // a power of two; nil before the first waiter
	pages       int       // that are waited for
}

// add queues w as unread, unless closed is set. It is looked at afterwards:
// who sets it wakes all after that, and finds w or is seen here.
func (q *faultQueue) add(w *waiter, closed *atomic.Bool) bool {
	w.queued, w.unread = true, true
	w.woken.Store(false)
	for {
		w.next = q.inbox.Load()
		if q.inbox.CompareAndSwap(w.next, w) {
			break
		}
	}
	if closed.Load() {
		q.remove(w)
		return false
	}
	return true
}

// pending reports whether anything is unread.
func (q *faultQueue) pending() bool { return q.some.Load() || q.inbox.Load() != nil }

// enter takes the lock, and in who has come.
func (q *faultQueue) enter() {
	q.lock.Lock()
	if q.inbox.Load() == nil {
		return
	}
	var came *waiter // the first first
	for w := q.inbox.Swap(nil); w != nil; {
		next := w.next
		w.next = came
		came, w = w, next
	}
	for w := came; w != nil; {
		next := w.next
		q.index(w)
		q.total++
		q.pushUnread(w)
		w = next
	}
}

// leave gives the lock back.
func (q *faultQueue) leave() {
	if some := q.unread > 0; some != q.some.Load() {
		q.some.Store(some)
	}
	q.lock.Unlock()
}

func (q *faultQueue) pushUnread(w *waiter) {
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

// take reads the next faults, as many as there are and msgs has room for.
func (q *faultQueue) take(msgs []uapi.Msg) (n int) {
	if !q.pending() {
		return 0
	}
	var disturbed []*Thread
	q.enter()
	for n < len(msgs) && q.first != nil {
		w := q.first
		q.unlinkUnread(w)
		msgs[n] = uapi.PageFault{Addr: w.addr, Flags: w.flags, TID: w.tid}.Msg()
		if w.th.interrupted() {
			disturbed = append(disturbed, w.th) // see giveUp
		}
		n++
	}
	q.leave()
	for _, th := range disturbed {
		th.poke()
	}
	return n
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

// remove takes w out, read or not, unless somebody has woken it.
func (q *faultQueue) remove(w *waiter) {
	q.enter()
	q.removeLocked(w)
	q.leave()
}

func (q *faultQueue) removeLocked(w *waiter) {
	if !w.queued {
		return
	}
	q.unlinkUnread(w)
	q.unindex(w)
	w.queued = false
	q.total--
	w.woken.Store(true)
}

// wakeBatch is how many waiters are taken out under one hold of the lock.
const wakeBatch = 16

// wake takes every waiter in r out, in the order of addresses, and lets its
// thread go on; one that nobody has read stays unless unread is set. It returns
// how many went.
func (q *faultQueue) wake(r mem.Range, unread bool) (n int) {
	if r.Pages() == 1 {
		return q.wakePage(r.Start, unread)
	}
	for _, a := range q.awaited(r) {
		n += q.wakePage(a, unread)
	}
	return n
}

// wakeAll takes every waiter out.
func (q *faultQueue) wakeAll() { q.wake(mem.Range{End: taskSize}, true) }

func (q *faultQueue) wakePage(a mem.Addr, unread bool) (n int) {
	for {
		// The records are their threads' again once they are removed.
		var threads [wakeBatch]*Thread
		got := 0
		q.enter()
		for got < wakeBatch {
			w := q.firstOf(a, unread)
			if w == nil {
				break
			}
			threads[got] = w.th
			q.removeLocked(w)
			got++
		}
		q.leave()
		for _, th := range threads[:got] {
			th.poke()
		}
		if n += got; got < wakeBatch {
			return n
		}
	}
}

// firstOf returns the first waiter of a page, one that was read if unread is not
// set, or nil. Preconditions: q.lock is held.
func (q *faultQueue) firstOf(a mem.Addr, unread bool) *waiter {
	if q.pages == 0 {
		return nil
	}
	head := *q.ring(a)
	for w := head; w != nil; {
		if unread || !w.unread {
			return w
		}
		if w = w.after; w == head {
			break
		}
	}
	return nil
}

// awaited returns the pages of r that somebody waits for, in order.
func (q *faultQueue) awaited(r mem.Range) (pages []mem.Addr) {
	q.enter()
	if r.Pages() <= q.pages {
		for a := r.Start; a < r.End; a += mem.PageSize {
			if *q.ring(a) != nil {
				pages = append(pages, a)
			}
		}
	} else {
		for _, w := range q.buckets {
			for ; w != nil; w = w.chain {
				if r.Contains(w.addr) {
					pages = append(pages, w.addr.Down())
				}
			}
		}
	}
	q.leave()
	slices.Sort(pages)
	return pages
}

// The methods of the index have to be called with q.lock held.

// ring returns where the first waiter of a page is, or would be.
func (q *faultQueue) ring(a mem.Addr) **waiter {
	// Any well mixed function of the page will do.
	hash := uint64(a>>mem.PageShift) * 0x9e3779b97f4a7c15 >> 32
	link := &q.buckets[hash&uint64(len(q.buckets)-1)]
	for *link != nil && (*link).addr.Down() != a.Down() {
		link = &(*link).chain
	}
	return link
}

func (q *faultQueue) index(w *waiter) {
	if q.pages >= len(q.buckets) {
		q.rehash(max(minBuckets, 4*len(q.buckets)))
	}
	link := q.ring(w.addr)
	head := *link
	if head != nil {
		w.after, w.before = head, head.before
		w.before.after, head.before = w, w
		return
	}
	w.after, w.before, w.chain = w, w, nil
	*link = w
	q.pages++
}

func (q *faultQueue) unindex(w *waiter) {
	next := w.after
	w.before.after, next.before = next, w.before
	link := q.ring(w.addr)
	switch {
	case *link != w:
	case next != w:
		next.chain = w.chain
		*link = next
	default:
		*link = w.chain
		if q.pages--; q.pages < len(q.buckets)/16 && len(q.buckets) > keptBuckets {
			q.rehash(len(q.buckets) / 4)
		}
	}
	w.after, w.before, w.chain = nil, nil, nil
}

const (
	minBuckets = 64
	// keptBuckets are not worth giving back when there are few waiters: there
	// may be many again at once.
	keptBuckets = 1 << 12
)

// rehash changes the number of buckets to n.
func (q *faultQueue) rehash(n int) {
	old := q.buckets
	q.buckets = make([]*waiter, n)
	for _, w := range old {
		for w != nil {
			next := w.chain
			w.chain = nil
			*q.ring(w.addr) = w
			w = next
		}
	}
}
