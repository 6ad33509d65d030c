// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"bytes"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/vkernel"
)

// Huge pages cannot be filled past their permissions, nor can the kernel map them
// once more without their file. So the file is opened again: through a mapping of
// ours shared memory gets its pages, as all shared memory does, and a private page
// is made elsewhere and moved to where it belongs.

// anonHuge is what the kernel calls memory of huge pages without a file.
const anonHuge = "/anon_hugepage (deleted)"

// hugeMapping reports whether a mapping is of huge pages that we can serve.
func (sp *space) hugeMapping(v procmem.VMA) bool {
	if procmem.HugePageSize(v.Dev) != vkernel.HugePageSize {
		return false
	}
	_, ok := procmem.FileSize(sp.ts.Pid(), v)
	return ok || !v.Shared && v.Name == anonHuge
}

// vmaAt returns the mapping at a.
func (sp *space) vmaAt(a mem.Addr) (procmem.VMA, bool) {
	vmas, err := procmem.Maps(sp.ts.Pid())
	if err != nil {
		return procmem.VMA{}, false // the process is gone
	}
	for _, v := range vmas {
		if v.Contains(a) {
			return v, true
		}
	}
	return procmem.VMA{}, false
}

// mapHuge maps what is at r once more, by the agent.
func (sp *space) mapHuge(r mem.Range, flags uintptr) (mem.Addr, error) {
	v, ok := sp.vmaAt(r.Start)
	if !ok {
		return 0, inject.ErrGone
	}
	prot := uintptr(unix.PROT_READ | unix.PROT_WRITE)
	if v.Name == anonHuge && !v.Shared {
		at, err := sp.agent.Call(unix.SYS_MMAP, inject.Hint(), uintptr(r.Len()), prot,
			flags|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB|hugeShift<<unix.MAP_HUGE_SHIFT, ^uintptr(0), 0)
		return mem.Addr(at), err
	}
	fd, err := sp.openMapped(v, flags == unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	at, err := sp.agent.Call(unix.SYS_MMAP, inject.Hint(), uintptr(r.Len()), prot, flags, fd, uintptr(v.Offset)+uintptr(r.Start-v.Start))
	if _, cerr := sp.agent.Call(unix.SYS_CLOSE, fd); err == nil {
		err = cerr
	}
	return mem.Addr(at), err
}

const hugeShift = 21

// openMapped opens the file of a mapping, by the agent.
func (sp *space) openMapped(v procmem.VMA, write bool) (fd uintptr, err error) {
	flags := uintptr(unix.O_RDONLY)
	if write {
		flags = unix.O_RDWR
	}
	paths := []string{fmt.Sprintf("/proc/self/map_files/%x-%x", uint64(v.Start), uint64(v.End))}
	if n, ok := procmem.FileNumber(sp.ts.Pid(), v); ok {
		paths = append(paths, fmt.Sprintf("/proc/%d/fd/%d", sp.ts.Pid(), n))
	}
	for _, path := range paths {
		copy(sp.agent.Data(), path+"\x00")
		const atFDCWD = ^uintptr(99)
		fd, err = sp.agent.Call(unix.SYS_OPENAT, atFDCWD, uintptr(sp.agent.DataAddr()), flags|unix.O_CLOEXEC)
		if err == nil || gone(err) {
			return fd, err
		}
	}
	return 0, err
}

// fillHuge gives a huge page of private memory its content.
func (sp *space) fillHuge(a mem.Addr, src []byte) unix.Errno {
	at, err := sp.mapHuge(mem.MakeRange(a, uint64(len(src))), unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return unix.ENOMEM
	}
	n := uintptr(len(src))
	if sp.copy(inject.WriteMemory, at, src) < len(src) {
		sp.do("drop a huge page", []inject.Op{{NR: unix.SYS_MUNMAP, Args: [6]uintptr{uintptr(at), n}}})
		return unix.ENOMEM
	}
	if !sp.do("move a huge page", []inject.Op{
		{NR: unix.SYS_MPROTECT, Args: [6]uintptr{uintptr(at), n, unix.PROT_NONE}},
		{NR: unix.SYS_MREMAP, Args: [6]uintptr{uintptr(at), n, n, unix.MREMAP_MAYMOVE | unix.MREMAP_FIXED, uintptr(a)}},
	}) {
		return unix.ENOMEM
	}
	sp.prot.set(mem.MakeRange(a, uint64(n)), unix.PROT_NONE)
	return 0
}

// CachedHuge implements [vkernel.Outside]. The kernel says what a page table has,
// and not what a file of huge pages has: a page is known if any process of the tree
// has it mapped.
func (sp *space) CachedHuge(r mem.Range, there func(a mem.Addr)) {
	v, ok := sp.vmaAt(r.Start)
	if !ok || v.Name == anonHuge && !v.Shared {
		return
	}
	first := v.Offset + uint64(r.Start-v.Start)
	has := make(map[uint64]bool) // by offset
	for _, pr := range sp.p.tracer.Processes() {
		vmas, err := procmem.Maps(pr.Pid())
		if err != nil {
			continue // it is gone
		}
		for _, o := range vmas {
			if o.Dev == v.Dev && o.Inode == v.Inode && o.Offset < first+r.Len() && o.Offset+o.Len() > first {
				mappedHuge(pr.Pid(), o, has)
			}
		}
	}
	for a := r.Start; a < r.End; a += vkernel.HugePageSize {
		if has[first+uint64(a-r.Start)] {
			there(a)
		}
	}
}

// mappedHuge notes the pages of a file that are mapped at v, by offset.
func mappedHuge(pid int, v procmem.VMA, has map[uint64]bool) {
	pm, err := procmem.OpenPagemap(pid)
	if err != nil {
		return // it is gone
	}
	defer pm.Close()
	_ = pm.Pages(v.Range, func(part mem.Range, own bool) {
		for a := part.Start; a < part.End; a += vkernel.HugePageSize {
			has[v.Offset+uint64(a-v.Start)] = !own
		}
	})
}

// mincore tells of huge pages what the mirror knows: the kernel tells which have been
// touched, and ours are there before.
func (t *task) mincore(c tracee.Call) {
	r, ok := pages(c.Args[0], c.Args[1])
	if !ok {
		t.use(c)
		return
	}
	t.useThen(c, func() {
		for _, g := range t.sp.guarded {
			part := g.Intersect(r)
			for a := part.Start; a < part.End; a = a&^(vkernel.HugePageSize-1) + vkernel.HugePageSize {
				if t.sp.v.Huge(a) && t.sp.v.PageState(a).Present {
					vec := addr(c.Args[2]) + (a-r.Start)>>mem.PageShift
					n := (min(a&^(vkernel.HugePageSize-1)+vkernel.HugePageSize, part.End) - a) >> mem.PageShift
					t.sp.Store(vec, bytes.Repeat([]byte{1}, int(n)))
				}
			}
		}
	})
}

// remap has the agent move memory that is closed. Huge pages stay cut up when they are,
// and the kernel moves one mapping at a time.
func (t *task) remap(old mem.Range, newLen uintptr, c tracee.Call) (uintptr, syscall.Errno) {
	if c.Args[3]&unix.MREMAP_FIXED == 0 || !t.sp.v.Huge(old.Start) {
		return t.agentCall(unix.SYS_MREMAP, c.Args[0], c.Args[1], c.Args[2], c.Args[3], c.Args[4])
	}
	vmas, err := procmem.Maps(t.sp.ts.Pid())
	if err != nil {
		return 0, unix.ENOMEM // it is dying
	}
	moves := mem.MakeRange(old.Start, min(old.Len(), uint64(newLen)))
	for _, v := range vmas {
		part := v.Range.Intersect(moves)
		if part.Empty() {
			continue
		}
		n := uintptr(part.Len())
		if _, errno := t.agentCall(unix.SYS_MREMAP, uintptr(part.Start), n, n, c.Args[3], c.Args[4]+uintptr(part.Start-old.Start)); errno != 0 {
			return 0, errno
		}
	}
	if moves.End < old.End {
		t.agentCall(unix.SYS_MUNMAP, uintptr(moves.End), uintptr(old.End-moves.End))
	}
	return c.Args[4], 0
}
