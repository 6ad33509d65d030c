// SPDX-License-Identifier: Apache-2.0

package vkernel

import "github.com/faultline-go/faultline/mem"

// Memory of huge pages is never merged outside, where it is cut up by permissions:
// what the mirror knows as one VMA stays one.

// uncut makes one of mappings of huge pages that the mirror knows as one.
func (as *space) uncut(maps []Mapping) []Mapping {
	out := maps[:0:0]
	for _, m := range maps {
		if last := len(out) - 1; m.Huge && last >= 0 && out[last].Huge && out[last].precedes(&m) {
			if v := as.vmas.find(m.Range.Start); v != nil && v.start < m.Range.Start {
				out[last].Range.End = m.Range.End
				continue
			}
		}
		out = append(out, m)
	}
	return out
}

// learnHuge is learn for huge pages, but for what the object has.
func (as *space) learnHuge(v *vma, r mem.Range) {
	h := &as.k.mem.huge
	as.out.Resident(r, func(a mem.Addr, own bool) {
		if a&v.pageMask() != 0 {
			return
		}
		s := as.pt.slot(a, true)
		s.mu.Lock()
		defer s.mu.Unlock()
		e := s.huge
		if e.present() || e&ptePoison != 0 {
			return
		}
		flags := e & pteWP
		if v.is(vmWrite) && (own || v.shared()) {
			flags |= pteWrite
		}
		if !v.is(vmAccess) {
			flags |= pteNoAccess
		}
		v.obj.mu.Lock()
		defer v.obj.mu.Unlock()
		if own {
			if fr, ok := v.takeHuge(v.offset(a) >> hugeShift); ok {
				s.huge = makePTE(fr, flags)
			}
		} else if fr, ok := v.obj.lookupLocked(v.offset(a) >> hugeShift); ok {
			h.get(fr)
			s.huge = makePTE(fr, flags)
		}
	})
}

// learnHugeObject is learnObject for huge pages.
func (as *space) learnHugeObject(v *vma, r mem.Range) {
	o := v.obj
	o.mu.Lock()
	defer o.mu.Unlock()
	as.out.CachedHuge(r, func(a mem.Addr) {
		n := v.offset(a) >> hugeShift
		if _, ok := o.lookupLocked(n); ok {
			return
		}
		if fr, ok := o.takeHugeLocked(n); ok {
			o.storeLocked(n, fr)
		}
		o.size = max(o.size, (n+1)<<hugeShift)
	})
}

// hugeEntry returns the entry of a huge page.
func (t *pageTable) hugeEntry(a mem.Addr) pte {
	s := t.slot(a, false)
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.huge
}

// whole returns the bytes of the next huge page of a copy.
func (f *filler) whole(done int) []byte {
	if f.bytes != nil {
		return f.bytes[done : done+HugePageSize]
	}
	return f.page
}

// Huge reports whether the memory at a is of huge pages.
func (p *Process) Huge(a mem.Addr) bool {
	as := p.as.Load()
	as.mu.RLock()
	defer as.mu.RUnlock()
	v := as.vmas.find(a)
	return v != nil && v.start <= a && v.hugetlb()
}
