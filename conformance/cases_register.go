// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// withoutRoom makes two pages that can be written and two that cannot, and then as many
// mappings as the process may have, so that no more of them can be split.
func (p *Proc) withoutRoom() *Region {
	r := p.MapAs(Anon, 4, ProtRead|ProtWrite)
	p.Do(Mprotect, r.At(2), 2*mem.PageSize, ProtRead)
	const most = 1 << 16 // mappings; Linux has 65530 unless it was told otherwise
	many := p.MapAs(Anon, 2*most, 0)
	for i := range most {
		if p.Call(Mprotect, many.At(2*i+1), mem.PageSize, ProtRead).Errno == ENOMEM {
			// It takes two splits, of which the first may have been had.
			p.Begin(Mprotect, many.At(2*most-1), mem.PageSize, ProtRead).Err(ENOMEM)
			return r
		}
	}
	p.c.Skipf("it may have more than %d mappings (vm.max_map_count)", most)
	return nil
}

// badRanges are refused by everything that takes a range (B.6).
func badRanges(r *Region) []mem.Range {
	page := mem.Addr(mem.PageSize)
	return []mem.Range{
		{Start: r.Start + 1, End: r.Start + 1 + page}, // start not on a page
		{Start: r.Start, End: r.Start + page - 1},     // length not of pages
		{Start: r.Start, End: r.Start},                // empty
		{Start: 1 << 63, End: 1<<63 + page},           // past the end of user memory
		{Start: r.Start, End: r.Start + 1<<63},        // reaching past it
		{Start: -page, End: -page + 2*page},           // wrapping
		{Start: r.Start, End: r.Start - page},         // of negative length
		{Start: -page, End: 0},                        // the last page there is
	}
}

