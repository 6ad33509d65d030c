// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"

	"github.com/faultline-go/faultline/mem"
)

// Lengths that reach beyond all memory of a program, and addresses that lie
// there, on every machine. The last ones wrap.
const (
	beyond  uint64 = 1 << 62
	half    uint64 = 1 << 63
	wraps   uint64 = 1<<64 - mem.PageSize // and is whole pages
	largest uint64 = 1<<64 - 1
)

var borderCases = []Case{
	{Name: "border/mremap-old-length", Rows: []string{"B.12.17", "B.13.4"}, Memory: small, Features: unmapEvent, Since: "6.18", run: func(c *C) {
		// What is refused has unmapped nothing, and nobody is told of anything.
		p := c.Process()
		u := p.UFFD(unmapEvent)
		r := p.Map(4)
		u.Watch(r.Range, missing)
		to := p.place(mem.PageSize)
		for _, n := range []uint64{1 << 60, beyond, half, wraps, ^uint64(r.Start) + 1} {
			p.Begin(Mremap, r.Start, n, r.Page(), 0, 0).Err(EINVAL)
			p.Begin(Mremap, r.Start, n, r.Page(), MremapMayMove, 0).Err(EINVAL)
			p.Begin(Mremap, r.Start, n, r.Page(), MremapMayMove|MremapFixed, to.Start).Err(EINVAL)
		}
		p.Begin(Mremap, r.Start, beyond, 5*r.Page(), MremapMayMove|MremapFixed, to.Start-1<<30).Err(EFAULT)
		p.Begin(Mremap, r.Start, r.Len(), r.Len(), 0, 0).Value(r.Start)
		r.WantLayout("0+4 rw-p um")
		u.Quiet()
	}},
	{Name: "border/mremap-makes-room-first", Rows: []string{"B.12.17", "B.13.4"}, Memory: anon, Since: "6.18", run: func(c *C) {
		// An old range whose end wraps overlaps nothing. That it is too long
		// is found out by when its tail is to go, and its new place is made.
		p := c.Process()
		r, to := p.Map(2), p.Map(2)
		n := ^uint64(r.Start) + 1 // it ends at zero
		p.Begin(Mremap, r.Start, n, r.Page(), MremapMayMove|MremapFixed, to.Start).Err(EINVAL)
		r.WantLayout("0+2 rw-p")
		to.WantLayout("1+1 rw-p")
		// That is looked for before the tail, and may be gone.
		p.Begin(Mremap, r.Start, n, r.Page(), MremapMayMove|MremapFixed, r.Start).Err(EFAULT)
		r.WantLayout("1+1 rw-p")
	}},
	{Name: "border/mremap-copy-onto-itself", Rows: []string{"B.12.17", "B.13.4"}, Memory: shmem, Since: "6.18", run: func(c *C) {
		// An old length of zero is a copy of shared memory, and overlaps
		// nothing: what it was to copy has gone when there is room for it.
		p := c.Process()
		r, other := p.Map(3), p.Map(1)
		p.Begin(Mremap, r.Start, 0, 2*r.Page(), MremapMayMove|MremapFixed, r.Start).Err(EFAULT)
		r.WantLayout("2+1 rw-p")
		p.Begin(Mremap, other.Start, 0, r.Page(), MremapMayMove|MremapFixed, other.Start).Err(EFAULT)
		other.WantLayout("")
		to := r.moved(p.place(r.Page()))
		p.Begin(Mremap, r.At(2), 0, r.Page(), MremapMayMove|MremapFixed, to.Start).Value(to.Start)
		p.Puts(r.At(2), 'a')
		p.Sees(to.Start, 'a')
	}},
	{Name: "border/mremap-new-length", Rows: []string{"B.12.17", "B.13.4"}, Memory: small, Since: "6.18", run: func(c *C) {
		p := c.Process()
		r := p.Map(2)
		to := p.place(mem.PageSize).Start
		for _, n := range []uint64{0, beyond, half, wraps, largest} {
			for _, flags := range []int{0, MremapMayMove, MremapMayMove | MremapFixed} {
				p.Begin(Mremap, r.Start, r.Page(), n, flags, to).Err(EINVAL)
			}
		}
		for _, to := range []uint64{uint64(to) + 1, half, wraps, largest, uint64(r.Start)} {
			p.Begin(Mremap, r.Start, r.Page(), r.Page(), MremapMayMove|MremapFixed, to).Err(EINVAL)
			p.Begin(Mremap, r.Start, r.Page(), r.Page(), MremapMayMove|MremapDontUnmap, to).Err(EINVAL)
		}
		p.Begin(Mremap, r.Start+1, r.Page(), r.Page(), 0, 0).Err(EINVAL)
		p.Begin(Mremap, half, r.Page(), r.Page(), 0, 0).Err(EFAULT)
		p.Begin(Mremap, r.End, beyond, r.Page(), 0, 0).Err(EFAULT)
		if !c.Memory.Shared() {
			p.Begin(Mremap, r.Start, 0, r.Page(), MremapMayMove, 0).Err(EINVAL)
		}
		r.WantLayout("0+2 rw-p")
	}},
	{Name: "border/mremap-of-huge-pages", Rows: []string{"B.12.17", "B.13.4"}, Memory: huge, Since: "6.18", run: func(c *C) {
		p := c.Process()
		r := p.Map(2)
		to := p.place(r.Page()).Start
		// Lengths are rounded, and may be none then.
		for _, n := range []uint64{0, wraps, largest, half, ^uint64(r.Start) + 1} {
			p.Begin(Mremap, r.Start, n, r.Page(), 0, 0).Err(EINVAL)
		}
		p.Begin(Mremap, r.Start, r.Page(), wraps, 0, 0).Err(EINVAL)
		// A start within a page is refused, and a new place there too.
		p.Begin(Mremap, r.At(1)+mem.PageSize, r.Page(), r.Page(), 0, 0).Err(EINVAL)
		p.Begin(Mremap, r.Start, r.Page(), r.Page(), MremapMayMove|MremapFixed, to+mem.PageSize).Err(EINVAL)
		r.WantLayout("0+2 rw-p")
	}},
	{Name: "border/ranges", Rows: []string{"B.12.17", "B.13.5", "B.13.6"}, Memory: small, Since: "6.18", run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(3)
		u.Watch(r.Range, missing)
		for _, n := range []uint64{0, half, wraps, largest} {
			p.Begin(Munmap, r.Start, n).Err(EINVAL)
		}
		p.Begin(Munmap, r.Start+1, r.Page()).Err(EINVAL)
		p.Begin(Munmap, half, r.Page()).Err(EINVAL)
		p.Begin(Munmap, wraps, r.Page()).Err(EINVAL)
		for _, n := range []uint64{wraps, largest} {
			p.Begin(Madvise, r.Start, n, MadvDontneed).Err(EINVAL)
			p.Begin(Mprotect, r.Start, n, ProtRead).Err(ENOMEM)
		}
		// Locks round the end, not the length: this one is none.
		p.Do(Mlock2, r.Start, largest, MlockOnFault)
		p.Begin(Mlock2, r.Start, wraps, MlockOnFault).Err(EINVAL)
		p.Begin(Munlock, r.Start, wraps).Err(EINVAL)
		p.Begin(Madvise, r.Start, 0, 99).Err(EINVAL)
		p.Begin(Madvise, r.Start+1, 0, MadvDontneed).Err(EINVAL)
		p.Begin(Madvise, half, r.Page(), MadvDontneed).Err(ENOMEM)
		p.Begin(Mprotect, half, r.Page(), ProtRead).Err(ENOMEM)
		vec := p.scratch(16)
		p.Begin(Mincore, r.Start, wraps, vec).Err(ENOMEM)
		p.Begin(Mincore, r.Start, 0, half).Err(EFAULT)
		p.Begin(Mincore, r.End, r.Page(), half).Err(EFAULT)
		p.Begin(Mincore, r.Start+1, 0, half).Err(EINVAL)
		r.WantLayout("0+3 rw-p um")
		u.Quiet()
	}},
	{Name: "border/mprotect", Rows: []string{"B.12.17"}, Memory: small, Since: "6.18", run: func(c *C) {
		const unknown = 1 << 20
		p := c.Process()
		r := p.Map(3)
		// Of no length any protection will do, and a length that wraps is
		// found out first.
		p.Do(Mprotect, r.Start, 0, unknown)
		p.Begin(Mprotect, r.Start+1, 0, unknown).Err(EINVAL)
		p.Begin(Mprotect, r.Start, wraps, unknown).Err(ENOMEM)
		p.Begin(Mprotect, r.Start, r.Page(), unknown).Err(EINVAL)
		p.Begin(Mprotect, r.End, r.Page(), unknown).Err(EINVAL)
		p.Do(Mprotect, r.Start, r.Page(), ProtRead|ProtSem)
		// What comes before the first hole is done.
		p.Begin(Mprotect, r.At(2), beyond, ProtNone).Err(ENOMEM)
		r.WantLayout("0+1 r--p, 1+1 rw-p, 2+1 ---p")
	}},
	{Name: "border/mmap", Rows: []string{"B.12.17"}, Since: "6.18", run: func(c *C) {
		p := c.Process()
		at := p.place(mem.PageSize).Start
		mmap := func(a any, n uint64, flags int, off uint64) *Pending {
			return p.Begin(Mmap, a, n, ProtRead, MapPrivate|MapAnonymous|flags, none, off)
		}
		mmap(at, 0, 0, 0).Err(EINVAL)
		mmap(at, mem.PageSize, 0, 1).Err(EINVAL)
		for _, n := range []uint64{beyond, half, wraps, largest} {
			mmap(at, n, 0, 0).Err(ENOMEM)
			mmap(at+1, n, MapFixed, 0).Err(ENOMEM) // before the place is looked at
		}
		mmap(at+1, mem.PageSize, MapFixed, 0).Err(EINVAL)
		mmap(at+1, mem.PageSize, MapFixedNoReplace, 0).Err(EINVAL)
		mmap(half, mem.PageSize, MapFixed, 0).Err(ENOMEM)
		mmap(half+1, mem.PageSize, MapFixedNoReplace, 0).Err(ENOMEM)
		mmap(wraps, mem.PageSize, MapFixed, 0).Err(ENOMEM)
		// An address in the last page is taken for an errno.
		for _, errno := range []Errno{EPERM, EAGAIN, EBUSY} {
			mmap(^uint64(errno)+1, mem.PageSize, MapFixedNoReplace, 0).Err(errno)
		}
		// It has no offset that could be too large.
		mmap(at, mem.PageSize, MapFixed, wraps).Value(at)
	}},
	{Name: "border/mmap-flags", Rows: []string{"B.12.17"}, Since: "6.18", run: func(c *C) {
		// Flags that nobody knows are ignored, but by the type of mapping
		// that was made to refuse them.
		const unknown = 1 << 31
		p := c.Process()
		fd := p.Do(MemfdCreate, 0)
		p.Do(Ftruncate, fd, mem.PageSize)
		mmap := func(flags int, fd uint64) *Pending {
			return p.Begin(Mmap, 0, mem.PageSize, ProtRead|ProtWrite, flags, fd, 0)
		}
		for _, flags := range []int{1 << 27, unknown, 21 << 26} {
			p.Do(Mmap, 0, mem.PageSize, ProtRead, MapPrivate|MapAnonymous|flags, none, 0)
			p.Do(Mmap, 0, mem.PageSize, ProtRead, MapShared|MapAnonymous|flags, none, 0)
			p.Do(Mmap, 0, mem.PageSize, ProtRead, MapShared|flags, fd, 0)
		}
		p.Do(Mmap, 0, mem.PageSize, ProtRead, MapSharedValidate|1<<27, fd, 0)
		mmap(MapSharedValidate|unknown, fd).Err(EOPNOTSUPP)
		mmap(MapSharedValidate|MapFixedNoReplace, fd).Err(EOPNOTSUPP)
		mmap(MapSharedValidate|MapAnonymous, none).Err(EINVAL)
		for _, kind := range []int{0, 4, 5, 9, 15} {
			mmap(kind, fd).Err(EINVAL)
			mmap(kind|MapAnonymous, none).Err(EINVAL)
		}
		for _, kind := range []int{MapShared, MapPrivate} {
			mmap(kind|MapGrowsDown, fd).Err(EINVAL)
			mmap(kind|MapHugetlb, fd).Err(EINVAL)
		}
		mmap(MapShared|MapGrowsDown|MapAnonymous, none).Err(EINVAL)
		mmap(MapPrivate, largest).Err(EBADF)
		// A size of huge pages that nobody has.
		mmap(MapPrivate|MapAnonymous|MapHugetlb|12<<26, none).Err(EINVAL)
	}},
	{Name: "border/mmap-huge-size", Rows: []string{"B.12.17"}, Since: "6.18", run: func(c *C) {
		if err := c.backend.Huge(1); err != nil {
			c.Skipf("%v", err)
		}
		p := c.Process()
		r := p.place(2 << 20)
		const flags = MapPrivate | MapAnonymous | MapHugetlb | MapFixedNoReplace
		p.Do(Mmap, r.Start, r.Len(), ProtRead, flags|21<<26, none, 0)
		p.Sees(r.Start, 0)
		p.Do(Munmap, r.Start, r.Len())
		// Rounded up to whole pages, the first is none.
		p.Begin(Mmap, r.Start, largest, ProtRead, flags, none, 0).Err(EINVAL)
		p.Begin(Mmap, r.Start, beyond, ProtRead, flags, none, 0).Err(ENOMEM)
		p.Begin(Mmap, r.Start+mem.PageSize, 1, ProtRead, flags, none, 0).Err(EINVAL)
		p.Begin(Mmap, r.Start, 1, ProtRead, flags, none, mem.PageSize).Err(EINVAL)
		p.Begin(Mmap, r.Start, 1, ProtRead, flags, none, half).Err(EOVERFLOW)
		// More of them than there is memory.
		p.Begin(Mmap, r.Start, uint64(1)<<45, ProtRead, flags, none, 0).Err(ENOMEM)
	}},
	{Name: "border/file-size", Rows: []string{"B.12.17"}, Memory: files, Since: "6.18", run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		u.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
		p.Puts(r.Alias().At(1), 'f')
		page, end := r.Page(), half-r.Page()
		for _, n := range []uint64{half, wraps, largest} {
			p.Begin(Ftruncate, r.fd, n).Err(EINVAL)
			p.Begin(Ftruncate, none, n).Err(EINVAL) // before the file is looked for
		}
		p.Begin(Ftruncate, u.fd, 0).Err(EINVAL)
		const punch = FallocPunchHole | FallocKeepSize
		fallocate := func(mode int, off, n uint64, want Errno) {
			p.Begin(Fallocate, r.fd, mode, off, n).Err(want)
		}
		fallocate(punch, 0, 0, EINVAL)
		fallocate(punch, largest, 1, EINVAL)
		fallocate(punch, 0, half, EINVAL)
		fallocate(punch, beyond, beyond, EFBIG)
		fallocate(punch, end, page, EFBIG)
		fallocate(FallocPunchHole, 0, half, EINVAL)
		fallocate(FallocPunchHole, 0, page, EOPNOTSUPP)
		fallocate(FallocPunchHole, beyond, beyond, EOPNOTSUPP)
		p.Begin(Fallocate, none, punch, 0, 0).Err(EBADF)
		p.Begin(Fallocate, u.fd, punch, beyond, beyond).Err(EBADF) // it cannot be written
		// None of it has dropped a page.
		p.Sees(r.At(0), 'a')
		p.Sees(r.Alias().At(1), 'f')
		// The last page of the largest file has no number, and cannot be mapped.
		flags := MapShared
		if c.Memory.Huge() {
			flags |= MapNoReserve // or it would want the page
		}
		mmap := func(off, n uint64) *Pending { return p.Begin(Mmap, 0, n, ProtRead, flags, r.fd, off) }
		for _, off := range []uint64{end, half, ^page + 1} {
			mmap(off, page).Err(EOVERFLOW)
			mmap(off, 2*page).Err(EOVERFLOW)
		}
		mmap(end-page, 2*page).Err(EOVERFLOW)
		Is(c, "errno of the last that can be", mmap(end-page, page).Done().Errno, OK)
		p.Do(Ftruncate, r.fd, end)
		u.Quiet()
	}},
	{Name: "border/hole-within-first-page", Rows: []string{"B.12.17"}, Memory: shmem, Since: "6.18", run: func(c *C) {
		// Behind a hole that ends there all pages are unmapped, and stay in
		// the file.
		p := c.Process()
		r := p.Map(4)
		for i := range 4 {
			p.Puts(r.At(i)+8, 'a'+byte(i))
		}
		there := func() string {
			var b []byte
			for i := range 4 {
				b = append(b, '0'+byte(r.Pagemap(i)>>63))
			}
			return string(b)
		}
		const punch = FallocPunchHole | FallocKeepSize
		p.Do(Fallocate, r.fd, punch, r.Page()+1, 1)
		Is(c, "pages after a hole in the second", there(), "1111")
		p.Do(Fallocate, r.fd, punch, 1, 1)
		Is(c, "pages after one in the first", there(), "1000")
		for i := range 4 {
			p.Sees(r.At(i)+8, 'a'+byte(i))
		}
	}},
	{Name: "border/self-mem", Rows: []string{"B.12.17", "B.3.7"}, Since: "6.18", run: func(c *C) {
		// Positions are addresses, all of them; a negative one that is small
		// cannot be told from an errno.
		p := c.Process()
		fd, buf := p.Do(OpenSelfMem, ORdwr), p.scratch(32)
		seek := func(a uint64) *Pending { return p.Begin(Lseek, fd, a, SeekSet) }
		seek(half).Value(half)
		p.Begin(Read, fd, buf, 8).Err(EIO)
		seek(wraps).Value(wraps)
		seek(^uint64(EFAULT) + 1).Err(EFAULT)
		p.Begin(Read, fd, buf, 8).Err(EIO)
		p.Begin(Read, fd, buf, 32).Err(EOVERFLOW)
		p.Begin(Write, fd, buf, 32).Err(EOVERFLOW)
		p.Begin(Pread, fd, buf, 8, largest).Err(EINVAL)
		p.Begin(Pread, fd, buf, beyond, buf).Err(EFAULT)
		p.Begin(Pread, none, buf, 8, largest).Err(EINVAL)
		p.Do(Ftruncate, fd, mem.PageSize)
		p.Begin(Ftruncate, fd, uint64(1)<<31).Err(EFBIG)
	}},
	{Name: "border/grows-down", Rows: []string{"B.12.18"}, Since: "6.18", run: func(c *C) {
		const limit = 8 << 20
		p := c.Process()
		p.Do(SetStack, limit)
		room := p.place(64 << 20)
		top := mem.MakeRange(room.End-mem.PageSize, mem.PageSize)
		p.Do(Mmap, top.Start, top.Len(), ProtRead|ProtWrite, MapPrivate|MapAnonymous|MapGrowsDown|MapFixed, none, 0)
		layout := func() string {
			vmas, err := p.p.Maps(room)
			c.Must(err)
			return fmt.Sprint(len(vmas), vmas[0].Range)
		}
		p.Load(top.End - 2*limit).Segv(SegvMapErr)
		p.Load(top.End - limit - 1).Segv(SegvMapErr)
		// Who only looks a page up does not make memory grow, a copy does.
		p.Begin(Madvise, top.Start-mem.PageSize, mem.PageSize, MadvPopulateRead).Err(ENOMEM)
		p.Begin(ProcessVMRead, p.p.PID(), p.scratch(8), top.Start-mem.PageSize, 8).Err(EFAULT)
		Is(c, "layout before", layout(), fmt.Sprint(1, top))
		p.Sees(top.End-limit, 0)
		Is(c, "layout then", layout(), fmt.Sprint(1, mem.MakeRange(top.End-limit, limit)))
		p.Store(top.End-limit-1, 1).Segv(SegvMapErr)
		// The limit is of each mapping, and of now.
		p.Do(SetStack, 2*limit)
		p.Puts(top.End-limit-1, 1)
	}},
}
