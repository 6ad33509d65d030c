// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager/internal/evict"
	"github.com/faultline-go/faultline/store"
)

// state says where the content of a page is.
type state uint8

const (
	// fresh: never touched, or given back by the program. Reads as zero.
	fresh state = iota
	// resident: present in the space, and queued for eviction.
	resident
	// loading: being fetched or installed by the serving thread. The entry
	// still owns its ref, because the install may have to be taken back.
	loading
	// evicting: part of the space's current batch; the content is in the
	// mover's window, or on the way there.
	evicting
	// outside: the content is in the store under the entry's ref.
	outside
	// poisoned: the content is lost; a touch is a SIGBUS.
	poisoned
)

func (s state) String() string {
	return [...]string{"fresh", "resident", "loading", "evicting", "outside", "poisoned"}[s]
}

// entry is one page. 24 bytes, no pointers. The zero entry is a fresh page.
type entry struct {
	ref store.Ref
	// stamp is the eviction queue's mark: of the page's place in the queue
	// while it is resident or evicting, of the time it left otherwise.
	stamp evict.Stamp
	state state
	// inStore says that ref is owned. In outside it is the content, and in
	// loading for a page that comes from there. In all other states it is a
	// hint: what the content was when the page came in. If it still is when
	// the page leaves, nothing has to be stored.
	inStore bool
	flags   flags
	// stuck counts how often the page could not be moved out.
	stuck uint8
}

// flags are facts about a page that hold in some states only.
type flags uint8

const (
	// rescued says that a loading page was taken from the batch under way,
	// which will hand its ref to the entry instead of freeing it: until the
	// install has succeeded that is the only other copy.
	rescued flags = 1 << iota
	// picked says that a resident page is not in the eviction queue: the
	// evictor has taken it from there.
	picked
	// lazy says that a resident page may vanish lawfully, and is zero then:
	// it came, fresh or from the store, while a REMOVE was under way, or
	// stayed after MADV_FREE, perhaps one from before there was a space.
	lazy
)

func (e *entry) is(f flags) bool { return e.flags&f != 0 }
func (e *entry) mark(f flags)    { e.flags |= f }
func (e *entry) clear(f flags)   { e.flags &^= f }

const (
	chunkShift = 9
	chunkPages = 1 << chunkShift // 2 MiB of memory
	dirShift   = 13
	dirLen     = 1 << dirShift
	// maxPages bounds page numbers: 47 bits of address on amd64, 48 on arm64.
	// The top directory is grown on demand, so the larger one costs nothing.
	maxPage = mem.Page(1) << (48 - mem.PageShift)
)

// chunk holds the entries of one aligned 2 MiB of memory.
type chunk struct {
	entries [chunkPages]entry
	used    int // entries that are not fresh
}

// table is the page table of a space: sparse, because programs reserve far
// more than they touch. Protected by Pager.mu.
type table struct {
	dir  [][]*chunk // [page >> (chunkShift+dirShift)][...]
	free []*chunk   // emptied chunks, all entries fresh
}

// peek returns the entry of p, or nil if it is fresh and has no chunk.
func (t *table) peek(p mem.Page) *entry {
	if c := t.chunk(p); c != nil {
		return &c.entries[p%chunkPages]
	}
	return nil
}

func (t *table) chunk(p mem.Page) *chunk {
	hi := uint64(p) >> (chunkShift + dirShift)
	if hi >= uint64(len(t.dir)) || t.dir[hi] == nil {
		return nil
	}
	return t.dir[hi][uint64(p)>>chunkShift%dirLen]
}

// stateOf returns the state of p without making room for it.
func (t *table) stateOf(p mem.Page) state {
	if e := t.peek(p); e != nil {
		return e.state
	}
	return fresh
}

// set stores e for p and keeps the chunk's count.
func (t *table) set(p mem.Page, e entry) {
	c := t.chunk(p)
	if c == nil {
		if e.state == fresh {
			return
		}
		c = t.grow(p)
	}
	old := &c.entries[p%chunkPages]
	if old.state != fresh {
		c.used--
	}
	if e.state != fresh {
		c.used++
	}
	*old = e
	if c.used == 0 {
		t.drop(p, c)
	}
}

func (t *table) grow(p mem.Page) *chunk {
	hi := uint64(p) >> (chunkShift + dirShift)
	for uint64(len(t.dir)) <= hi {
		t.dir = append(t.dir, nil)
	}
	if t.dir[hi] == nil {
		t.dir[hi] = make([]*chunk, dirLen)
	}
	var c *chunk
	if n := len(t.free); n > 0 {
		c, t.free = t.free[n-1], t.free[:n-1]
	} else {
		c = new(chunk)
	}
	t.dir[hi][uint64(p)>>chunkShift%dirLen] = c
	return c
}

// maxFreeChunks bounds the emptied chunks kept for reuse (12 KiB each).
const maxFreeChunks = 64

func (t *table) drop(p mem.Page, c *chunk) {
	t.dir[uint64(p)>>(chunkShift+dirShift)][uint64(p)>>chunkShift%dirLen] = nil
	if len(t.free) < maxFreeChunks {
		// A fresh entry may still carry a stamp; a reused chunk must not.
		clear(c.entries[:])
		t.free = append(t.free, c)
	}
}

// noLimit makes each go through the whole range.
const noLimit = 1 << 62

// each calls f for the pages of r whose entry is not fresh, in order, at most
// limit of them. It returns where to go on: the end of r when it is through.
// f may change the entry of its own page through set.
func (t *table) each(r mem.Range, limit int, f func(p mem.Page, e *entry)) mem.Addr {
	first, end := r.Start.Page(), min(r.End.Up().Page(), maxPage)
	for p := first; p < end; {
		hi := uint64(p) >> (chunkShift + dirShift)
		if hi >= uint64(len(t.dir)) {
			break
		}
		if t.dir[hi] == nil {
			p = mem.Page((hi + 1) << (chunkShift + dirShift))
			continue
		}
		c := t.chunk(p)
		next := min((p|(chunkPages-1))+1, end)
		// A chunk that f empties is on the free list thereafter.
		for ; c != nil && c.used > 0 && p < next; p++ {
			if e := &c.entries[p%chunkPages]; e.state != fresh {
				if limit--; limit < 0 {
					return p.Addr()
				}
				f(p, e)
			}
		}
		p = next
	}
	return r.End
}

// allPages is the range of every page that a table can hold.
func allPages() mem.Range { return mem.Range{Start: 0, End: maxPage.Addr()} }
