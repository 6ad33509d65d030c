// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// remapping is an mremap on its way.
type remapping struct {
	th   *Thread
	as   *space
	addr mem.Addr
	// oldLen is what was asked for, and may reach beyond all memory: what is
	// moved or unmapped of it has been looked for in VMAs before.
	oldLen uint64
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
		addr: addr, oldLen: (oldLen + mask) &^ mask, newLen: (newLen + mask) &^ mask}
	if errno := m.check(); errno != 0 {
		return 0, errno
	}
	m.as.mu.Lock()
	do := m.apply
	if m.many() {
		do = m.each
	}
	at, errno := do()
	m.as.mu.Unlock()
	if errno == 0 && m.locked {
		// What is asked for these pages is not told before that the memory has
		// moved, and cannot fill any until it knows.
		th.populateMapped(mem.Range{Start: at + mem.Addr(m.oldLen), End: at + mem.Addr(m.newLen)})
	}
	m.early.deliver(th)
	if m.moved != nil {
		m.moved.deliver(th)
	}
	m.unmapped.deliver(th)
	return at, errno
}

// end is where the old range ends. It wraps if that is beyond all addresses.
func (m *remapping) end() mem.Addr { return m.addr + mem.Addr(m.oldLen) }

// old is the old range, which lies in one VMA.
func (m *remapping) old() mem.Range { return mem.MakeRange(m.addr, m.oldLen) }

func (m *remapping) check() syscall.Errno {
	const mask = mem.PageSize - 1
	fixed, dontunmap := m.flags&MremapFixed != 0, m.flags&MremapDontUnmap != 0
	switch {
	case m.flags&^(MremapMayMove|MremapFixed|MremapDontUnmap) != 0,
		fixed && m.flags&MremapMayMove == 0,
		dontunmap && (m.flags&MremapMayMove == 0 || m.oldLen != m.newLen),
		m.addr&mask != 0, m.newLen == 0, m.newLen > taskSize:
		return EINVAL
	}
	if fixed || dontunmap {
		if m.to&mask != 0 || m.to > taskSize-mem.Addr(m.newLen) {
			return EINVAL
		}
	}
	// An end that wraps overlaps nothing here. It is found out later, when room
	// has been made.
	if (fixed || dontunmap) && m.end() > m.to && m.to+mem.Addr(m.newLen) > m.addr {
		return EINVAL
	}
	return 0
}

// apply does the work with the lock held for writing.
func (m *remapping) apply() (mem.Addr, syscall.Errno) {
	as := m.as
	v := as.vmas.find(m.addr)
	if v == nil || v.start > m.addr {
		return 0, EFAULT
	}
	if v.hugetlb() && !m.alignHuge(v) {
		return 0, EINVAL
	}
	fixed, dontunmap := m.flags&MremapFixed != 0, m.flags&MremapDontUnmap != 0
	if m.oldLen == 0 && (!v.shared() && v.flags&vmMayShare == 0) {
		return 0, EINVAL
	}
	if dontunmap && m.end() <= v.end && v.flags&vmDontExpand != 0 {
		return 0, EINVAL
	}
	if !fixed && !dontunmap && m.oldLen >= m.newLen {
		return m.shrink()
	}
	if m.spans(v) {
		return 0, EFAULT
	}
	if m.newLen > m.oldLen && v.is(vmDontExpand) {
		return 0, EFAULT
	}
	m.locked = m.newLen > m.oldLen && v.is(vmLocked)
	if !fixed && !dontunmap && m.end() == v.end && m.oldLen != 0 && m.grow(v) {
		return m.addr, 0
	}
	if m.flags&MremapMayMove == 0 {
		return 0, ENOMEM
	}
	return m.move(v)
}

// alignHuge makes whole huge pages of the lengths, and reports whether they and
// the places are possible.
func (m *remapping) alignHuge(v *vma) bool {
	mask := uint64(v.pageMask())
	m.oldLen, m.newLen = (m.oldLen+mask)&^mask, (m.newLen+mask)&^mask
	switch {
	case m.newLen > m.oldLen, m.addr&v.pageMask() != 0:
		return false
	case m.flags&MremapFixed != 0 && m.to > taskSize-mem.Addr(m.newLen):
		return false
	}
	return m.to&v.pageMask() == 0
}

