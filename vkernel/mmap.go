// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
)

// mapping is a request for memory on its way.
type mapping struct {
	th    *Thread
	addr  mem.Addr
	n     uint64 // bytes
	flags int
	off   uint64
	file  *file
	vm    vmaFlags
	// populate is whether the pages are to come at once.
	populate bool
}

const mapKnown = MapShared | MapPrivate | MapFixed | MapAnonymous | MapGrowsDown | MapLocked |
	MapNoReserve | MapPopulate | MapNonblock | MapStack | MapHugetlb | MapFixedNoReplace

// Mmap maps memory: anonymous with MapAnonymous, else that of fd from off on.
func (th *Thread) Mmap(addr mem.Addr, length uint64, prot, flags, fd int, off uint64) (mem.Addr, syscall.Errno) {
	th.enter()
	defer th.leave()
	m := mapping{th: th, addr: addr, n: length, flags: flags &^ MapStack, off: off}
	if flags&MapAnonymous == 0 {
		if m.file = th.p.file(fd); m.file == nil {
			return 0, EBADF
		}
		defer m.file.put()
		if m.file.obj == nil {
			return 0, ENODEV
		}
	}
	if errno := m.check(prot); errno != 0 {
		return 0, errno
	}
	at, errno := m.place()
	if errno != 0 {
		return 0, errno
	}
	if m.populate {
		th.populateMapped(mem.MakeRange(at, m.n)) // whether they come is not told
	}
	return at, 0
}

// check validates the request and finds the flags of its VMA.
func (m *mapping) check(prot int) syscall.Errno {
	const mask = mem.PageSize - 1
	if m.n == 0 || m.off&mask != 0 || m.flags&^mapKnown != 0 {
		return EINVAL
	}
	huge := m.flags&MapHugetlb != 0 && m.file == nil || m.file != nil && m.file.obj.kind == kindHugetlb
	unit := uint64(mem.PageSize)
	if huge {
		unit = HugePageSize
	}
	if m.n > taskSize {
		return ENOMEM
	}
	m.n = (m.n + unit - 1) &^ (unit - 1)
	if m.flags&(MapFixed|MapFixedNoReplace) == 0 {
		m.addr = m.addr.Down()
	} else if m.addr&mask != 0 || huge && m.addr&(HugePageSize-1) != 0 {
		return EINVAL
	}
	if m.file == nil {
		m.off = 0
	} else if huge && m.off&(HugePageSize-1) != 0 {
		return EINVAL
	}
	m.vm = vmaFlags(prot&7) | vmMayRead | vmMayWrite | vmMayExec
	switch m.flags & (MapShared | MapPrivate) {
	case MapShared:
		if m.flags&MapGrowsDown != 0 {
			return EINVAL
		}
		m.vm |= vmShared | vmMayShare
	case MapPrivate:
	default:
		return EINVAL
	}
	if m.file != nil {
		if errno := m.checkFile(prot); errno != 0 {
			return errno
		}
	}
	for _, f := range []struct {
		flag int
		vm   vmaFlags
	}{{MapGrowsDown, vmGrowsDown}, {MapLocked, vmLocked}, {MapNoReserve, vmNoReserve}} {
		if m.flags&f.flag != 0 {
			m.vm |= f.vm
		}
	}
	if huge {
		m.vm |= vmHugetlb | vmDontExpand
	} else if m.vm&vmShared == 0 && m.vm&(vmWrite|vmNoReserve) == vmWrite {
		m.vm |= vmAccount
	}
	return 0
}

// checkFile applies the mode in which the file is open.
func (m *mapping) checkFile(prot int) syscall.Errno {
	mode := m.file.mode()
	switch {
	case mode == OWronly:
		return EACCES
	case m.flags&MapShared != 0 && mode == ORdonly:
		if prot&ProtWrite != 0 {
			return EACCES
		}
		m.vm &^= vmMayWrite | vmShared
	}
	return 0
}

// place finds room and links the VMA.
func (m *mapping) place() (mem.Addr, syscall.Errno) {
	as := m.th.p.as.Load()
	var told news
	defer func() { told.deliver(m.th) }()
	as.mu.Lock()
	defer as.mu.Unlock()
	if as.dead {
		return 0, EINTR
	}
	if as.vmas.count >= as.k.maxMaps {
		return 0, ENOMEM
	}
	m.vm |= as.future
	m.populate = m.vm&vmLocked != 0 || m.flags&(MapPopulate|MapNonblock) == MapPopulate
	if m.vm&vmHugetlb != 0 {
		m.vm &^= vmLockedMask
	}
	at, errno := m.room(as)
	if errno != 0 {
		return 0, errno
	}
	r := mem.MakeRange(at, m.n)
	if m.flags&MapFixed != 0 {
		if errno := as.unmapLocked(r, &told); errno != 0 {
			return 0, errno
		}
	}
	v := &vma{start: r.Start, end: r.End, flags: m.vm, off: uint64(r.Start)}
	if errno := m.attach(as.k, v); errno != 0 {
		return 0, errno
	}
	as.link(v)
	if v.obj != nil && v.file == nil {
		v.obj.put() // the VMA has its own reference
	}
	as.merge(v)
	return at, 0
}

