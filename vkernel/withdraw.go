// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
)

// Withdraw takes pages that are present out of registered memory, for who has
// their content somewhere else from then on: a thread that touches one faults, as
// after UFFDIO_MOVE, and no event tells of it. Pages go in order up to the first
// that cannot; n is how many went, and errno says why that one did not: EINVAL
// where no missing page would be told, EBUSY for locked memory, ENOENT for what is
// not present.
func (p *Process) Withdraw(r mem.Range) (n int, errno syscall.Errno) {
	as := p.as.Load()
	as.mu.RLock()
	defer as.mu.RUnlock()
	for a := r.Start; a < r.End; a += mem.PageSize {
		v := as.vmas.find(a)
		switch {
		case v == nil || v.start > a || v.uffd == nil || !v.is(vmMissing) || v.obj != nil:
			return n, EINVAL
		case v.is(vmLocked):
			return n, EBUSY
		}
		s := as.pt.slot(a, false)
		if s == nil {
			return n, ENOENT
		}
		s.mu.Lock()
		e := s.get(index(a))
		if e.present() {
			as.k.mem.put(e.frame())
			s.set(index(a), 0)
		}
		s.mu.Unlock()
		if !e.present() {
			return n, ENOENT
		}
		n++
	}
	return n, 0
}

// Drop makes the pages of r absent that the process has lost in a way for which
// there is no event.
func (p *Process) Drop(r mem.Range) {
	as := p.as.Load()
	as.mu.Lock()
	defer as.mu.Unlock()
	as.vmas.all(r, func(v *vma) bool {
		as.zapAll(v, v.rng().Intersect(r))
		return true
	})
}

// Restore undoes Withdraw for a page whose content never left.
func (p *Process) Restore(a mem.Addr) {
	as := p.as.Load()
	as.mu.RLock()
	defer as.mu.RUnlock()
	v := as.vmas.find(a)
	if v == nil || v.start > a || v.uffd == nil {
		return
	}
	s := as.pt.slot(a, true)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.get(index(a)) != 0 {
		return
	}
	flags := pte(0)
	if v.is(vmWrite) {
		flags |= pteWrite
	}
	if !v.is(vmAccess) {
		flags |= pteNoAccess
	}
	s.set(index(a), makePTE(as.k.mem.alloc(), flags))
}

// Allowed calls fn for the parts of r that have a VMA, in order, with what that
// allows.
func (p *Process) Allowed(r mem.Range, fn func(part mem.Range, prot int)) {
	as := p.as.Load()
	as.mu.RLock()
	defer as.mu.RUnlock()
	as.vmas.all(r, func(v *vma) bool {
		fn(v.rng().Intersect(r), int(v.flags&vmAccess))
		return true
	})
}
