// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"math/bits"
	"sort"
	"sync/atomic"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager/internal/evict"
	"github.com/faultline-go/faultline/store"
)

// victim is a page that the queue has given up.
type victim struct {
	page  mem.Page
	stamp evict.Stamp
}

// batch is a set of pages of one space on their way out. Page i goes through
// slot i of the window.
type batch struct {
	victims []victim // protected by Pager.mu once the batch is under way
	// sorted is set when it is known which pages have moved. Protected by
	// Pager.mu, and so are Src and Pages of the runs while it is not set.
	sorted bool
	moved  []bool // whether page i has left the space; set before buffered
	buf    []byte // contents, valid where moved, when buffered
	// buffered is set when buf can be read.
	buffered atomic.Bool
	// wanted is set by the serving thread if it waits for buffered.
	wanted atomic.Bool
	runs   []Run
	index  []int       // in victims, of the pages that are still wanted
	refs   []store.Ref // theirs: at first what the store has of them
	pages  [][]byte    // those of them that have to be stored
	fresh  []int       // their places in index
	stored []store.Ref // result of storing them
	// changes is the space's when the batch began. Protected by Pager.mu.
	changes uint64
	unsure  bool // what was moved may not be what was meant; see unsettled
	// retried counts the victims that could not leave before, and freed those of
	// them that have left now.
	retried, freed int
}

// fit makes room for what becomes of the victims. Preconditions: b is not under
// way.
func (b *batch) fit() {
	n := len(b.victims)
	if n <= len(b.refs) {
		return
	}
	n = 1 << bits.Len(uint(n-1)) // the next batch may be a little larger
	b.moved = make([]bool, n)
	b.buf = make([]byte, n*mem.PageSize)
	b.refs, b.stored = make([]store.Ref, n), make([]store.Ref, n)
}

// taking reports whether the mover may be about to take what is present at a
// page of r, whatever that is by then. If the page was removed meanwhile, its
// entry is fresh: were it installed again, the new content would move out
// without anybody knowing. Preconditions: Pager.mu is held; b may be nil.
func (b *batch) taking(r mem.Range) bool {
	if b == nil || b.sorted {
		return false
	}
	// By index: the mover writes the other fields of a run at this moment.
	i := sort.Search(len(b.runs), func(i int) bool { return b.runs[i].source().End > r.Start })
	return i < len(b.runs) && b.runs[i].source().Overlaps(r)
}

func (r *Run) source() mem.Range { return mem.MakeRange(r.Src, uint64(r.Pages)*mem.PageSize) }

// takingPage is taking for one page.
func (b *batch) takingPage(pg mem.Page) bool {
	return b != nil && !b.sorted && b.taking(mem.MakeRange(pg.Addr(), mem.PageSize))
}

// takes reports whether the mover takes what is at pg, or has taken it. Preconditions:
// Pager.mu is held; b may be nil.
func (b *batch) takes(pg mem.Page) bool {
	if b == nil {
		return false
	}
	i := sort.Search(len(b.runs), func(i int) bool { return b.runs[i].source().End > pg.Addr() })
	return i < len(b.runs) && b.runs[i].source().Contains(pg.Addr())
}

// source returns the page from whose address slot i was filled.
func (b *batch) source(i int) mem.Page {
	j := sort.Search(len(b.runs), func(j int) bool { return b.runs[j].Slot > i }) - 1
	return b.runs[j].Src.Page() + mem.Page(i-b.runs[j].Slot)
}

// rescue copies the content of a page that is on its way out to dst. It
// reports false if it cannot be had yet. The copy is made under the lock:
// without it the batch may end, and its buffer serve the next one.
// Preconditions: Pager.mu is held.
func (b *batch) rescue(pg mem.Page, dst []byte) bool {
	if !b.buffered.Load() {
		b.wanted.Store(true)
		// It may have been set before it could see that it is wanted.
		if !b.buffered.Load() {
			return false
		}
	}
	for i, v := range b.victims {
		if v.page == pg && b.moved[i] {
			copy(dst, b.buf[i*mem.PageSize:(i+1)*mem.PageSize])
			return true
		}
	}
	return false
}

// drop forgets a page on its way out: the address may soon be that of another
// page of the batch, after a REMAP. Preconditions: Pager.mu is held.
func (b *batch) drop(pg mem.Page) { b.move(pg, maxPage) }

// move follows a page to another address. Preconditions: Pager.mu is held.
func (b *batch) move(from, to mem.Page) {
	for i := range b.victims {
		if b.victims[i].page == from {
			b.victims[i].page = to
		}
	}
}
