// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"sync"
	"sync/atomic"

	"github.com/faultline-go/faultline/mem"
)

// pte is what a page table says of one page: a frame number and these bits.
// Zero is a page of which nothing is known.
type pte uint32

const (
	// ptePresent: the page has the frame of the entry. Without it the entry
	// is empty, or a marker: pteWP, ptePoison.
	ptePresent pte = 1 << iota
	pteWrite       // a store needs no fault
	// pteWP: write-protected through a descriptor. Who sets it takes
	// pteWrite away. Both together are what a write leaves of a protection
	// that the registration no longer had: nobody is asked any more.
	pteWP
	ptePoison       // an access is a SIGBUS
	pteNoAccess     // present in memory without any permission
	pteShift    = 5 // and frames have the other 27 bits: 512 GiB
)

func (e pte) frame() frame  { return frame(e >> pteShift) }
func (e pte) present() bool { return e&ptePresent != 0 }

// marker reports whether e is a marker of any kind.
func (e pte) marker() bool { return e != 0 && e&ptePresent == 0 }

// protect returns e with the protection of a descriptor.
func (e pte) protect() pte { return e&^pteWrite | pteWP }

func makePTE(f frame, flags pte) pte { return pte(f)<<pteShift | ptePresent | flags }

// readable and writable say what hardware would allow.
func (e pte) readable() bool { return e&(ptePresent|pteNoAccess) == ptePresent }
func (e pte) writable() bool {
	return e&(ptePresent|pteNoAccess|pteWrite) == ptePresent|pteWrite
}

const (
	slotPages = 512 // pages of a slot, which covers 2 MiB
	slotShift = mem.PageShift + 9
	dirShift  = slotShift + 9 // a directory covers 1 GiB
	topShift  = dirShift + 9  // and an upper directory 512 GiB
)

// slot is what is mapped in 2 MiB: 512 small pages, or one huge one.
type slot struct {
	mu sync.Mutex
	// few has the entries until there are more than it has room for, and pages
	// all of them from then on; both are nil while none is mapped or marked. few
	// is protected by mu; pages and its entries are changed with mu held, and so
	// that vacant may look without.
	few   *fewPages
	pages atomic.Pointer[[slotPages]pte]
	huge  pte // protected by mu
}

// fewPages is the table of a slot of which little is used: a program that touches a page
// here and there would have half a page of table for each.
type fewPages struct {
	entry [4]pte // zero is free
	index [4]uint16
}

// find returns the place of entry i, or of a free one if there is none; -1 if there is
// neither.
func (f *fewPages) find(i int) int {
	free := -1
	for k, e := range f.entry {
		switch {
		case e == 0:
			free = k
		case int(f.index[k]) == i:
			return k
		}
	}
	return free
}

type directory [512]slot

type upper [512]atomic.Pointer[directory]

// pageTable maps the pages of an address space. Tables appear as they are
// needed. Accesses walk it without the lock of the address space, as
// hardware does; they find nothing there that a slot's lock does not protect.
type pageTable struct {
	grow sync.Mutex // held to add a directory
	top  [256]atomic.Pointer[upper]
}

// slot returns the slot of a, or nil if there is none and make is not set.
func (t *pageTable) slot(a mem.Addr, create bool) *slot {
	if a >= taskSize {
		return nil
	}
	up := t.top[a>>topShift].Load()
	if up != nil {
		if dir := up[a>>dirShift&511].Load(); dir != nil {
			return &dir[a>>slotShift&511]
		}
	}
	if !create {
		return nil
	}
	t.grow.Lock()
	defer t.grow.Unlock()
	if up = t.top[a>>topShift].Load(); up == nil {
		up = new(upper)
		t.top[a>>topShift].Store(up)
	}
	dir := up[a>>dirShift&511].Load()
	if dir == nil {
		dir = new(directory)
		up[a>>dirShift&511].Store(dir)
	}
	return &dir[a>>slotShift&511]
}

// index returns the place of a in its slot.
func index(a mem.Addr) int { return int(a >> mem.PageShift & (slotPages - 1)) }

// each calls fn for every slot with a directory that r touches, in order, and
// with the part of r in it. It passes over what is empty at no cost that
// depends on its size, but for 512 GiB a step.
func (t *pageTable) each(r mem.Range, fn func(s *slot, part mem.Range)) {
	t.while(r, func(s *slot, part mem.Range) bool {
		fn(s, part)
		return true
	})
}

// while is each that ends when fn returns false.
func (t *pageTable) while(r mem.Range, fn func(s *slot, part mem.Range) (more bool)) {
	for a := r.Start; a < r.End; {
		up := t.top[a>>topShift].Load()
		if up == nil {
			a = (a>>topShift + 1) << topShift
			continue
		}
		dir := up[a>>dirShift&511].Load()
		if dir == nil {
			a = (a>>dirShift + 1) << dirShift
			continue
		}
		next := (a>>slotShift + 1) << slotShift
		if !fn(&dir[a>>slotShift&511], mem.Range{Start: a, End: min(next, r.End)}) {
			return
		}
		a = next
	}
}

