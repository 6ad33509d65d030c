// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"math"
	"sync"
	"sync/atomic"
)

// hugePage is the content of one page of hugetlb memory.
type hugePage struct {
	mu   sync.Mutex // protects data once mapped
	word atomic.Uint32
	data []byte // nil while the page is free; allocated and freed under hugePool.mu
}

// hugePool is the pool that vm.nr_hugepages sizes. A mapping reserves its
// pages when it is made, so that a fault finds one.
type hugePool struct {
	bare     bool // pages have no content, and there are always more; immutable
	mu       sync.Mutex
	total    int         // protected by mu
	reserved int         // promised and not yet taken; protected by mu
	free     []frame     // protected by mu
	pages    []*hugePage // grows under mu
	list     atomic.Pointer[[]*hugePage]
}

// resize makes the pool n pages in all, or as few as are in use.
func (h *hugePool) resize(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.growLocked(n)
}

func (h *hugePool) growLocked(n int) {
	for len(h.pages) < n {
		h.free = append(h.free, frame(len(h.pages)))
		h.pages = append(h.pages, &hugePage{})
	}
	h.total = n
	list := h.pages
	h.list.Store(&list)
}

func (h *hugePool) used() int { return len(h.pages) - len(h.free) }

// size returns how many pages the pool can have.
func (h *hugePool) size() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.bare {
		return math.MaxInt
	}
	return h.total
}

// reserve promises n pages, or none and reports false.
func (h *hugePool) reserve(n int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.used()+h.reserved+n > h.total && !h.bare {
		return false
	}
	h.reserved += n
	return true
}

func (h *hugePool) unreserve(n int) {
	h.mu.Lock()
	h.reserved -= n
	h.mu.Unlock()
}

// alloc takes a page, one that was promised to the caller if reserved. It
// reports false if all that is free is promised to others.
func (h *hugePool) alloc(reserved bool) (frame, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.bare && len(h.free) == 0 {
		h.growLocked(2*len(h.pages) + 1)
	}
	if len(h.free) == 0 || !reserved && h.used()+h.reserved >= h.total {
		return 0, false
	}
	if reserved {
		h.reserved--
	}
	f := h.free[len(h.free)-1]
	h.free = h.free[:len(h.free)-1]
	p := h.pages[f]
	if !h.bare {
		p.data = make([]byte, HugePageSize)
	}
	p.word.Store(1 | frameExclusive)
	return f, true
}

func (h *hugePool) page(f frame) *hugePage { return (*h.list.Load())[f] }

func (h *hugePool) get(f frame) { h.page(f).word.Add(1) }

func (h *hugePool) put(f frame) {
	p := h.page(f)
	if p.word.Add(^uint32(0))&frameCount != 0 {
		return
	}
	h.mu.Lock()
	p.data = nil
	h.free = append(h.free, f)
	h.mu.Unlock()
}