// attach gives v the object that it maps.
func (m *mapping) attach(k *Kernel, v *vma) syscall.Errno {
	huge := v.hugetlb()
	switch {
	case m.file != nil:
		v.file, v.obj, v.off = m.file, m.file.obj, m.off
	case huge:
		v.obj = k.newObject(kindHugetlb, "/anon_hugepage (deleted)", m.n)
		v.off = 0
	case v.shared():
		v.obj = k.newObject(kindShmem, "/dev/zero (deleted)", m.n)
		v.off = 0
	}
	if !huge || v.is(vmNoReserve) {
		return 0
	}
	from, to := v.off>>hugeShift, (v.off+m.n)>>hugeShift
	if v.file != nil && v.shared() {
		v.obj.mu.Lock()
		v.obj.size = max(v.obj.size, v.off+m.n)
		v.obj.mu.Unlock()
	}
	if (v.shared() || v.file == nil) && !v.obj.reserve(from, to) {
		if v.file == nil {
			v.obj.put()
		}
		return ENOMEM
	}
	return 0
}

// room returns where the mapping goes.
func (m *mapping) room(as *space) (mem.Addr, syscall.Errno) {
	if m.flags&(MapFixed|MapFixedNoReplace) != 0 {
		if m.n > taskSize || m.addr > taskSize-mem.Addr(m.n) {
			return 0, ENOMEM
		}
		if m.addr < mmapMin && !m.th.p.options.Privileged {
			return 0, EPERM
		}
		next := as.vmas.find(m.addr)
		if m.flags&MapFixedNoReplace != 0 && next != nil && next.start < m.addr+mem.Addr(m.n) {
			return 0, EEXIST
		}
		return m.addr, 0
	}
	align := uint64(mem.PageSize)
	if m.vm&vmHugetlb != 0 {
		align = HugePageSize
	}
	if hint := (m.addr + mem.Addr(align) - 1) &^ mem.Addr(align-1); m.addr >= mmapMin && hint <= taskSize-mem.Addr(m.n) {
		next := as.vmas.find(hint)
		if next == nil || next.start-min(next.start, next.guard()) >= hint+mem.Addr(m.n) {
			return hint, 0
		}
	}
	at, ok := as.vmas.highestGap(mem.Range{Start: mmapMin, End: mmapTop}, m.n, align)
	if !ok {
		return 0, ENOMEM
	}
	return at, 0
}

// Munmap unmaps a range. Who watches it is told when it is gone.
func (th *Thread) Munmap(addr mem.Addr, length uint64) syscall.Errno {
	th.enter()
	defer th.leave()
	const mask = mem.PageSize - 1
	n := (length + mask) &^ mask
	if addr&mask != 0 || addr > taskSize || n > taskSize-uint64(addr) || n == 0 {
		return EINVAL
	}
	as := th.p.as.Load()
	var told news
	as.mu.Lock()
	errno := as.unmapLocked(mem.MakeRange(addr, n), &told)
	as.mu.Unlock()
	told.deliver(th)
	return errno
}

// unmapLocked splits VMAs at the edges of r and drops what is within.
// Preconditions: as.mu is held for writing.
func (as *space) unmapLocked(r mem.Range, told *news) syscall.Errno {
	first := as.vmas.find(r.Start)
	if first == nil || first.start >= r.End {
		return 0
	}
	last := as.vmas.prev(r.End)
	if first.start < r.Start && first.end > r.End && as.vmas.count >= as.k.maxMaps {
		return ENOMEM
	}
	if r.Start > first.start && r.Start&first.pageMask() != 0 {
		return EINVAL
	}
	if r.End < last.end && r.End&last.pageMask() != 0 {
		// The start has been cut off by the time that the end cannot be.
		if r.Start > first.start {
			if _, errno := as.split(first, r.Start); errno != 0 {
				return errno
			}
		}
		return EINVAL
	}
	told.unmap(as, r)
	for v := as.vmas.find(r.Start); v != nil && v.start < r.End; v = as.vmas.find(r.Start) {
		switch {
		case v.start < r.Start && v.end > r.End:
			if _, errno := as.split(v, r.End); errno != 0 {
				return errno
			}
			fallthrough
		case v.start < r.Start:
			as.zapAll(v, mem.Range{Start: r.Start, End: v.end})
			as.vmas.resize(v, mem.Range{Start: v.start, End: r.Start})
		case v.end > r.End:
			as.zapAll(v, mem.Range{Start: v.start, End: r.End})
			off := v.offset(r.End)
			as.vmas.resize(v, mem.Range{Start: r.End, End: v.end})
			v.off = off
		default:
			as.drop(v)
		}
	}
	as.pt.trim(r)
	return 0
}
