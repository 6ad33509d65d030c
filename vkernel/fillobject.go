// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
)

// object installs a page that is the object's: one that it does not have yet,
// or with CONTINUE one that it has.
func (f *filler) object(v *vma, a mem.Addr, done int) syscall.Errno {
	as, o := f.u.as, v.obj
	if as.out != nil && f.kind != fillContinue {
		return f.outside(v, a, done)
	}
	as.learnObject(v, mem.MakeRange(a, mem.PageSize))
	m := &as.k.mem
	n := v.offset(a) >> mem.PageShift
	var fr frame
	if f.kind != fillContinue {
		if fr = m.alloc(); f.kind == fillZero {
			page, _ := m.page(fr)
			clear(page[:])
		} else if page, _ := m.page(fr); !f.read(page[:], done) {
			m.put(fr)
			return errSource
		}
	}
	s := as.pt.slot(a, true)
	o.mu.Lock()
	defer o.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.get(index(a))
	cached, has := o.lookupLocked(n)
	beyond := n >= (o.size+mem.PageSize-1)>>mem.PageShift
	if f.kind == fillContinue {
		switch {
		case beyond:
			return EINVAL
		case !has && (as.out == nil || !e.present()): // see learnObject
			return EFAULT
		case e.present():
			return EEXIST
		}
		m.get(cached)
		s.set(index(a), f.entry(v, cached, false))
		return 0
	}
	errno := syscall.Errno(0)
	switch {
	case beyond:
		errno = EFAULT
	case has || e.present():
		errno = EEXIST
	}
	if errno != 0 {
		m.put(fr)
		return errno
	}
	o.storeLocked(n, fr)
	m.get(fr)
	s.set(index(a), f.entry(v, fr, false))
	return 0
}

// hugePage installs a huge page.
func (f *filler) hugePage(v *vma, a mem.Addr, done int) syscall.Errno {
	as, o := f.u.as, v.obj
	as.learnObject(v, mem.MakeRange(a, HugePageSize))
	h := &as.k.mem.huge
	n := v.offset(a) >> hugeShift
	s := as.pt.slot(a, true)
	o.mu.Lock()
	defer o.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	cached, has := o.lookupLocked(n)
	switch {
	case f.kind == fillPoison:
		if s.huge != 0 {
			return EEXIST
		}
		s.huge = ptePoison
		as.scarred.Store(true)
		return 0
	case f.kind == fillContinue && !has:
		return EFAULT
	case s.huge.present():
		return EEXIST
	case n >= o.size>>hugeShift:
		return EFAULT
	case f.kind == fillContinue:
		h.get(cached)
		s.huge = f.entry(v, cached, false)
		return 0
	case has && v.shared():
		return EEXIST
	}
	if !f.ahead && f.bytes == nil {
		// The source is not read with these locks held: it may be memory of
		// the same object.
		return errSource
	}
	if as.out != nil {
		if errno := as.out.Fill(a, f.whole(done)); errno != 0 {
			return errno
		}
	}
	fr, ok := v.takeHuge(n)
	if !ok {
		return ENOMEM
	}
	if as.out == nil {
		f.read(h.page(fr).data, done)
	}
	if v.shared() {
		o.storeLocked(n, fr)
		h.get(fr)
	}
	s.huge = f.entry(v, fr, !v.shared())
	return 0
}
