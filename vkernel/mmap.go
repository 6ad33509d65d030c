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
	prot  int
	flags int
	off   uint64
	file  *file
	vm    vmaFlags
	// populate is whether the pages are to come at once.
	populate bool
}

const (
	// mapType are the bits of MapShared, MapPrivate and their like.
	mapType = 0xf
	// mapChecked are the flags that MapSharedValidate lets through; what else
	// there is, other types of mapping ignore. Of what has no name here, the
	// kernel knows some for old programs, and sizes of huge pages.
	mapChecked = mapType | MapFixed | MapAnonymous | 0x40 | 0x80 | MapGrowsDown | 0x800 | 0x1000 | MapLocked |
		MapNoReserve | MapPopulate | MapNonblock | MapStack | MapHugetlb | 31<<mapHugeShift
	// mapHugeShift and mapHugeMask are where MapHugetlb has the logarithm of
	// the size of its pages, zero for the usual one.
	mapHugeShift = 26
	mapHugeMask  = 63
)

// Mmap maps memory: anonymous with MapAnonymous, else that of fd from off on.
// Droppable memory (MAP_DROPPABLE, since Linux 6.11) is not to be had.
func (th *Thread) Mmap(addr mem.Addr, length uint64, prot, flags, fd int, off uint64) (mem.Addr, syscall.Errno) {
	th.enter()
	defer th.leave()
	m := mapping{th: th, addr: addr, n: length, prot: prot, flags: flags, off: off}
	if off&(mem.PageSize-1) != 0 {
		return 0, EINVAL
	}
	if flags&MapAnonymous == 0 {
		if m.file = th.p.file(fd); m.file == nil {
			return 0, EBADF
		}
		defer m.file.put()
	}
	if errno := m.check(); errno != 0 {
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

// check looks at the size, which a kernel does before it looks for room.
func (m *mapping) check() syscall.Errno {
	hugeFile := m.file != nil && m.file.obj != nil && m.file.obj.kind == kindHugetlb
	if m.flags&MapHugetlb != 0 && !hugeFile {
		size := m.flags >> mapHugeShift & mapHugeMask
		if m.file != nil || size != 0 && size != hugeShift {
			return EINVAL
		}
		hugeFile = true
	}
	if hugeFile {
		m.vm |= vmHugetlb | vmDontExpand
		m.n = (m.n + HugePageSize - 1) &^ (HugePageSize - 1) // what wraps is none
	}
	if m.n == 0 {
		return EINVAL
	}
	if m.n = (m.n + mem.PageSize - 1) &^ (mem.PageSize - 1); m.n == 0 {
		return ENOMEM
	}
	if m.flags&(MapFixed|MapFixedNoReplace) == 0 {
		if m.addr = m.addr.Down(); m.addr != 0 {
			m.addr = max(m.addr, hintMin)
		}
	}
	return 0
}

// kind checks what is to be mapped and finds the flags of its VMA. A kernel has
// room for it by then.
func (m *mapping) kind() syscall.Errno {
	m.vm |= vmaFlags(m.prot&7) | vmMayRead | vmMayWrite | vmMayExec
	check := m.kindAnonymous
	if m.file != nil || m.vm&vmHugetlb != 0 {
		check = m.kindFile
	}
	if errno := check(); errno != 0 {
		return errno
	}
	for _, f := range []struct {
		flag int
		vm   vmaFlags
	}{{MapGrowsDown, vmGrowsDown}, {MapLocked, vmLocked}, {MapNoReserve, vmNoReserve}} {
		if m.flags&f.flag != 0 {
			m.vm |= f.vm
		}
	}
	if m.vm&(vmHugetlb|vmShared|vmWrite|vmNoReserve) == vmWrite {
		m.vm |= vmAccount
	}
	return 0
}

func (m *mapping) kindAnonymous() syscall.Errno {
	switch m.flags & mapType {
	case MapShared:
		if m.flags&MapGrowsDown != 0 {
			return EINVAL
		}
		m.vm |= vmShared | vmMayShare
	case MapPrivate:
	default:
		return EINVAL
	}
	m.off = 0
	return 0
}

// kindFile is for what has a file behind it, which anonymous huge pages have
// too, and applies the mode in which the file is open.
func (m *mapping) kindFile() syscall.Errno {
	if limit := m.limit(); (m.file == nil || m.file.obj != nil) && m.off > limit-m.n {
		return EOVERFLOW
	}
	mode := ORdwr
	if m.file != nil {
		mode = m.file.mode()
	}
	switch m.flags & mapType {
	case MapSharedValidate:
		if m.flags&^mapChecked != 0 {
			return EOPNOTSUPP
		}
		fallthrough
	case MapShared:
		m.vm |= vmShared | vmMayShare
		if mode == ORdonly {
			if m.prot&ProtWrite != 0 {
				return EACCES
			}
			m.vm &^= vmMayWrite | vmShared
		}
	case MapPrivate:
	default:
		return EINVAL
	}
	switch {
	case mode == OWronly:
		return EACCES
	case m.file != nil && m.file.obj == nil:
		return ENODEV
	case m.flags&MapGrowsDown != 0, m.vm&vmHugetlb != 0 && m.off&(HugePageSize-1) != 0:
		return EINVAL
	}
	return 0
}

// limit returns up to where what is to be mapped has offsets.
func (m *mapping) limit() uint64 {
	if m.vm&vmHugetlb != 0 {
		return maxFileSize &^ (HugePageSize - 1)
	}
	return maxFileSize &^ (mem.PageSize - 1)
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
	at, errno := m.room(as)
	if errno != 0 {
		return 0, errno
	}
	if errno := m.kind(); errno != 0 {
		return 0, errno
	}
	m.vm |= as.future
	m.populate = m.vm&vmLocked != 0 || m.flags&(MapPopulate|MapNonblock) == MapPopulate
	if m.vm&vmHugetlb != 0 {
		m.vm &^= vmLockedMask
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
		v.off = m.off
	case v.shared():
		v.obj = k.newObject(kindShmem, "/dev/zero (deleted)", m.n)
		v.off = 0
	}
	if !huge {
		return 0
	}
	from, to := v.off>>hugeShift, (v.off+m.n)>>hugeShift
	if !v.is(vmNoReserve) && (v.shared() || v.file == nil) && !v.obj.reserve(from, to) {
		if v.file == nil {
			v.obj.put()
		}
		return ENOMEM
	}
	if v.is(vmWrite) {
		// What can be written is there to be written.
		v.obj.mu.Lock()
		v.obj.size = max(v.obj.size, v.off+m.n)
		v.obj.mu.Unlock()
	}
	return 0
}

// room returns where the mapping goes.
func (m *mapping) room(as *space) (mem.Addr, syscall.Errno) {
	if m.n > taskSize {
		return 0, ENOMEM
	}
	if m.flags&(MapFixed|MapFixedNoReplace) != 0 {
		if errno := m.fixed(); errno != 0 {
			return 0, errno
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

// fixed checks a place that was not only a hint.
func (m *mapping) fixed() syscall.Errno {
	switch {
	case m.vm&vmHugetlb != 0 && m.addr&(HugePageSize-1) != 0:
		return EINVAL
	case m.addr > 1<<64-mem.PageSize:
		// Linux 6.18 takes the place for the errno with which none was found.
		return syscall.Errno(-m.addr)
	case m.addr > taskSize-mem.Addr(m.n):
		return ENOMEM
	case !m.addr.Aligned():
		return EINVAL
	case m.addr < mmapMin && !m.th.p.options.Privileged:
		return EPERM
	}
	return 0
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
