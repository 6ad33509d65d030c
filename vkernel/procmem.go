// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
)

// OpenMem opens /proc/PID/mem of a process, by which its memory can be read
// and written at an offset that is the address: without regard to protection
// and without ever waiting for a page. One that would have to be waited for
// ends the transfer, with EIO if nothing came before it, and nobody hears of
// it.
func (th *Thread) OpenMem(p *Process, mode int) (int, syscall.Errno) {
	f := newFile(mode & 3)
	f.mem = p.as.Load()
	return th.own(f, mode&OCloexec != 0)
}

// memory transfers between a vector and the memory at off, a page or less at
// a time, and returns how much was done.
func (th *Thread) memory(as *space, off mem.Addr, segments []Segment, write bool) (done int, errno syscall.Errno) {
	if !as.use() {
		return 0, 0 // its process is gone
	}
	defer as.leave()
	var page [mem.PageSize]byte
	for _, s := range segments {
		for s.Len > 0 {
			b := page[:min(s.Len, uint64(len(page)))]
			n := 0
			if write {
				if got, errno := th.copyIn(s.Addr, b); got < len(b) {
					return 0, argErrno(errno)
				}
				n, _ = th.kernelAccess(attempt{as: as, write: true, mode: ptraceMode, force: true}, off, b)
			} else {
				n, _ = th.kernelAccess(attempt{as: as, mode: ptraceMode, force: true}, off, b)
				if got, errno := th.copyOut(s.Addr, b[:n]); got < n {
					return 0, argErrno(errno)
				}
			}
			if n == 0 {
				if done == 0 {
					return 0, EIO
				}
				return done, 0
			}
			done += n
			off += mem.Addr(n)
			s.Addr += mem.Addr(n)
			s.Len -= uint64(n)
		}
	}
	return done, 0
}

// Mincore stores for every page of a range a byte at vec: 1 if it is there, or
// its object has it, and 0 if not. It brings nothing in. A hole is ENOMEM, with
// what comes before it stored.
func (th *Thread) Mincore(addr mem.Addr, length uint64, vec mem.Addr) syscall.Errno {
	th.enter()
	defer th.leave()
	if !addr.Aligned() {
		return EINVAL
	}
	if !userRange(addr, length) {
		return ENOMEM
	}
	if !userRange(vec, (length+mem.PageSize-1)>>mem.PageShift) {
		return EFAULT
	}
	as := th.p.as.Load()
	for r := mem.MakeRange(addr, length); !r.Empty(); {
		// As many at a time as the kernel has room for.
		b, ok := as.residence(mem.Range{Start: r.Start, End: min(r.End.Up(), r.Start+mem.PageSize*mem.PageSize)})
		if !ok {
			return ENOMEM
		}
		if n, errno := th.copyOut(vec, b); n < len(b) {
			return argErrno(errno)
		}
		vec += mem.Addr(len(b))
		r.Start += mem.Addr(len(b)) << mem.PageShift
	}
	return 0
}

// residence returns what Mincore tells of the pages of r that the VMA at its
// start has, and false if there is none.
func (as *space) residence(r mem.Range) ([]byte, bool) {
	as.mu.RLock()
	defer as.mu.RUnlock()
	v := as.vmas.find(r.Start)
	if v == nil || v.start > r.Start {
		return nil, false
	}
	r = r.Intersect(v.rng())
	b := make([]byte, r.Pages())
	for i := range b {
		if as.resident(v, r.Start+mem.Addr(i)<<mem.PageShift) {
			b[i] = 1
		}
	}
	return b, true
}

func (as *space) resident(v *vma, a mem.Addr) bool {
	if v.hugetlb() {
		// Only where there is no page table is the object looked at.
		if s := as.pt.slot(a, false); s != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.huge.present()
		}
	} else if as.pt.entry(a).present() {
		return true
	}
	if v.obj == nil {
		return false
	}
	v.obj.mu.Lock()
	defer v.obj.mu.Unlock()
	_, has := v.obj.lookupLocked(v.offset(a) >> v.obj.shift)
	return has
}
