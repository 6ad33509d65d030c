// SPDX-License-Identifier: Apache-2.0

package vkernel

import "github.com/faultline-go/faultline/mem"

// Brk moves the end of the heap to a place, and returns where it is then:
// where it was, if it cannot be there. What the heap grows by is new memory,
// not registered even where the heap was; of what it shrinks by its descriptor
// is told as of a munmap.
func (th *Thread) Brk(to mem.Addr) mem.Addr {
	th.enter()
	defer th.leave()
	as := th.p.as.Load()
	var told news
	as.mu.Lock()
	old := as.brk
	grown := as.moveBrk(to, &told)
	now := as.brk
	locked := as.future&vmLocked != 0
	as.mu.Unlock()
	told.deliver(th)
	if grown && locked {
		th.populateMapped(mem.Range{Start: old.Up(), End: now.Up()})
	}
	return now
}

// moveBrk sets the end of the heap if that is possible, and reports whether
// there is more memory than before. Preconditions: as.mu is held for writing.
func (as *space) moveBrk(to mem.Addr, told *news) (grown bool) {
	if to < heapStart || to > taskSize-mem.PageSize || as.dead {
		return false
	}
	from, end := as.brk.Up(), to.Up()
	switch {
	case end < from:
		v := as.vmas.find(end)
		if v == nil || v.start >= from || as.unmapLocked(mem.Range{Start: end, End: from}, told) != 0 {
			return false
		}
	case end > from:
		// A page stays free above it.
		if next := as.vmas.find(from); next != nil && end+mem.PageSize > next.start-min(next.start, next.guard()) {
			return false
		}
		if as.vmas.count >= as.k.maxMaps {
			return false
		}
		v := &vma{start: from, end: end, off: uint64(from), flags: as.future |
			vmRead | vmWrite | vmMayRead | vmMayWrite | vmMayExec | vmAccount}
		as.link(v)
		as.merge(v)
		grown = true
	}
	as.brk = to
	return grown
}