var registerCases = []Case{
	{Name: "range/refused", Rows: []string{"B.6.1", "B.7.3", "B.8.1", "B.10.3", "B.9.1"}, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.MapAs(Anon, 2, ProtRead|ProtWrite)
		for _, bad := range badRanges(r) {
			u.Register(bad, missing).Refused(EINVAL)
			u.Unregister(bad).Err(EINVAL)
			u.Wake(bad).Err(EINVAL)
			u.Zero(bad, 0).Refused(EINVAL)
			u.Copy(bad, r.Start, 0).Refused(EINVAL)
			u.Protect(bad, 0).Err(EINVAL)
			u.Continue(bad, 0).Refused(EINVAL)
			u.Poison(bad, 0).Refused(EINVAL)
			u.Move(bad, r.Start, 0).Refused(EINVAL)
		}
	}},
	{Name: "range/first-page", Rows: []string{"B.6.2", "C.10"}, run: func(c *C) {
		u := c.Process().UFFD(0)
		r := mem.MakeRange(0, mem.PageSize)
		u.Wake(r).Err(OK)
		u.Fill(r, 'a').Failed(ENOENT)
	}},
	{Name: "register/no-room-to-split", Rows: []string{"B.7.11"}, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.withoutRoom()
		// The answer is stored where all went well alone.
		u.Register(r.Pages(0, 3), missing).Refused(ENOMEM)
		r.WantLayout("0+2 rw-p um, 2+2 r--p")
	}},
	{Name: "register/unreadable", Rows: []string{"B.7.1", "B.8.1", "B.9.1", "B.10.2"}, run: func(c *C) {
		u := c.Process().UFFD(0)
		for _, request := range []uint64{uapi.UFFDIO_REGISTER, uapi.UFFDIO_UNREGISTER, uapi.UFFDIO_WAKE,
			uapi.UFFDIO_COPY, uapi.UFFDIO_ZEROPAGE, uapi.UFFDIO_MOVE, uapi.UFFDIO_WRITEPROTECT,
			uapi.UFFDIO_CONTINUE, uapi.UFFDIO_POISON} {
			if c.knows(request) {
				Is(c, requestName(request), u.Raw(request, 0), EFAULT)
			}
		}
	}},
	{Name: "register/modes", Rows: []string{"B.7.2", "B.7.18", "B.2.17", "C.34", "D.register-ioctls"}, Memory: all,
		Features: uapi.UFFD_FEATURE_WP_HUGETLBFS_SHMEM | uapi.UFFD_FEATURE_MINOR_SHMEM, Since: "6.8", run: func(c *C) {
			p := c.Process()
			u := p.UFFD(0)
			r := p.Map(1)
			u.Register(r.Range, 0).Refused(EINVAL)
			u.Register(r.Range, 8).Refused(EINVAL)
			u.Register(r.Range, missing|1<<63).Refused(EINVAL)
			for mode := uapi.RegisterMode(1); mode < 8; mode++ {
				a := u.Register(r.Range, mode)
				if mode&^c.Memory.modes() != 0 {
					a.Refused(EINVAL)
					continue
				}
				a.Is(OK, int64(answerOf(c.Memory, mode)))
				u.Unregister(r.Range).Err(OK)
			}
		}},
	{Name: "register/mode-before-range", Rows: []string{"B.7.2", "B.7.3"}, run: func(c *C) {
		// Both are EINVAL; that the argument is read first shows.
		u := c.Process().UFFD(0)
		Is(c, "REGISTER of nothing", u.Raw(uapi.UFFDIO_REGISTER, 0), EFAULT)
		u.Register(mem.MakeRange(0, 0), 0).Refused(EINVAL)
	}},
	{Name: "register/nothing-there", Rows: []string{"B.7.5", "C.16"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(4)
		hole := mem.MakeRange(r.End, r.Len())
		u.Register(hole, missing).Refused(EINVAL)
		p.Do(Munmap, r.At(1), r.Page())
		u.Register(r.Pages(1, 1), missing).Refused(EINVAL)
		// From the hole, across it, and ending in one.
		u.Watch(r.Pages(1, 2), missing)
		r.WantLayout("0+1 rw-p, 2+1 rw-p um, 3+1 rw-p")
		u.Watch(r.Range, missing)
		u.Watch(mem.Range{Start: r.At(3), End: r.End + mem.Addr(r.Page())}, missing)
	}},
	{Name: "register/huge-alignment", Rows: []string{"B.7.6", "B.7.9"}, Memory: huge, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Register(mem.Range{Start: r.Start + mem.PageSize, End: r.End}, missing).Refused(EINVAL)
		u.Register(mem.Range{Start: r.Start, End: r.End - mem.PageSize}, missing).Refused(EINVAL)
		u.Watch(r.Pages(1, 1), missing)
		r.WantLayout("0+1 rw-p, 1+1 rw-p um")
	}},
	{Name: "register/not-writable-ever", Rows: []string{"B.7.8"}, Memory: shmem, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		// The file opened for reading only: it may be read, never written.
		ro := p.reopenReadOnly(r.fd)
		p.Do(Munmap, r.Start, r.Len())
		p.Do(Mmap, r.Start, r.Len(), ProtRead, MapShared|MapFixed, ro, 0)
		u.Register(r.Range, missing).Refused(EPERM)
		// Reading is enough of a private mapping.
		p.Do(Mmap, r.Start, r.Len(), ProtRead, MapPrivate|MapFixed, ro, 0)
		u.Watch(r.Range, missing)
	}},
	{Name: "register/other-owner", Rows: []string{"B.7.10", "B.7.13", "C.19"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u, other := p.UFFD(0), p.UFFD(0)
		r := p.Map(4)
		other.Watch(r.Pages(1, 1), missing)
		u.Register(r.Pages(1, 1), missing).Refused(EBUSY)
		// All or nothing.
		u.Register(r.Range, missing).Refused(EBUSY)
		r.WantLayout("0+1 rw-p, 1+1 rw-p um, 2+2 rw-p")
		u.Watch(r.Pages(2, 2), missing)
		r.WantLayout("0+1 rw-p, 1+1 rw-p um, 2+2 rw-p um")
	}},
	{Name: "register/first-obstacle-decides", Rows: []string{"B.7.7", "B.7.13"}, Memory: anon, run: func(c *C) {
		p := c.Process()
		u, other := p.UFFD(0), p.UFFD(0)
		r := p.Map(3)
		other.Watch(r.Pages(0, 1), missing)
		p.regularFile(r.At(1))
		u.Register(r.Range, missing).Refused(EBUSY)
		other.Watch(r.Pages(2, 1), missing)
		u.Register(r.Pages(1, 2), missing).Refused(EINVAL)
	}},
	{Name: "register/unwritable-answer", Rows: []string{"B.7.12", "C.21"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		a := p.readOnly(words(uint64(r.Start), r.Len(), uint64(missing), 0))
		Is(c, "REGISTER", u.Raw(uapi.UFFDIO_REGISTER, a), EFAULT)
		r.WantLayout("0+1 rw-p um") // and yet
	}},
	{Name: "register/what-can-be", Rows: []string{"B.7.14"}, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		for _, prot := range []int{ProtNone, ProtRead, ProtRead | ProtWrite} {
			u.Watch(p.MapAs(Anon, 1, prot).Range, missing)
		}
		for _, flags := range []int{MapPrivate | MapAnonymous | MapGrowsDown, MapShared | MapAnonymous} {
			r := p.place(mem.PageSize)
			p.Do(Mmap, r.Start, r.Len(), ProtRead|ProtWrite, flags|MapFixedNoReplace, none, 0)
			u.Watch(r, missing)
		}
		locked := p.MapAs(Anon, 1, ProtRead|ProtWrite)
		p.Do(Mlock, locked.Start, locked.Len())
		u.Watch(locked.Range, missing)
	}},
	{Name: "register/what-cannot-be", Rows: []string{"B.7.15"}, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.MapAs(Anon, 1, ProtRead|ProtWrite)
		p.regularFile(r.Start)
		for _, mode := range []uapi.RegisterMode{missing, wp, missing | wp} {
			u.Register(r.Range, mode).Refused(EINVAL)
		}
		d := p.place(mem.PageSize)
		if p.Call(Mmap, d.Start, d.Len(), ProtRead|ProtWrite, MapDroppable|MapAnonymous|MapFixedNoReplace, none, 0).Errno == OK {
			u.Register(d, missing).Refused(EINVAL)
		}
	}},
	{Name: "register/regular-file-asynchronous", Rows: []string{"B.7.16"}, Features: uapi.UFFD_FEATURE_WP_ASYNC, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(uapi.UFFD_FEATURE_WP_ASYNC)
		r := p.MapAs(Anon, 1, ProtRead|ProtWrite)
		p.regularFile(r.Start)
		u.Watch(r.Range, wp)
		Is(c, "layout", r.Layout(), "0+1 rw-s uw")
		u.Unregister(r.Range).Err(OK)
		u.Register(r.Range, missing|wp).Refused(EINVAL)
	}},
	{Name: "register/replaces-the-mode", Rows: []string{"B.7.17", "C.19"}, Memory: all,
		Features: uapi.UFFD_FEATURE_WP_HUGETLBFS_SHMEM, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(0)
			r := p.Map(1)
			for _, step := range []struct {
				mode uapi.RegisterMode
				want string
			}{
				{missing, "um"}, {wp, "uw"}, {missing | wp, "um uw"}, {missing, "um uw"}, {wp, "um uw"},
			} {
				u.Watch(r.Range, step.mode)
				r.WantLayout("0+1 rw-p " + step.want)
			}
			if c.Memory.File() {
				u.Watch(r.Range, minor)
				r.WantLayout("0+1 rw-p ui")
			}
		}},
	{Name: "register/replacing-wakes-nobody", Rows: []string{"B.7.17"}, Memory: all,
		Features: uapi.UFFD_FEATURE_WP_HUGETLBFS_SHMEM, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(0)
			r := p.Map(1)
			u.Watch(r.Range, missing)
			t := p.NewThread().Load(r.Start).Blocked()
			u.Watch(r.Range, wp)
			t.StillBlocked()
			u.Wake(r.Range).Err(OK)
			t.Value(0)
		}},
	{Name: "register/splits-and-merges", Rows: []string{"B.7.19", "C.17"}, Memory: small,
		Features: uapi.UFFD_FEATURE_WP_HUGETLBFS_SHMEM, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(0)
			r := p.Map(4)
			u.Watch(r.Pages(0, 1), missing)
			r.WantLayout("0+1 rw-p um, 1+3 rw-p")
			u.Watch(r.Pages(2, 1), missing)
			r.WantLayout("0+1 rw-p um, 1+1 rw-p, 2+1 rw-p um, 3+1 rw-p")
			u.Watch(r.Pages(1, 1), missing)
			r.WantLayout("0+3 rw-p um, 3+1 rw-p")
			u.Watch(r.Pages(1, 2), missing|wp)
			r.WantLayout("0+1 rw-p um, 1+2 rw-p um uw, 3+1 rw-p")
			u.Unregister(r.Range).Err(OK)
			r.WantLayout("0+4 rw-p")
		}},
	{Name: "register/huge-mappings-do-not-merge", Rows: []string{"B.7.19"}, Memory: huge, run: func(c *C) {
		// Not said by the specification: what was split stays split.
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(3)
		u.Watch(r.Pages(1, 1), missing)
		r.WantLayout("0+1 rw-p, 1+1 rw-p um, 2+1 rw-p")
		u.Unregister(r.Range).Err(OK)
		r.WantLayout("0+1 rw-p, 1+1 rw-p, 2+1 rw-p")
	}},
	{Name: "register/owners-do-not-merge", Rows: []string{"B.7.19"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u, other := p.UFFD(0), p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Pages(0, 1), missing)
		other.Watch(r.Pages(1, 1), missing)
		r.WantLayout("0+1 rw-p um, 1+1 rw-p um")
	}},
}

