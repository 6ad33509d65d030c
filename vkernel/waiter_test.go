// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// queueRig compares a queue with lists that are searched.
type queueRig struct {
	t      *testing.T
	q      faultQueue
	open   atomic.Bool
	all    []*waiter // in the order of arrival
	unread []*waiter // in that of reads
}

func (r *queueRig) add(a mem.Addr) {
	th := &Thread{}
	w := &th.fault
	w.th, w.addr, w.tid = th, a, uint32(len(r.all))
	if !r.q.add(w, &r.open) {
		r.t.Fatal("a fault is refused")
	}
	r.all = append(r.all, w)
	if r.q.lifo {
		r.unread = slices.Insert(r.unread, 0, w)
	} else {
		r.unread = append(r.unread, w)
	}
}

func (r *queueRig) read(n int) {
	msgs := make([]uapi.Msg, n)
	got := r.q.take(msgs)
	if got != min(n, len(r.unread)) {
		r.t.Fatalf("%d messages for %d, %d are queued", got, n, len(r.unread))
	}
	for i, w := range r.unread[:got] {
		if addr, _, tid := msgs[i].Fault(); addr != w.addr || tid != w.tid {
			r.t.Fatalf("read the fault at %v of %d, want %v of %d", addr, tid, w.addr, w.tid)
		}
	}
	r.unread = r.unread[got:]
}

// gone takes the waiters for which it holds off the lists, and fails the test
// unless they, and no others, were woken.
func (r *queueRig) gone(was func(w *waiter) bool) (n int) {
	for _, w := range r.all {
		if w.woken.Load() != was(w) {
			r.t.Fatalf("woken: %v, unread: %v, the waiter of %v", !was(w), w.unread, w.addr)
		}
	}
	before := len(r.all)
	r.all = slices.DeleteFunc(r.all, was)
	r.unread = slices.DeleteFunc(r.unread, was)
	return before - len(r.all)
}

func (r *queueRig) wake(in mem.Range, unread bool) {
	read := make(map[*waiter]bool)
	for _, w := range r.all {
		read[w] = !w.unread
	}
	n := r.q.wake(in, unread)
	want := r.gone(func(w *waiter) bool { return in.Contains(w.addr) && (unread || read[w]) })
	if n != want {
		r.t.Fatalf("%d waiters of %v woken, want %d", n, in, want)
	}
}

// TestFaultQueue: a read, a wake of a page, of a range and of all, and a waiter
// that goes by itself, with many waiters of one page and with few of many,
// while the index grows and shrinks.
func TestFaultQueue(t *testing.T) {
	for _, lifo := range []bool{false, true} {
		r := &queueRig{t: t}
		r.q.lifo = lifo
		rng := rand.New(rand.NewPCG(1, 2))
		// Pages that are as far from each other as huge ones.
		page := func() mem.Addr { return mem.Addr(rng.IntN(rng.IntN(1<<14)+1)+1) << 21 }
		for round := range 48 {
			for range rng.IntN(1 << (round % 12)) {
				r.add(page() + mem.Addr(rng.IntN(mem.PageSize)))
			}
			r.read(rng.IntN(len(r.all) + 1))
			if len(r.all) > 0 {
				w := r.all[rng.IntN(len(r.all))]
				r.q.remove(w)
				r.gone(func(x *waiter) bool { return x == w })
			}
			r.wake(mem.MakeRange(page(), mem.PageSize), false)
			r.wake(mem.MakeRange(page(), mem.PageSize), true)
			r.wake(mem.MakeRange(page(), uint64(rng.IntN(1<<10)+1)<<21), round%2 == 0)
			r.wake(mem.MakeRange(page(), uint64(rng.IntN(64)+1)<<mem.PageShift), round%2 == 1)
			if round%12 == 11 {
				r.wake(mem.Range{Start: page(), End: taskSize}, true)
			}
			r.q.enter()
			r.q.leave()
			if q := &r.q; q.total != len(r.all) || q.unread != len(r.unread) || q.some.Load() != (len(r.unread) > 0) {
				t.Fatalf("%d waiters and %d unread, some: %v; want %d and %d", q.total, q.unread, q.some.Load(), len(r.all), len(r.unread))
			}
		}
		r.q.wakeAll()
		r.gone(func(*waiter) bool { return true })
		if q := &r.q; q.total != 0 || q.pages != 0 || q.unread != 0 || q.first != nil || q.last != nil || q.some.Load() {
			t.Errorf("%d waiters of %d pages, %d of them unread, are left", q.total, q.pages, q.unread)
		}
	}
}
