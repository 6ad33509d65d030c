// SPDX-License-Identifier: Apache-2.0

package slab

import "math/bits"

// placeLocked puts slab i where it belongs after one of its slots became free:
// in the pool of free slabs, or in the list for how full it is.
func (a *Allocator) placeLocked(i int32) {
	s := &a.slabs[i]
	slots := slotsOf(s.class)
	if int(s.free) == slots {
		if a.active[s.class] == i {
			a.active[s.class] = none
		}
		a.unlinkLocked(i)
		if s.shared {
			delete(a.counts, i)
		}
		*s = slabInfo{bucket: noList, prev: none, next: none}
		a.ready.add(int(i))
		return
	}
	if a.active[s.class] == i {
		return
	}
	if b := uint8(int(s.free) * buckets / (slots + 1)); b != s.bucket {
		a.unlinkLocked(i)
		a.linkLocked(i, b)
	}
}

func (a *Allocator) linkLocked(i int32, b uint8) {
	s := &a.slabs[i]
	head := &a.lists[s.class][b]
	s.bucket, s.prev, s.next = b, none, *head
	if *head != none {
		a.slabs[*head].prev = i
	}
	*head = i
}

// unlinkLocked takes slab i off the list it is on, if it is on one.
func (a *Allocator) unlinkLocked(i int32) {
	s := &a.slabs[i]
	if s.bucket == noList {
		return
	}
	if s.prev != none {
		a.slabs[s.prev].next = s.next
	} else {
		a.lists[s.class][s.bucket] = s.next
	}
	if s.next != none {
		a.slabs[s.next].prev = s.prev
	}
	s.bucket, s.prev, s.next = noList, none, none
}

// set is a set of small numbers.
type set struct {
	words []uint64
	n     int
	low   int // no word before this one has a bit
}

func (s *set) empty() bool { return s.n == 0 }

func (s *set) add(i int) {
	for len(s.words) <= i>>6 {
		s.words = append(s.words, 0)
	}
	s.words[i>>6] |= 1 << (i & 63)
	s.low = min(s.low, i>>6)
	s.n++
}

// takeMin removes the smallest number and returns it, or none.
func (s *set) takeMin() int {
	if s.n == 0 {
		return none
	}
	for s.words[s.low] == 0 {
		s.low++
	}
	i := s.low<<6 + bits.TrailingZeros64(s.words[s.low])
	s.words[s.low] &= s.words[s.low] - 1
	s.n--
	return i
}

// takeMax removes the largest number and returns it.
//
// Preconditions: the set is not empty.
func (s *set) takeMax() int {
	w := len(s.words) - 1
	for s.words[w] == 0 {
		w--
	}
	s.words = s.words[:w+1] // so that the next search begins here
	top := 63 - bits.LeadingZeros64(s.words[w])
	s.words[w] &^= 1 << top
	s.n--
	return w<<6 + top
}
