// SPDX-License-Identifier: Apache-2.0

// Package slab hands out slots of an abstract space of bytes, for blobs of up
// to one page.
//
// The space is cut into slabs of [Size] bytes, each holding slots of one
// class, a multiple of 64 bytes. Slots are handed out in ascending order
// within a slab, so that what is stored together lies together. Slots are
// counted, so that processes may share a page after fork. A slab without a
// live slot returns to a pool, and its backing is given back when the pool
// has grown beyond what is likely to be used soon.
//
// Bookkeeping takes 32 bytes a slab, that is one to two bytes a page; small
// slots and shared slabs take a little more.
//
// Lock order:
//
//	Allocator.growMu (held across calls of Backing)
//		Allocator.mu (never held across a call of Backing)
package slab

import (
	"math/bits"
	"sync"

	"github.com/faultline-go/faultline/store"
)

const (
	// Shift is the binary logarithm of Size.
	Shift = 16
	// Size is the length of a slab.
	Size = 1 << Shift
	// Unit is the step between classes.
	Unit = 64
	// MaxSlot is the largest slot.
	MaxSlot = 4096

	classes = MaxSlot / Unit
	// maxCount is the largest count of a slot. One that reaches it stays
	// live for ever: losing a slot is better than losing a page.
	maxCount = 1<<16 - 1
	// keepMin is how many free slabs keep their backing at least.
	keepMin = 32
)

// Backing provides what lies under the slabs. Its methods are called with no
// lock that Alloc without growth, Share or Free need.
type Backing interface {
	// Grow provides slab i. Slabs are first asked for in ascending order; one
	// that was released may be asked for again.
	Grow(i int) error
	// Release gives back what is under slab i, whose content is no longer
	// needed. The store may ignore it.
	Release(i int)
}

// Usage says how much is in use.
type Usage struct {
	Slots  int // live slots
	Bytes  int // bytes of the live slots
	Backed int // slabs that have backing
	Slabs  int // slabs of the space, those released included
	Misuse int // calls of Free or Share for a slot that is not live
}

// slabInfo is what is known of one slab, all under Allocator.mu.
type slabInfo struct {
	prev, next int32  // neighbours in the list of its class and bucket
	free       uint16 // slots free
	hint       uint16 // the next slot to try
	class      uint8  // slot length in units, zero if the slab is free
	bucket     uint8  // list it is on, noList if none
	shared     bool   // Allocator.counts has an entry
	// bits has a bit for each slot, set while it is live. Slabs of many
	// slots have the rest in more.
	bits uint64
	more *[Size / Unit / 64]uint64
}

// Allocator hands out slots. All methods may be called concurrently.
type Allocator struct {
	back Backing // immutable
	max  int     // immutable: slabs that may have backing at once

	growMu sync.Mutex // serialises growth and release

	mu     sync.Mutex
	slabs  []slabInfo                  // mu
	active [classes + 1]int32          // mu: the slab that is filled now, or -1
	lists  [classes + 1][buckets]int32 // mu: first slab with free slots, or -1
	ready  set                         // mu: free slabs with backing
	bare   set                         // mu: free slabs without
	counts map[int32][]uint16          // mu: by slab and slot, counts beyond the first
	usage  Usage                       // mu
}

const (
	// buckets sort the slabs of a class by how full they are. The fullest
	// are filled first, so that the emptiest get a chance to become free.
	buckets = 4
	noList  = buckets
	none    = -1
)

// New returns an allocator over back, of at most maxBytes of backing; zero
// means no bound.
func New(back Backing, maxBytes int64) *Allocator {
	a := &Allocator{back: back, counts: make(map[int32][]uint16)}
	a.max = 1<<31 - 1
	if maxBytes > 0 {
		a.max = int(min(maxBytes>>Shift, int64(a.max)))
	}
	for c := range a.active {
		a.active[c] = none
		for b := range a.lists[c] {
			a.lists[c][b] = none
		}
	}
	return a
}

// classOf returns the class of the smallest slots that hold n bytes.
func classOf(n int) uint8 { return uint8((n + Unit - 1) / Unit) }

// Alloc returns the offset of a slot of at least n bytes, with a count of one,
// and the slot's length. n is between 1 and MaxSlot.
//
// It returns store.ErrFull when the bound is reached, or the error of the
// backing.
func (a *Allocator) Alloc(n int) (off uint64, size int, err error) {
	c := classOf(n)
	for {
		a.mu.Lock()
		off, size, ok := a.takeLocked(c)
		a.mu.Unlock()
		if ok {
			return off, size, nil
		}
		if err := a.grow(); err != nil {
			// Slots of larger classes may be free though no slab is.
			a.mu.Lock()
			defer a.mu.Unlock()
			for c++; c <= classes; c++ {
				if off, size, ok := a.takeLocked(c); ok {
					return off, size, nil
				}
			}
			return 0, 0, err
		}
	}
}

// takeLocked takes a slot of class c from the slab being filled, from the
// fullest other, or from a free slab that has backing.
func (a *Allocator) takeLocked(c uint8) (off uint64, size int, ok bool) {
	i := a.active[c]
	if i == none {
		i = a.nextLocked(c)
		if i == none {
			return 0, 0, false
		}
		a.active[c] = i
	}
	s := &a.slabs[i]
	slot := s.take(slotsOf(c))
	if s.free == 0 {
		a.active[c] = none
	}
	size = int(c) * Unit
	a.usage.Slots++
	a.usage.Bytes += size
	return uint64(i)<<Shift + uint64(slot*size), size, true
}