// answerOf returns what may be done with a registered range.
func answerOf(m Memory, mode uapi.RegisterMode) uapi.Ioctls {
	a := uapi.UFFDIO_BIT_WAKE | uapi.UFFDIO_BIT_COPY | uapi.UFFDIO_BIT_POISON
	if !m.Huge() {
		a |= uapi.UFFDIO_BIT_ZEROPAGE | uapi.UFFDIO_BIT_MOVE
	}
	if mode&wp != 0 {
		a |= uapi.UFFDIO_BIT_WRITEPROTECT
	}
	if mode&minor != 0 {
		a |= uapi.UFFDIO_BIT_CONTINUE
	}
	return a
}

// knows reports whether the kernel has a request at all.
func (c *C) knows(request uint64) bool {
	switch request {
	case uapi.UFFDIO_MOVE:
		return c.has.Has(uapi.UFFD_FEATURE_MOVE)
	case uapi.UFFDIO_POISON:
		return c.has.Has(uapi.UFFD_FEATURE_POISON)
	}
	return true
}

// regularFile maps a page of a regular file, shared, at a.
func (p *Proc) regularFile(a mem.Addr) {
	fd := p.Do(OpenFile)
	p.Do(Ftruncate, fd, mem.PageSize)
	p.Do(Mmap, a, mem.PageSize, ProtRead|ProtWrite, MapShared|MapFixed, fd, 0)
}

// readOnly returns the address of b in memory that cannot be written.
func (p *Proc) readOnly(b []byte) mem.Addr {
	r := p.MapAs(Anon, 1, ProtRead|ProtWrite)
	for i := 0; i+8 <= len(b); i += 8 {
		p.Do(Store64, r.Start+mem.Addr(i), le64(b[i:]))
	}
	p.Do(Mprotect, r.Start, r.Len(), ProtRead)
	return r.Start
}

// reopenReadOnly opens the file behind fd once more, for reading.
func (p *Proc) reopenReadOnly(fd uint64) uint64 {
	return p.Do(Reopen, fd, ORdonly)
}
