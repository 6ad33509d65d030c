// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// hugetlb handles a fault of memory of huge pages.
func (f *faulting) hugetlb() need {
	v, o := f.v, f.v.obj
	f.as.learnObject(v, mem.MakeRange(f.addr&^v.pageMask(), HugePageSize))
	s := f.as.pt.slot(f.addr, true)
	o.mu.Lock()
	defer o.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.huge
	if e.present() {
		return f.presentHuge(s, e)
	}
	if e&ptePoison != 0 {
		return need{verdict: bus}
	}
	n := v.offset(f.addr) >> hugeShift
	if n >= o.size>>hugeShift {
		return need{verdict: bus}
	}
	h := &f.as.k.mem.huge
	fr, cached := o.lookupLocked(n)
	switch {
	case cached && v.is(vmMinor):
		return f.minor()
	case !cached && v.is(vmMissing):
		return f.missing()
	case !cached:
		var ok bool
		if fr, ok = v.takeHuge(n); !ok {
			return need{verdict: bus}
		}
		if v.shared() {
			o.storeLocked(n, fr)
			h.get(fr)
		} else {
			f.adopt()
		}
		s.huge = f.entry(fr, e&pteWP|pteWrite)
		return need{}
	}
	if !v.shared() && f.at.write && e&pteWP == 0 {
		// Where it is marked the page of the file comes first, and is asked for
		// as one that is there.
		own, ok := v.takeHuge(n)
		if !ok {
			return need{verdict: bus}
		}
		copyHuge(h, own, fr)
		f.adopt()
		s.huge = f.entry(own, pteWrite)
		return need{}
	}
	h.get(fr)
	flags := e & pteWP
	if v.shared() {
		flags |= pteWrite
	}
	s.huge = f.entry(fr, flags)
	return need{}
}

// takeHuge allocates page n of the object that v maps. Only memory that is
// shared, or that has an object of its own, has reserved it, and then it is for
// who mapped that, and not for a child.
func (v *vma) takeHuge(n uint64) (frame, bool) {
	if v.shared() || v.file == nil && !v.inherited {
		return v.obj.takeHugeLocked(n)
	}
	return v.obj.k.mem.huge.alloc(false)
}

func copyHuge(h *hugePool, dst, src frame) {
	if h.bare {
		return
	}
	p := h.page(src)
	p.mu.Lock()
	copy(h.page(dst).data, p.data)
	p.mu.Unlock()
}

// presentHuge is present for a huge page.
func (f *faulting) presentHuge(s *slot, e pte) need {
	if !f.at.force {
		e &^= pteNoAccess
		s.huge = e
	}
	if !f.at.write || e.writable() {
		return need{}
	}
	if e&pteWP != 0 {
		if f.guarded() {
			return ask(uapi.UFFD_PAGEFAULT_FLAG_WRITE | uapi.UFFD_PAGEFAULT_FLAG_WP)
		}
		// Linux 6.18 would fault here for ever if the registration no longer
		// has the mode.
		e &^= pteWP
	}
	v, h := f.v, &f.as.k.mem.huge
	fr := e.frame()
	word := &h.page(fr).word
	switch now := word.Load(); {
	case v.shared() || now&frameExclusive != 0:
	case now&frameCached == 0 && now&frameCount == 1:
		word.Or(frameExclusive)
	default:
		own, ok := h.alloc(false)
		if !ok {
			return need{verdict: bus}
		}
		copyHuge(h, own, fr)
		h.put(fr)
		fr = own
		f.adopt()
	}
	if e &= 1<<pteShift - 1; v.is(vmWrite) {
		e |= pteWrite
	}
	s.huge = makePTE(fr, e)
	return need{}
}