// get returns the entry of a small page. Preconditions: s.mu is held.
func (s *slot) get(i int) pte {
	if pages := s.pages.Load(); pages != nil {
		return pages[i]
	}
	if s.few != nil {
		if k := s.few.find(i); k >= 0 {
			return s.few.entry[k] // zero, if it is a free one
		}
	}
	return 0
}

// vacant reports whether more than a few small pages are mapped here, and nothing is
// known of this one. The lock need not be held: who finds nothing either comes before a
// page does, or looks again.
func (s *slot) vacant(i int) bool {
	pages := s.pages.Load()
	return pages != nil && atomic.LoadUint32((*uint32)(&pages[i])) == 0
}

// blank reports whether nothing is known of any small page. Preconditions: s.mu is held.
func (s *slot) blank() bool { return s.few == nil && s.pages.Load() == nil }

// set changes the entry of a small page. Preconditions: s.mu is held.
func (s *slot) set(i int, e pte) {
	pages := s.pages.Load()
	if pages == nil {
		if s.setOfFew(i, e) {
			return
		}
		pages = s.spread()
	}
	atomic.StoreUint32((*uint32)(&pages[i]), uint32(e))
}

// setOfFew is set where there is no whole table, and reports whether there was room.
func (s *slot) setOfFew(i int, e pte) bool {
	if s.few == nil {
		if e == 0 {
			return true
		}
		s.few = new(fewPages)
	}
	k := s.few.find(i)
	if k < 0 {
		return e == 0
	}
	s.few.entry[k], s.few.index[k] = e, uint16(i)
	return true
}

// spread gives the slot a whole table. It is not seen before the entries are in it.
func (s *slot) spread() *[slotPages]pte {
	pages := new([slotPages]pte)
	for k, e := range s.few.entry {
		if e != 0 { // the index of a free one is of a page that was there before
			pages[s.few.index[k]] = e
		}
	}
	s.few = nil
	s.pages.Store(pages)
	return pages
}

// update calls fn for every entry in r, empty ones only if all is set, and
// stores what it returns. fn must account for the frames.
func (t *pageTable) update(r mem.Range, fn func(a mem.Addr, e pte) pte) {
	t.each(r, func(s *slot, part mem.Range) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.blank() {
			return
		}
		for a := part.Start; a < part.End; a += mem.PageSize {
			if e := s.get(index(a)); e != 0 {
				s.set(index(a), fn(a, e))
			}
		}
	})
}

// updateHuge is update for huge pages.
func (t *pageTable) updateHuge(r mem.Range, fn func(a mem.Addr, e pte) pte) {
	t.each(r, func(s *slot, part mem.Range) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.huge != 0 {
			s.huge = fn(part.Start, s.huge)
		}
	})
}

// zap drops every entry in r. A slot that r covers gives its table back.
func (t *pageTable) zap(m *memory, r mem.Range, huge bool) {
	if huge {
		t.updateHuge(r, func(_ mem.Addr, e pte) pte {
			if e.present() {
				m.huge.put(e.frame())
			}
			return 0
		})
		return
	}
	t.each(r, func(s *slot, part mem.Range) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.blank() {
			return
		}
		out := putter{m: m}
		for i, n := index(part.Start), part.Pages(); n > 0; i, n = i+1, n-1 {
			e := s.get(i)
			if e == 0 {
				continue
			}
			if e.present() {
				out.put(e.frame())
			}
			s.set(i, 0)
		}
		out.flush()
		if part.Len() == 1<<slotShift {
			s.few = nil
			s.pages.Store(nil)
		}
	})
}

// worthTrimming is how much must have been dropped at once, in bytes, for the tables of
// it to be looked through.
const worthTrimming = 1 << dirShift >> 3

// trim gives back the directories that r touches and that have nothing any more.
// Preconditions: the lock of the address space is held for writing, so that nobody is
// about to fill a slot. Who looks at one without, as accesses do, finds nothing in it
// and faults.
func (t *pageTable) trim(r mem.Range) {
	if r.Len() < worthTrimming {
		return
	}
	for a := r.Start &^ (1<<dirShift - 1); a < r.End; {
		up := t.top[a>>topShift].Load()
		if up == nil {
			a = (a>>topShift + 1) << topShift
			continue
		}
		if dir := &up[a>>dirShift&511]; dir.Load() != nil && dir.Load().empty() {
			dir.Store(nil)
		}
		if a += 1 << dirShift; (a&(1<<topShift-1) == 0 || a >= r.End) && up.empty() {
			t.top[(a-1)>>topShift].Store(nil)
		}
	}
}

func (d *directory) empty() bool {
	for i := range d {
		s := &d[i]
		s.mu.Lock()
		used := !s.blank() || s.huge != 0
		s.mu.Unlock()
		if used {
			return false
		}
	}
	return true
}

func (u *upper) empty() bool {
	for i := range u {
		if u[i].Load() != nil {
			return false
		}
	}
	return true
}
