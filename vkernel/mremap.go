// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// remapping is an mremap on its way.
type remapping struct {
	th     *Thread
	as     *space
	old    mem.Range
	newLen uint64
	flags  int
	to     mem.Addr
	locked bool // and grows
	// The events, in the order in which they are told: what made room, that
	// memory has moved, and what is no longer there.
	early    news
	moved    *event
	unmapped news
}

// Mremap resizes or moves a mapping and returns where it is. newAddr counts
// with MremapFixed, and is a hint with MremapDontUnmap.
func (th *Thread) Mremap(addr mem.Addr, oldLen, newLen uint64, flags int, newAddr mem.Addr) (mem.Addr, syscall.Errno) {
	th.enter()
	defer th.leave()
	const mask = mem.PageSize - 1
	m := remapping{th: th, as: th.p.as.Load(), flags: flags, to: newAddr,
		old: mem.MakeRange(addr, (oldLen+mask)&^mask), newLen: (newLen + mask) &^ mask}
	if errno := m.check(addr, oldLen); errno != 0 {
		return 0, errno
	}
	m.as.mu.Lock()
	at, errno := m.apply()
	if errno == EFAULT && m.many() {
		at, errno = m.each()
	}
	m.as.mu.Unlock()
	if errno == 0 && m.locked {
		// What is asked for these pages is not told before that the memory has
		// moved, and cannot fill any until it knows.
		th.populateMapped(mem.Range{Start: at + mem.Addr(m.old.Len()), End: at + mem.Addr(m.newLen)})
	}
	m.early.deliver(th)
	if m.moved != nil {
		m.moved.deliver(th)
	}
	m.unmapped.deliver(th)
	return at, errno
}

func (m *remapping) check(addr mem.Addr, oldLen uint64) syscall.Errno {
	const mask = mem.PageSize - 1
	fixed, dontunmap := m.flags&MremapFixed != 0, m.flags&MremapDontUnmap != 0
	switch {
	case m.flags&^(MremapMayMove|MremapFixed|MremapDontUnmap) != 0,
		fixed && m.flags&MremapMayMove == 0,
		dontunmap && (m.flags&MremapMayMove == 0 || m.old.Len() != m.newLen),
		addr&mask != 0, m.newLen == 0, m.newLen > taskSize:
		return EINVAL
	}
	if fixed || dontunmap {
		if m.to&mask != 0 || m.to > taskSize-mem.Addr(m.newLen) {
			return EINVAL
		}
	}
	if fixed && mem.MakeRange(m.to, m.newLen).Overlaps(m.old) {
		return EINVAL
	}
	return 0
}

// apply does the work with the lock held for writing.
func (m *remapping) apply() (mem.Addr, syscall.Errno) {
	as := m.as
	v := as.vmas.find(m.old.Start)
	if v == nil || v.start > m.old.Start {
		return 0, EFAULT
	}
	if v.hugetlb() {
		m.old.End = (m.old.End + v.pageMask()) &^ v.pageMask()
		m.newLen = (m.newLen + uint64(v.pageMask())) &^ uint64(v.pageMask())
		if m.newLen > m.old.Len() || !m.spans(v) && (m.old.Start|m.to)&v.pageMask() != 0 {
			return 0, EINVAL
		}
	}
	fixed, dontunmap := m.flags&MremapFixed != 0, m.flags&MremapDontUnmap != 0
	if m.old.Empty() && (!v.shared() && v.flags&vmMayShare == 0) {
		return 0, EINVAL
	}
	if dontunmap && m.old.End <= v.end && v.flags&vmDontExpand != 0 {
		return 0, EINVAL
	}
	if !fixed && !dontunmap && m.old.Len() >= m.newLen {
		return m.shrink()
	}
	if m.spans(v) {
		return 0, EFAULT
	}
	if m.newLen > m.old.Len() && v.is(vmDontExpand) {
		return 0, EFAULT
	}
	m.locked = m.newLen > m.old.Len() && v.is(vmLocked)
	if !fixed && !dontunmap && m.old.End == v.end && !m.old.Empty() && m.grow(v) {
		return m.old.Start, 0
	}
	if m.flags&MremapMayMove == 0 {
		return 0, ENOMEM
	}
	return m.move(v)
}

// spans reports whether what is to move ends behind v.
func (m *remapping) spans(v *vma) bool {
	return min(m.old.Len(), m.newLen) > uint64(v.end-m.old.Start)
}

// many reports whether this is a move of several VMAs to a fixed place, which
// Linux knows since 6.17.
func (m *remapping) many() bool {
	v := m.as.vmas.find(m.old.Start)
	return m.flags&MremapFixed != 0 && m.old.Len() == m.newLen && v != nil && v.start <= m.old.Start && v.end < m.old.End
}

// each moves one VMA after the other and leaves holes where there were some.
// Registered memory is not moved so: it ends the call, with what lies before
// moved.
func (m *remapping) each() (mem.Addr, syscall.Errno) {
	all, to := m.old, m.to
	for at := all.Start; at < all.End; {
		v := m.as.vmas.find(at)
		if v == nil || v.start >= all.End {
			break
		}
		if v.uffd != nil {
			return 0, EFAULT
		}
		m.old = all.Intersect(v.rng())
		m.old.Start = max(m.old.Start, at)
		m.newLen, m.to = m.old.Len(), to+(m.old.Start-all.Start)
		at = m.old.End
		if _, errno := m.apply(); errno != 0 {
			return 0, errno
		}
	}
	return to, 0
}

