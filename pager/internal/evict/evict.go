// SPDX-License-Identifier: Apache-2.0

// Package evict decides which resident page leaves memory next, without any
// knowledge of hits.
//
// A page that is resident and registered with userfaultfd is touched without
// a trace; there is no reference bit to read. What is seen is the fault that
// brings a page in, how long the page had been outside by then, and a fault
// on a page that was just on its way out. So a page proves its worth only by
// coming back, and whatever is kept without being tested may be dead weight.
//
// New pages enter a small queue. A page that comes back soon after its
// eviction enters the main queue. Both are FIFOs. How the memory is shared
// follows from one comparison, the fraction of each queue's victims that
// come back: where the victims of main return as often as those of small,
// main is worth keeping still and a newcomer has to be better than its
// victims to get in (a loop larger than memory then keeps what it has,
// rather than chase its own tail); where they do not, small grows until the
// whole is a plain FIFO. A few victims are always taken from main, so that
// the comparison never runs out of evidence.
//
// docs/policy.md has the measurements behind this, and the cases in which it
// loses to a plain FIFO.
package evict

import "github.com/faultline-go/faultline/mem"

// Key names a page of one address space.
type Key struct {
	// Space tells the address spaces of a tree of processes apart.
	Space uint32
	// Page is the page number in that address space.
	Page mem.Page
}

// Stamp is the queue's memory of a page, kept in the caller's entry of the
// page. For a resident page it names the page's place in the queue, for one
// outside it tells when it left. Zero is no stamp.
//
// Stamps repeat after 2^31 insertions or evictions; all that a wrong match
// costs is one candidate too early.
type Stamp uint32

// Kind says why a page became resident.
type Kind uint8

const (
	// Demand is a page outside on which a thread faulted.
	Demand Kind = iota
	// Ahead is a page that readahead brought in: no proof of anything.
	Ahead
	// Fresh is a page touched for the first time.
	Fresh
	// Rescued is a page on which a thread faulted between Victim and the
	// end of its eviction. Pass the stamp that Victim or Evicted returned.
	Rescued
)

const (
	small = 0
	main  = 1

	// one is the fixed-point unit of fractions.
	one = 1 << 16
	// horizon is how many capacities of evictions a page may be outside
	// and still count as having come back.
	horizon = 4
	// runMax bounds a run of neighbours taken from one queue regardless
	// of the shares: the size at which moving pages out is cheap.
	runMax = 64
)

// Queue orders the resident pages for eviction. It allocates nothing as
// long as the number of pages does not grow, and uses at most 24 bytes a
// page (and a few KiB). It is not safe for concurrent use.
type Queue struct {
	live     func(Key, Stamp) bool
	q        [2]fifo
	pool     pool
	capacity int
	target   int // pages that small should hold

	seq uint32 // of the last resident stamp
	now uint32 // evictions

	back   [2]int // fraction of each queue's victims that come back
	dist   [2]int // how long those are outside, in evictions: average
	credit int    // of main, towards its next victim for the sake of evidence

	last     Key // last victim, and its queue
	lastFrom int
	run      int // neighbours taken in a row
}

// New returns an empty queue for a budget of capacity pages.
//
// The queue calls live to learn whether a page is still resident under a
// stamp, from within Insert, Return and Victim. It must not call back. It
// must know each stamp that Insert or Return gave out before the next call
// of any method, or the page is forgotten.
func New(capacity int, live func(Key, Stamp) bool) *Queue {
	// Main is worth keeping until its victims prove otherwise.
	q := &Queue{live: live, now: 1, back: [2]int{small: 0, main: one}}
	q.SetCapacity(capacity)
	return q
}

// SetCapacity changes the budget. It evicts nothing by itself: the caller
// asks for victims until it is content.
func (q *Queue) SetCapacity(n int) {
	n = max(n, 1)
	q.target = max(n/10, 1)
	q.capacity = n
	q.dist = [2]int{n, n}
	q.pool.trim(n/(4*chunkLen) + 2)
}

// Len returns the number of pages in the queue. Victims that are not settled
// yet are not among them.
func (q *Queue) Len() int { return q.q[small].live + q.q[main].live }

// Insert notes that page k became resident, and returns the stamp to keep in
// its entry. ghost is the stamp that Evicted gave when the page left, zero
// if it never did.
func (q *Queue) Insert(k Key, ghost Stamp, kind Kind) Stamp {
	class := uint32(small)
	switch {
	case kind == Rescued:
		class = main
		if ghost != 0 {
			q.returned(int(ghost&1), 0)
		}
	case kind != Demand || ghost == 0:
		// Nothing proved yet; nobody has asked for a page of
		// readahead, however good its neighbour is.
	default:
		d := int((q.now - uint32(ghost)>>1) & (1<<31 - 1))
		if d > horizon*q.capacity {
			break
		}
		q.returned(int(ghost&1), d)
		if q.admit(k, d) {
			class = main
		}
	}
	return q.push(k, class)
}

