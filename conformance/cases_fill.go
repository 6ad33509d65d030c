// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// frameCases are about what all ioctls that fill have in common.
var frameCases = []Case{
	{Name: "fill/changing-first", Rows: []string{"B.10.1", "B.13.2", "D.mmap-changing"}, Memory: small, Since: "6.12",
		Features: uapi.UFFD_FEATURE_EVENT_REMOVE, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(uapi.UFFD_FEATURE_EVENT_REMOVE)
			r := p.Map(2)
			p.Puts(r.Start, 'a')
			u.Watch(r.Range, missing|wp)
			dropping := p.NewThread().Begin(Madvise, r.Start, r.Page(), MadvDontneed).InEvent()
			// Before anything is looked at: zeros, nonsense, nothing at all.
			for _, request := range []uint64{uapi.UFFDIO_COPY, uapi.UFFDIO_ZEROPAGE, uapi.UFFDIO_MOVE,
				uapi.UFFDIO_CONTINUE, uapi.UFFDIO_POISON} {
				for _, v := range []uint64{0, ^uint64(0)} {
					u.Ioctl(request, fill(request, v)...).Failed(EAGAIN)
				}
				Is(c, requestName(request), u.Raw(request, 8), EFAULT) // the result has no place
			}
			Is(c, "WRITEPROTECT of nothing", u.Raw(uapi.UFFDIO_WRITEPROTECT, 8), EAGAIN)
			// These go on.
			u.Watch(r.Range, missing|wp)
			u.Wake(r.Range).Err(OK)
			u.WantRange(uapi.UFFD_EVENT_REMOVE, r.Pages(0, 1))
			dropping.Value(0)
			u.Fill(r.Pages(1, 1), 'b').Is(OK, int64(r.Page()))
		}},
	{Name: "fill/checks-leave-the-result", Rows: []string{"B.10.3", "B.10.4"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		bad := mem.Range{Start: r.Start + 1, End: r.End + 1}
		u.Copy(bad, p.fill('a', r.Page()), 0).Refused(EINVAL)
		u.Copy(r.Range, p.fill('a', r.Page()), 4).Refused(EINVAL)
		u.Zero(r.Range, 2).Refused(EINVAL)
		u.Continue(r.Range, 4).Refused(EINVAL)
		u.Poison(r.Range, 2).Refused(EINVAL)
		u.Move(r.Range, r.Start, 4).Refused(EINVAL)
	}},
	{Name: "fill/unwritable-result", Rows: []string{"B.10.6"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		a := p.readOnly(words(uint64(r.Start), uint64(p.fill('a', r.Page())), r.Len(), 0, 0))
		Is(c, "COPY", u.Raw(uapi.UFFDIO_COPY, a), EFAULT)
		r.Has(p.Thread, 0, 'a') // and yet
	}},
	{Name: "fill/unwritable-result-wakes-nobody", Rows: []string{"B.10.6", "B.10.7"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		t := p.NewThread().Load(r.Start).Blocked()
		a := p.readOnly(words(uint64(r.Start), uint64(p.fill('a', r.Page())), r.Len(), 0, 0))
		Is(c, "COPY", u.Raw(uapi.UFFDIO_COPY, a), EFAULT)
		t.StillBlocked()
		u.Wake(r.Range).Err(OK)
		t.Value('a')
	}},
	{Name: "fill/short-count", Rows: []string{"B.10.7", "C.13"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(3)
		n := int64(r.Page())
		u.Watch(r.Range, missing)
		u.Fill(r.Pages(1, 1), 'b').Is(OK, n)
		u.Fill(r.Range, 'a').Is(EAGAIN, n)
		u.Fill(r.Pages(1, 2), 'a').Failed(EEXIST)
		u.Fill(r.Pages(2, 1), 'a').Is(OK, n)
		for i, v := range []byte("aba") {
			r.Has(p.Thread, i, v)
		}
	}},
	{Name: "fill/wakes", Rows: []string{"B.10.7", "C.12"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		// An unread fault is resolved too, and leaves no message.
		t := p.NewThread().Load(r.At(0)).Blocked()
		u.WantQueue(1, 1)
		u.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
		t.Value('a')
		u.Quiet()
		u.WantQueue(0, 0)
		t = p.NewThread().Store(r.At(1), 'b').Blocked()
		u.WantFault(r.At(1), writeFault)
		u.WantQueue(0, 1)
		u.Copy(r.Pages(1, 1), p.fill('a', r.Page()), uapi.UFFDIO_COPY_MODE_DONTWAKE).Is(OK, int64(r.Page()))
		t.StillBlocked()
		u.Wake(r.Pages(1, 1)).Err(OK)
		t.Value(0)
		p.Sees(r.At(1), 'b')
	}},
	{Name: "fill/short-count-wakes-what-is-done", Rows: []string{"B.10.7"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(3)
		u.Watch(r.Range, missing)
		u.Fill(r.Pages(1, 1), 'b').Is(OK, int64(r.Page()))
		first, last := p.NewThread().Load(r.At(0)).Blocked(), p.NewThread().Load(r.At(2)).Blocked()
		u.Fill(r.Range, 'a').Is(EAGAIN, int64(r.Page()))
		first.Value('a')
		last.StillBlocked()
		u.Fill(r.Pages(2, 1), 'c').Is(OK, int64(r.Page()))
		last.Value('c')
	}},
	{Name: "fill/nothing-registered", Rows: []string{"B.10.8", "C.15"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Fill(r.Pages(0, 1), 'a').Failed(ENOENT)
		u.Fill(mem.MakeRange(r.End, r.Page()), 'a').Failed(ENOENT)
		u.Watch(r.Pages(0, 1), missing)
		// Past the mapping's end.
		u.Fill(r.Pages(0, 2), 'a').Failed(ENOENT)
		p.Do(Munmap, r.At(1), r.Page())
		u.Fill(r.Pages(0, 2), 'a').Failed(ENOENT)
		if c.knows(uapi.UFFDIO_POISON) {
			u.Poison(mem.MakeRange(r.End, r.Page()), 0).Failed(ENOENT)
		}
		u.Continue(mem.MakeRange(r.End, r.Page()), 0).Failed(ENOENT)
		u.Zero(mem.MakeRange(r.End, r.Page()), 0).Failed(ENOENT)
	}},
	{Name: "fill/one-mapping-only", Rows: []string{"B.10.16", "C.15"}, Memory: all,
		Features: uapi.UFFD_FEATURE_WP_HUGETLBFS_SHMEM, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(0)
			r := p.Map(2)
			u.Watch(r.Pages(0, 1), missing)
			u.Watch(r.Pages(1, 1), missing|wp)
			u.Fill(r.Range, 'a').Failed(ENOENT)
			u.Watch(r.Range, missing|wp)
			p.Do(Mprotect, r.At(1), r.Page(), ProtRead)
			u.Fill(r.Range, 'a').Failed(ENOENT)
			p.Do(Mprotect, r.At(1), r.Page(), ProtRead|ProtWrite)
			if c.Memory.Huge() { // which never merges
				u.Fill(r.Range, 'a').Failed(ENOENT)
				return
			}
			u.Fill(r.Range, 'a').Is(OK, int64(r.Len()))
		}},
	{Name: "fill/any-protection-any-mode", Rows: []string{"B.10.15"}, Memory: all,
		Features: uapi.UFFD_FEATURE_WP_HUGETLBFS_SHMEM, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(0)
			r := p.Map(1)
			u.Watch(r.Range, wp)
			p.Do(Mprotect, r.Start, r.Len(), ProtNone)
			u.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
			p.Do(Mprotect, r.Start, r.Len(), ProtRead)
			r.Has(p.Thread, 0, 'a')
			if !c.Memory.File() {
				return
			}
			m := p.Map(1)
			u.Watch(m.Range, minor)
			u.Fill(m.Range, 'b').Is(OK, int64(m.Page()))
			m.Has(p.Thread, 0, 'b')
		}},
	{Name: "fill/by-any-descriptor", Rows: []string{"B.10.15", "C.20"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u, other := p.UFFD(0), p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		t := p.NewThread().Load(r.Start).Blocked()
		other.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		t.StillBlocked() // the page is there, but nobody has told
		u.WantFault(r.Start, readFault)
		other.Wake(r.Range).Err(OK)
		t.StillBlocked()
		u.Wake(r.Range).Err(OK)
		t.Value('a')
	}},
	{Name: "fill/by-any-descriptor-small", Rows: []string{"B.10.15", "C.20"}, Memory: small,
		Features: uapi.UFFD_FEATURE_WP_HUGETLBFS_SHMEM | uapi.UFFD_FEATURE_MOVE, run: func(c *C) {
			p := c.Process()
			u, other := p.UFFD(0), p.UFFD(0)
			r := p.Map(2)
			u.Watch(r.Range, missing|wp)
			other.Zero(r.Pages(0, 1), 0).Is(OK, int64(r.Page()))
			other.Protect(r.Pages(0, 1), uapi.UFFDIO_WRITEPROTECT_MODE_WP).Err(OK)
			r.WantProtected(0, true)
			other.Move(r.Pages(1, 1), r.At(0), 0).Failed(EINVAL)
		}},
	{Name: "fill/mode-wp-needs-wp", Rows: []string{"B.10.9"}, Memory: all,
		Features: uapi.UFFD_FEATURE_WP_HUGETLBFS_SHMEM, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(0)
			r := p.Map(1)
			u.Watch(r.Range, missing)
			u.Copy(r.Range, p.fill('a', r.Page()), uapi.UFFDIO_COPY_MODE_WP).Failed(EINVAL)
			u.Watch(r.Range, missing|wp)
			u.Copy(r.Range, p.fill('a', r.Page()), uapi.UFFDIO_COPY_MODE_WP).Is(OK, int64(r.Page()))
			r.WantProtected(0, true)
			t := p.NewThread().Store(r.Start, 'b').Blocked()
			u.WantFault(r.Start, wpFault)
			u.Protect(r.Range, 0).Err(OK)
			t.Value(0)
		}},
	{Name: "fill/huge-pages-as-a-whole", Rows: []string{"B.10.10", "C.34"}, Memory: huge,
		Features: uapi.UFFD_FEATURE_POISON | uapi.UFFD_FEATURE_WP_HUGETLBFS_SHMEM, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(0)
			r := p.Map(1)
			u.Watch(r.Range, missing|wp)
			for _, part := range []mem.Range{
				mem.MakeRange(r.Start, mem.PageSize),
				{Start: r.Start + mem.PageSize, End: r.End},
			} {
				u.Fill(part, 'a').Failed(EINVAL)
				u.Poison(part, 0).Failed(EINVAL)
				u.Continue(part, 0).Failed(EINVAL)
				u.Protect(part, uapi.UFFDIO_WRITEPROTECT_MODE_WP).Err(EINVAL)
			}
			u.Zero(r.Range, 0).Failed(EINVAL)
			u.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		}},
}

// fill returns the argument of a filling ioctl, all words being v.
func fill(request, v uint64) []uint64 {
	n := int(request>>16&0x3fff) / 8
	arg := make([]uint64, n)
	for i := range arg {
		arg[i] = v
	}
	arg[n-1] = untouched
	return arg
}
