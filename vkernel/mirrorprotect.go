// SPDX-License-Identifier: Apache-2.0

package vkernel

import "github.com/faultline-go/faultline/mem"

// Protection calls fn for the parts of r that the mirror has a VMA for, in
// order, with the permissions that the process may have there, so that it
// faults where it must: all that the VMA has where nobody has registered it and
// no page is poisoned.
func (p *Process) Protection(r mem.Range, fn func(part mem.Range, prot int)) {
	as := p.as.Load()
	as.mu.RLock()
	defer as.mu.RUnlock()
	var run mem.Range
	prot, huge := -1, false
	emit := func(v *vma, part mem.Range, is int) {
		if prot == is && run.End == part.Start && huge == v.hugetlb() {
			run.End = part.End
			return
		}
		if prot >= 0 {
			fn(run, prot)
		}
		run, prot, huge = part, is, v.hugetlb()
	}
	as.vmas.all(r, func(v *vma) bool {
		part := v.rng().Intersect(r)
		if v.uffd == nil && !as.scarred.Load() {
			emit(v, part, int(v.flags&vmAccess))
			return true
		}
		if v.hugetlb() {
			// All of each page.
			for a := part.Start &^ v.pageMask(); a < part.End; a += HugePageSize {
				emit(v, mem.MakeRange(a, HugePageSize), v.allowed(as.pt.hugeEntry(a)))
			}
			return true
		}
		for a := part.Start; a < part.End; {
			if next := as.pt.used(mem.Range{Start: a, End: part.End}); next > a {
				emit(v, mem.Range{Start: a, End: next}, v.allowed(0))
				a = next
			}
			for next := min((a>>slotShift+1)<<slotShift, part.End); a < next; a += mem.PageSize {
				emit(v, mem.MakeRange(a, mem.PageSize), v.allowed(as.pt.entry(a)))
			}
		}
		return true
	})
	if prot >= 0 {
		fn(run, prot)
	}
}

// entry returns the entry of a small page.
func (t *pageTable) entry(a mem.Addr) pte {
	s := t.slot(a, false)
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(index(a))
}

// used returns where in r the first slot begins that has pages, or the end of r. It does
// not look at each slot of memory that has none.
func (t *pageTable) used(r mem.Range) mem.Addr {
	at := r.End
	t.while(r, func(s *slot, part mem.Range) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.blank() {
			at = part.Start
		}
		return s.blank()
	})
	return at
}

// allowed returns what the process may do with a page of registered memory
// without a fault that the mirror has to see.
func (v *vma) allowed(e pte) int {
	prot := int(v.flags & vmAccess)
	switch {
	case e&ptePoison != 0:
		return ProtNone
	case e.present():
	case v.is(vmMissing | vmMinor):
		return ProtNone
	}
	if prot&ProtWrite != 0 {
		prot |= ProtRead // what can be written can be read
	}
	if e&pteWP != 0 && v.is(vmWP) {
		prot &^= ProtWrite
	}
	if v.uffd != nil && v.obj != nil && !v.shared() && e&pteWrite == 0 {
		// The first write makes the page the process's own, and it outlives
		// the object's then.
		prot &^= ProtWrite
	}
	return prot
}