// nextLocked returns the slab of class c to fill next, or none.
func (a *Allocator) nextLocked(c uint8) int32 {
	for b := range buckets {
		if i := a.lists[c][b]; i != none {
			a.unlinkLocked(i)
			return i
		}
	}
	i := a.ready.takeMin()
	if i == none {
		return none
	}
	s := &a.slabs[i]
	*s = slabInfo{class: c, bucket: noList, free: uint16(slotsOf(c)), prev: none, next: none}
	if slotsOf(c) > 64 {
		s.more = new([Size / Unit / 64]uint64)
	}
	return int32(i)
}

// grow adds a free slab with backing, unless somebody else just did.
func (a *Allocator) grow() error {
	a.growMu.Lock()
	defer a.growMu.Unlock()

	a.mu.Lock()
	if !a.ready.empty() {
		a.mu.Unlock()
		return nil
	}
	if a.usage.Backed >= a.max {
		a.mu.Unlock()
		return store.ErrFull
	}
	i := a.bare.takeMin()
	fresh := i == none
	if fresh {
		i = len(a.slabs)
	}
	a.mu.Unlock()

	err := a.back.Grow(i)

	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		if !fresh {
			a.bare.add(i)
		}
		return err
	}
	if fresh {
		a.slabs = append(a.slabs, slabInfo{})
		a.usage.Slabs++
	}
	a.ready.add(i)
	a.usage.Backed++
	return nil
}

// lookupLocked returns the slab and the slot at off, if that is live and can
// hold n bytes.
func (a *Allocator) lookupLocked(off uint64, n int) (i int32, slot int, ok bool) {
	if off>>Shift >= uint64(len(a.slabs)) {
		return 0, 0, false
	}
	i = int32(off >> Shift)
	s := &a.slabs[i]
	size := int(s.class) * Unit
	if size == 0 || n > size {
		return 0, 0, false
	}
	in := int(off & (Size - 1))
	slot = in / size
	if in%size != 0 || slot >= slotsOf(s.class) || !s.live(slot) {
		return 0, 0, false
	}
	return i, slot, true
}

// Share counts the slot of n bytes at off once more. It returns false if
// there is no such live slot.
func (a *Allocator) Share(off uint64, n int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	i, slot, ok := a.lookupLocked(off, n)
	if !ok {
		a.usage.Misuse++
		return false
	}
	cnt := a.counts[i]
	if cnt == nil {
		cnt = make([]uint16, slotsOf(a.slabs[i].class))
		a.counts[i] = cnt
		a.slabs[i].shared = true
	}
	if cnt[slot] < maxCount {
		cnt[slot]++
	}
	return true
}

// Free takes one from the count of the slot of n bytes at off. gone says that
// the slot is free now; ok is false if there is no such live slot. trim says
// that Trim has something to do.
func (a *Allocator) Free(off uint64, n int) (gone, trim, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i, slot, ok := a.lookupLocked(off, n)
	if !ok {
		a.usage.Misuse++
		return false, false, false
	}
	s := &a.slabs[i]
	if s.shared {
		if cnt := a.counts[i]; cnt[slot] == maxCount {
			return false, false, true // see maxCount
		} else if cnt[slot] > 0 {
			cnt[slot]--
			return false, false, true
		}
	}
	s.put(slot)
	a.usage.Slots--
	a.usage.Bytes -= int(s.class) * Unit
	a.placeLocked(i)
	return true, a.excessLocked() > 0, true
}

// Live reports whether the slot of n bytes at off is live.
func (a *Allocator) Live(off uint64, n int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, _, ok := a.lookupLocked(off, n)
	return ok
}

// excessLocked returns how many free slabs have backing beyond what is worth
// keeping.
func (a *Allocator) excessLocked() int {
	used := a.usage.Backed - a.ready.n
	return a.ready.n - max(keepMin, used/8)
}

// Trim gives the backing of free slabs back, all of those that are not likely
// to be used soon. It calls the backing and so may wait for a device.
func (a *Allocator) Trim() {
	a.growMu.Lock()
	defer a.growMu.Unlock()
	for {
		a.mu.Lock()
		if a.excessLocked() <= 0 {
			a.mu.Unlock()
			return
		}
		// The highest, so that the space in use moves to its front.
		i := a.ready.takeMax()
		a.mu.Unlock()

		a.back.Release(i)

		a.mu.Lock()
		a.usage.Backed--
		a.bare.add(i)
		a.mu.Unlock()
	}
}

// Usage returns how much is in use.
func (a *Allocator) Usage() Usage {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.usage
}

// slotsOf returns how many slots a slab of class c has.
func slotsOf(c uint8) int { return Size / Unit / int(c) }

func (s *slabInfo) word(slot int) *uint64 {
	if s.more != nil {
		return &s.more[slot>>6]
	}
	return &s.bits
}

func (s *slabInfo) live(slot int) bool { return *s.word(slot)>>(slot&63)&1 != 0 }

func (s *slabInfo) put(slot int) {
	*s.word(slot) &^= 1 << (slot & 63)
	s.free++
}

// take returns the first free slot from the hint on, or from the start.
//
// Preconditions: the slab has a free slot.
func (s *slabInfo) take(slots int) int {
	for slot := int(s.hint); ; {
		if slot >= slots {
			slot = 0
		}
		w := s.word(slot)
		if free := ^*w >> (slot & 63); free != 0 {
			slot += bits.TrailingZeros64(free)
			if slot < slots {
				*w |= 1 << (slot & 63)
				s.free--
				s.hint = uint16(slot + 1)
				return slot
			}
		}
		slot = slot&^63 + 64
	}
}
