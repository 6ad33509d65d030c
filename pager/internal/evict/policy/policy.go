// SPDX-License-Identifier: Apache-2.0

package main

import (
	"container/heap"
	"container/list"

	"github.com/faultline-go/faultline/mem"
)

// cache is a policy under simulation.
type cache interface {
	// touch simulates one access and reports whether it faulted.
	touch(p mem.Page) (miss bool)
}

// policies are the columns of the table. Those that know hits are there for
// reference: nothing in user space can implement them over userfaultfd.
var policies = []struct {
	name string
	make func(capacity int, pages []mem.Page) cache
}{
	{"optimal", func(n int, pages []mem.Page) cache { return newOptimal(n, pages) }},
	{"LRU", func(n int, _ []mem.Page) cache { return &lru{capacity: n, at: map[mem.Page]*list.Element{}} }},
	{"CLOCK", func(n int, _ []mem.Page) cache { return &clock{slots: make([]slot, 0, n), at: map[mem.Page]int{}} }},
	{"FIFO", func(n int, _ []mem.Page) cache { return newFIFO(n) }},
	{"ours", func(n int, _ []mem.Page) cache { return newOurs(n, 0, nil) }},
	{"ours+ahead", func(n int, pages []mem.Page) cache { return newOurs(n, 64, pages) }},
}

// lru evicts the least recently used page.
type lru struct {
	capacity int
	order    list.List // youngest in front
	at       map[mem.Page]*list.Element
}

func (c *lru) touch(p mem.Page) bool {
	if e, ok := c.at[p]; ok {
		c.order.MoveToFront(e)
		return false
	}
	if c.order.Len() == c.capacity {
		delete(c.at, c.order.Remove(c.order.Back()).(mem.Page))
	}
	c.at[p] = c.order.PushFront(p)
	return true
}

type slot struct {
	page mem.Page
	used bool
}

// clock evicts the first page around the circle whose reference bit is off.
type clock struct {
	slots []slot
	hand  int
	at    map[mem.Page]int
}

func (c *clock) touch(p mem.Page) bool {
	if i, ok := c.at[p]; ok {
		c.slots[i].used = true
		return false
	}
	if len(c.slots) < cap(c.slots) {
		c.at[p] = len(c.slots)
		c.slots = append(c.slots, slot{page: p})
		return true
	}
	for c.slots[c.hand].used {
		c.slots[c.hand].used = false
		c.hand = (c.hand + 1) % len(c.slots)
	}
	delete(c.at, c.slots[c.hand].page)
	c.slots[c.hand] = slot{page: p}
	c.at[p] = c.hand
	c.hand = (c.hand + 1) % len(c.slots)
	return true
}

// fifo evicts the page that came in first: all that can be done without
// hits and without memory of what left.
type fifo struct {
	ring []mem.Page
	next int
	in   map[mem.Page]bool
}

func newFIFO(n int) *fifo { return &fifo{ring: make([]mem.Page, 0, n), in: map[mem.Page]bool{}} }

func (c *fifo) touch(p mem.Page) bool {
	if c.in[p] {
		return false
	}
	c.in[p] = true
	if len(c.ring) < cap(c.ring) {
		c.ring = append(c.ring, p)
		return true
	}
	delete(c.in, c.ring[c.next])
	c.ring[c.next] = p
	c.next = (c.next + 1) % len(c.ring)
	return true
}

// optimal evicts the page whose next access is farthest away: no policy
// without foresight of the accesses can do better.
type optimal struct {
	capacity int
	next     []int // by access: the next access to the same page
	i        int
	due      map[mem.Page]int // resident pages: their next access
	far      farthest         // the same, farthest first, with outdated ones
}

type use struct {
	at   int
	page mem.Page
}

type farthest []use

func (h farthest) Len() int           { return len(h) }
func (h farthest) Less(i, j int) bool { return h[i].at > h[j].at }
func (h farthest) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *farthest) Push(x any)        { *h = append(*h, x.(use)) }
func (h *farthest) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

func newOptimal(n int, pages []mem.Page) *optimal {
	c := &optimal{capacity: n, next: make([]int, len(pages)), due: map[mem.Page]int{}}
	seen := map[mem.Page]int{}
	for i := len(pages) - 1; i >= 0; i-- {
		c.next[i] = len(pages)
		if j, ok := seen[pages[i]]; ok {
			c.next[i] = j
		}
		seen[pages[i]] = i
	}
	return c
}

func (c *optimal) touch(p mem.Page) bool {
	_, hit := c.due[p]
	for !hit && len(c.due) == c.capacity {
		u := heap.Pop(&c.far).(use)
		if c.due[u.page] == u.at {
			delete(c.due, u.page)
		}
	}
	c.due[p] = c.next[c.i]
	heap.Push(&c.far, use{c.next[c.i], p})
	c.i++
	return !hit
}