// spans reports whether what is to move ends behind v.
func (m *remapping) spans(v *vma) bool {
	return min(m.oldLen, m.newLen) > uint64(v.end-m.addr)
}

// many reports whether this is a move of several VMAs to a fixed place, which
// Linux knows since 6.17.
func (m *remapping) many() bool {
	v := m.as.vmas.find(m.addr)
	return m.flags&MremapFixed != 0 && m.oldLen == m.newLen && v != nil && v.start <= m.addr && v.end < m.end()
}

// each moves one VMA after the other and leaves holes where there were some.
// Registered memory is not moved so: it ends the call, with what lies before
// moved.
func (m *remapping) each() (mem.Addr, syscall.Errno) {
	// What moves to a place is no longer than all memory: no end wraps.
	all, to := m.old(), m.to
	for at := all.Start; at < all.End; {
		v := m.as.vmas.find(at)
		if v == nil || v.start >= all.End {
			break
		}
		if v.uffd != nil {
			return 0, EFAULT
		}
		part := all.Intersect(v.rng())
		m.addr = max(part.Start, at)
		at = part.End
		m.oldLen = uint64(at - m.addr)
		m.newLen, m.to = m.oldLen, to+(m.addr-all.Start)
		if _, errno := m.apply(); errno != 0 {
			return 0, errno
		}
	}
	return to, 0
}

// shrink unmaps the tail, if there is one.
func (m *remapping) shrink() (mem.Addr, syscall.Errno) {
	if m.oldLen > m.newLen {
		if errno := m.unmapTail(&m.early); errno != 0 {
			return 0, errno
		}
	}
	return m.addr, 0
}

// unmapTail unmaps what the old length has more than the new one, be it of this
// mapping or of those behind it.
func (m *remapping) unmapTail(told *news) syscall.Errno {
	if !m.tailFits() {
		return EINVAL
	}
	return m.as.unmapLocked(mem.MakeRange(m.addr+mem.Addr(m.newLen), m.oldLen-m.newLen), told)
}

// tailFits reports whether that ends within all memory, as munmap(2) wants it.
func (m *remapping) tailFits() bool {
	start, n := m.addr+mem.Addr(m.newLen), m.oldLen-m.newLen
	return start <= taskSize && n <= uint64(taskSize-start)
}

// grow lengthens v where it is, if there is room. What comes before v is not
// looked at.
func (m *remapping) grow(v *vma) bool {
	end := m.addr + mem.Addr(m.newLen)
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
	if v = as.vmas.find(m.addr); m.end() > v.end {
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
		nv.off = v.offset(m.addr)
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
		m.moved = newEvent(u, uapi.Remap{From: m.addr, To: m.to, Len: moved}.Msg())
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
		// An end that wraps, and a copy, overlap nothing: it may have been what
		// is to move.
		if v := as.vmas.find(m.addr); v == nil || v.start > m.addr {
			return EFAULT
		}
		// A tail that is not to move goes then.
		if m.oldLen > m.newLen {
			if errno := m.unmapTail(&m.unmapped); errno != 0 {
				return errno
			}
			m.oldLen = m.newLen
		}
		if m.to < mmapMin && !m.th.p.options.Privileged {
			return EPERM
		}
		return 0
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
	n := min(m.oldLen, m.newLen)
	delta := nv.start - m.addr
	// Protection by a descriptor ends with the registration, also one that
	// the registration no longer has; memory that is nobody's keeps it.
	keep := ^pte(0)
	if v.uffd != nil && nv.uffd == nil {
		keep = ^pteWP
	}
	from := mem.MakeRange(m.addr, n)
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
		v := m.as.vmas.find(m.addr)
		// All of the VMA loses the lock, and nobody merges it.
		v.flags &^= vmLockedMask
		if v.rng() == m.old() {
			v.setLine(nil) // it has no page any more
		}
		return 0
	}
	if m.oldLen == 0 {
		return 0
	}
	return m.as.unmapLocked(m.old(), &m.unmapped)
}