// shrink unmaps the tail, if there is one.
func (m *remapping) shrink() (mem.Addr, syscall.Errno) {
	tail := mem.Range{Start: m.old.Start + mem.Addr(m.newLen), End: m.old.End}
	if !tail.Empty() {
		if errno := m.as.unmapLocked(tail, &m.early); errno != 0 {
			return 0, errno
		}
	}
	return m.old.Start, 0
}

// grow lengthens v where it is, if there is room. What comes before v is not
// looked at.
func (m *remapping) grow(v *vma) bool {
	end := m.old.Start + mem.Addr(m.newLen)
	if end > taskSize {
		return false
	}
	if next := m.as.vmas.next(v); next != nil && next.start-min(next.start, next.guard()) < end {
		return false
	}
	m.as.vmas.resize(v, mem.Range{Start: v.start, End: end})
	m.as.mergeNext(v)
	return true
}

// move puts the old range somewhere else.
func (m *remapping) move(v *vma) (mem.Addr, syscall.Errno) {
	as := m.as
	if errno := m.room(v); errno != 0 {
		return 0, errno
	}
	// What was unmapped to make room may have shortened the tree, not v.
	if v = as.vmas.find(m.old.Start); m.old.End > v.end {
		return 0, EFAULT
	}
	if as.vmas.count+3 > as.k.maxMaps {
		return 0, ENOMEM
	}
	nv := *v
	nv.start, nv.end = m.to, m.to+mem.Addr(m.newLen)
	if nv.anon() && nv.line == nil {
		nv.off = uint64(nv.start) // nothing remembers where it came from
	} else {
		nv.off = v.offset(m.old.Start)
	}
	u := v.uffd
	keeps := u != nil && u.has(uapi.UFFD_FEATURE_EVENT_REMAP)
	registered := nv
	if u != nil && !keeps {
		nv.uffd = nil
		nv.flags &^= vmUffd
	}
	moved := m.pages(v, &nv)
	// The new VMA finds its neighbours while it is still registered. The
	// registration is dropped from what it has become part of, and that is
	// not merged again.
	nv.uffd, nv.flags = registered.uffd, registered.flags
	as.link(&nv)
	if at := as.merge(&nv); u != nil && !keeps {
		at.uffd = nil
		at.flags &^= vmUffd
	}
	if keeps {
		m.moved = newEvent(u, uapi.Remap{From: m.old.Start, To: m.to, Len: moved}.Msg())
	}
	return m.to, m.leave(moved)
}

// room makes or finds room for the new range.
func (m *remapping) room(v *vma) syscall.Errno {
	as := m.as
	if m.flags&MremapFixed != 0 {
		if errno := as.unmapLocked(mem.MakeRange(m.to, m.newLen), &m.early); errno != 0 {
			return errno
		}
		// A tail that is not to move goes then, be it of this mapping or of
		// those behind it.
		tail := mem.Range{Start: m.old.Start + mem.Addr(m.newLen), End: m.old.End}
		if tail.Start >= tail.End {
			return 0
		}
		m.old.End = tail.Start
		return as.unmapLocked(tail, &m.unmapped)
	}
	hint := mapping{th: m.th, addr: m.to, n: m.newLen, vm: v.flags}
	if m.flags&MremapDontUnmap == 0 {
		hint.addr = 0
	}
	at, errno := hint.room(as)
	m.to = at
	return errno
}

// pages moves the entries of the old range to nv, and returns its length.
func (m *remapping) pages(v, nv *vma) uint64 {
	as := m.as
	n := min(m.old.Len(), m.newLen)
	delta := nv.start - m.old.Start
	// Protection by a descriptor ends with the registration, also one that
	// the registration no longer has; memory that is nobody's keeps it.
	keep := ^pte(0)
	if v.uffd != nil && nv.uffd == nil {
		keep = ^pteWP
	}
	from := mem.MakeRange(m.old.Start, n)
	if v.hugetlb() {
		as.pt.updateHuge(from, func(a mem.Addr, e pte) pte {
			s := as.pt.slot(a+delta, true)
			s.mu.Lock() // an access may be looking, and finds nothing yet
			defer s.mu.Unlock()
			s.huge = e & keep
			return 0
		})
		return n
	}
	as.pt.update(from, func(a mem.Addr, e pte) pte {
		// Nobody else has the lock of the address space, and an access that
		// is under way finds nothing at the new place yet.
		s := as.pt.slot(a+delta, true)
		if s != as.pt.slot(a, true) {
			s.mu.Lock()
			defer s.mu.Unlock()
		}
		s.set(index(a+delta), e&keep)
		return 0
	})
	return n
}

// leave unmaps the old range, or keeps it without pages.
func (m *remapping) leave(moved uint64) syscall.Errno {
	if m.flags&MremapDontUnmap != 0 {
		v := m.as.vmas.find(m.old.Start)
		// All of the VMA loses the lock, and nobody merges it.
		v.flags &^= vmLockedMask
		if v.rng() == m.old {
			v.setLine(nil) // it has no page any more
		}
		return 0
	}
	if m.old.Empty() {
		return 0
	}
	return m.as.unmapLocked(m.old, &m.unmapped)
}
