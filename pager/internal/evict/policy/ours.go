// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager/internal/ahead"
	"github.com/faultline-go/faultline/pager/internal/evict"
)

// page is what the pager keeps of a page, reduced to what decides.
type page struct {
	stamp    evict.Stamp
	resident bool
}

// ours drives the pager's own queue as the pager does: it sees faults only.
type ours struct {
	capacity int
	pages    map[mem.Page]*page
	queue    *evict.Queue
	resident int
	brought  int // pages made resident

	tracker *ahead.Tracker    // nil without readahead
	mapped  map[mem.Page]bool // what readahead may bring in
}

func newOurs(n, window int, pages []mem.Page) *ours {
	c := &ours{capacity: n, pages: map[mem.Page]*page{}}
	if window > 0 {
		c.tracker = ahead.New(window)
		c.mapped = map[mem.Page]bool{}
		for _, p := range pages {
			c.mapped[p] = true
		}
	}
	c.queue = evict.New(n, func(k evict.Key, s evict.Stamp) bool {
		e := c.pages[k.Page]
		return e != nil && e.resident && e.stamp == s
	})
	return c
}

func (c *ours) touch(p mem.Page) bool {
	e := c.pages[p]
	if e != nil && e.resident {
		return false
	}
	kind := evict.Demand
	if e == nil {
		kind = evict.Fresh
	}
	c.bring(p, kind)
	if c.tracker == nil {
		return true
	}
	plan := c.tracker.Miss(p, 1, e != nil)
	for i := 1; i <= plan.Count; i++ {
		// Plans hold page numbers only, so this does not wrap.
		q := mem.Page(int64(p) + plan.Stride*int64(i))
		if !c.mapped[q] {
			c.tracker.Granted(plan, i-1)
			break
		}
		if e := c.pages[q]; e == nil || !e.resident {
			c.bring(q, evict.Ahead)
		}
	}
	return true
}

// bring makes p resident, after room was made for it.
func (c *ours) bring(p mem.Page, kind evict.Kind) {
	for c.resident >= c.capacity {
		k, s, ok := c.queue.Victim()
		if !ok {
			panic("policy: no victim among resident pages")
		}
		e := c.pages[k.Page]
		e.resident, e.stamp = false, c.queue.Evicted(s)
		c.resident--
	}
	e := c.pages[p]
	if e == nil {
		e = new(page)
		c.pages[p] = e
	}
	e.resident, e.stamp = true, c.queue.Insert(evict.Key{Page: p}, e.stamp, kind)
	c.resident++
	c.brought++
}