// returned notes that a victim of queue c came back after d evictions, and
// moves the border between the queues.
func (q *Queue) returned(c, d int) {
	q.back[c] = min(q.back[c]+one/q.memory(), one)
	q.dist[c] += (d - q.dist[c]) / 16
	step := max(q.capacity/32, 1)
	if c == small && q.back[main] < q.back[small] {
		q.target += step
	} else {
		q.target -= step
	}
	q.target = min(max(q.target, q.capacity/16, 1), max(q.capacity*7/8, 1))
}

// memory is the number of victims over which fractions are averaged. It is
// large enough that a page of a loop comes back within it.
func (q *Queue) memory() int { return max(q.capacity/4, 16) }

// admit decides whether page k, back after d evictions, enters main.
func (q *Queue) admit(k Key, d int) bool {
	if q.q[main].live < q.capacity-q.target || d < q.dist[main]/3 {
		return true
	}
	// Main is full of pages as good as this one. Let in as many as main's
	// victims prove dead, and a trickle for a change of habits. The coin
	// is one for a block of neighbours, so that they stay together.
	rate := max(one-q.back[main], one/32)
	epoch := uint64(q.now) / uint64(q.capacity/2+1)
	h := (uint64(k.Page)>>6 ^ uint64(k.Space)<<40 ^ epoch<<52) * 0x9e3779b97f4a7c15
	h ^= h >> 29
	h *= 0xbf58476d1ce4e5b9
	return int(h>>48) < rate
}

func (q *Queue) push(k Key, class uint32) Stamp {
	if n := q.Len(); q.q[small].n+q.q[main].n > n+n/4+chunkLen {
		q.q[small].compact(&q.pool, q.live)
		q.q[main].compact(&q.pool, q.live)
		q.pool.trim(n/(4*chunkLen) + 2)
	}
	q.seq++
	if q.seq<<1 == 0 {
		q.seq = 1 // the class bit alone must not make a zero stamp
	}
	s := Stamp(q.seq<<1 | class)
	q.q[class].push(&q.pool, entry{k.Page, k.Space, s})
	q.q[class].live++
	return s
}

// Victim returns the next candidate for eviction and the stamp of its entry,
// false if there is none. The candidate is out of the queue. The caller
// settles it by exactly one of Evicted, Return, and Insert as Rescued, or by
// nothing if the page vanishes meanwhile.
func (q *Queue) Victim() (Key, Stamp, bool) {
	for q.q[small].n+q.q[main].n > 0 {
		from := q.choose()
		f := &q.q[from]
		e := f.peek()
		f.pop(&q.pool)
		if !q.live(e.key(), e.stamp) {
			continue
		}
		f.live--
		if e.follows(q.last) && from == q.lastFrom {
			q.run++
		} else {
			q.run = 0
		}
		q.last, q.lastFrom = e.key(), from
		if from == main {
			q.credit = max(q.credit-one, -8*one)
		} else {
			// One in 16 if they are dead weight, one in 32 if not.
			q.credit = min(q.credit+one/(16+16*q.back[main]/one), 8*one)
		}
		return e.key(), e.stamp, true
	}
	return Key{}, 0, false
}

// choose returns the queue of the next victim: one that has entries.
func (q *Queue) choose() int {
	s, m := &q.q[small], &q.q[main]
	switch {
	case m.n == 0:
		return small
	case s.n == 0:
		return main
	case q.run < min(runMax, q.capacity/64) && q.q[q.lastFrom].peek().follows(q.last):
		return q.lastFrom
	case q.credit >= min(runMax, q.capacity/64)*one/8:
		return main
	case s.live >= q.target:
		return small
	}
	return main
}

// Evicted notes that the candidate with stamp s left memory, and returns the
// stamp to keep in its entry until it comes back.
func (q *Queue) Evicted(s Stamp) (ghost Stamp) {
	c := s & 1
	q.back[c] -= q.back[c] / q.memory()
	q.now++
	if q.now<<1 == 0 {
		q.now = 1
	}
	return Stamp(q.now<<1) | c
}

// Return puts back a candidate that could not leave (pinned or busy), as the
// youngest of its queue, and returns its new stamp.
func (q *Queue) Return(k Key, s Stamp) Stamp { return q.push(k, uint32(s&1)) }

// Removed notes that the page with stamp s, in the queue, vanished: unmapped,
// discarded, or its process gone. The caller's live function must answer
// false for s from now on.
func (q *Queue) Removed(s Stamp) { q.q[s&1].live-- }
