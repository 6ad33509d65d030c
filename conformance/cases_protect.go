// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

const (
	protect = uapi.UFFDIO_WRITEPROTECT_MODE_WP
	wpAny   = uapi.UFFD_FEATURE_WP_HUGETLBFS_SHMEM
)

var protectCases = []Case{
	{Name: "writeprotect/faults", Rows: []string{"B.10.W6", "B.1.5", "B.2.0"}, Memory: all, Features: wpAny, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		p.Puts(r.At(0), 'a')
		p.Puts(r.At(1), 'a')
		u.Watch(r.Range, wp)
		u.Protect(r.Range, protect).Err(OK)
		p.Sees(r.At(0), 'a') // reading is allowed
		t := p.NewThread().Store(r.At(0), 'b').Blocked()
		u.WantFault(r.At(0), wpFault)
		u.Protect(r.Range, protect).Err(OK) // never wakes
		t.StillBlocked()
		u.Protect(r.Pages(0, 1), uapi.UFFDIO_WRITEPROTECT_MODE_DONTWAKE).Err(OK)
		t.StillBlocked()
		u.Wake(r.Pages(0, 1)).Err(OK)
		t.Value(0)
		t = p.NewThread().Store(r.At(1), 'b').Blocked()
		u.WantFault(r.At(1), wpFault)
		u.Protect(r.Pages(1, 1), 0).Err(OK)
		t.Value(0)
		u.Quiet()
	}},
	{Name: "writeprotect/checks", Rows: []string{"B.10.W1", "B.10.W2", "B.10.W3"}, Memory: all, Features: wpAny, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Pages(0, 1), missing)
		u.Protect(r.Pages(0, 1), 4).Err(EINVAL)
		u.Protect(r.Pages(0, 1), protect|uapi.UFFDIO_WRITEPROTECT_MODE_DONTWAKE).Err(EINVAL)
		u.Protect(r.Pages(0, 1), protect).Err(ENOENT) // not for that
		u.Protect(r.Pages(1, 1), protect).Err(ENOENT)
		u.Protect(mem.MakeRange(r.End, r.Page()), protect).Err(ENOENT)
	}},
	{Name: "writeprotect/stops-at-the-first", Rows: []string{"B.10.W4"}, Memory: all, Since: "6.12", Features: wpAny, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(4)
		for i := range 4 {
			p.Puts(r.At(i), 'a')
		}
		u.Watch(r.Pages(0, 2), wp)
		u.Watch(r.Pages(3, 1), wp)
		u.Protect(r.Range, protect).Err(ENOENT)
		for i, want := range []bool{true, true, false, false} {
			r.WantProtected(i, want)
		}
		// A hole is no obstacle.
		p.Do(Munmap, r.At(2), r.Page())
		u.Protect(r.Range, protect).Err(OK)
		r.WantProtected(3, true)
	}},
	{Name: "writeprotect/unpopulated-anon", Rows: []string{"B.10.W7", "D.wp-unpopulated"}, Memory: anon,
		Features: uapi.UFFD_FEATURE_WP_UNPOPULATED, run: func(c *C) {
			p := c.Process()
			r := p.Map(1)
			u := p.UFFD(0)
			u.Watch(r.Range, wp)
			u.Protect(r.Range, protect).Err(OK)
			r.WantProtected(0, false)
			p.Puts(r.Start, 'a')
			u.Close()
			p.Do(Madvise, r.Start, r.Len(), MadvDontneed)
			u = p.UFFD(uapi.UFFD_FEATURE_WP_UNPOPULATED)
			u.Watch(r.Range, wp)
			u.Protect(r.Range, protect).Err(OK)
			r.WantProtected(0, true)
			u.Protect(r.Range, 0).Err(OK)
			r.WantProtected(0, false)
			u.Protect(r.Range, protect).Err(OK)
			p.Do(Madvise, r.Start, r.Len(), MadvDontneed)
			r.WantProtected(0, false)
			p.Puts(r.Start, 'a')
			r.WantProtected(0, false)
			// Reading where a marker is gives a protected page of zeros.
			p.Do(Madvise, r.Start, r.Len(), MadvDontneed)
			u.Protect(r.Range, protect).Err(OK)
			p.Sees(r.Start, 0)
			r.WantProtected(0, true)
		}},
	{Name: "writeprotect/unpopulated-file", Rows: []string{"B.10.W7"}, Memory: files, Features: wpAny, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, wp)
		u.Protect(r.Range, protect).Err(OK)
		r.WantProtected(0, true)
		t := p.NewThread().Store(r.Start, 'a').Blocked()
		u.WantFault(r.Start, wpFault)
		u.Protect(r.Range, 0).Err(OK)
		t.Value(0)
		r.WantProtected(0, false)
	}},
	{Name: "writeprotect/marker-is-missing", Rows: []string{"B.10.W8"}, Memory: all,
		Features: wpAny | uapi.UFFD_FEATURE_WP_UNPOPULATED, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(uapi.UFFD_FEATURE_WP_UNPOPULATED)
			r := p.Map(2)
			u.Watch(r.Range, missing|wp)
			u.Protect(r.Range, protect).Err(OK)
			read := p.NewThread().Load(r.At(0)).Blocked()
			u.WantFault(r.At(0), readFault)
			write := p.NewThread().Store(r.At(1), 'b').Blocked()
			u.WantFault(r.At(1), writeFault)
			u.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
			u.Fill(r.Pages(1, 1), 'a').Is(OK, int64(r.Page()))
			read.Value('a')
			write.Value(0)
		}},
	{Name: "writeprotect/survives-mprotect", Rows: []string{"B.10.W9"}, Memory: all, Features: wpAny, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		p.Puts(r.Start, 'a')
		u.Watch(r.Range, wp)
		u.Protect(r.Range, protect).Err(OK)
		p.Do(Mprotect, r.Start, r.Len(), ProtRead)
		p.Store(r.Start, 'b').Segv(SegvAccErr)
		p.Do(Mprotect, r.Start, r.Len(), ProtRead|ProtWrite)
		r.WantProtected(0, true)
		t := p.NewThread().Store(r.Start, 'b').Blocked()
		u.WantFault(r.Start, wpFault)
		u.Protect(r.Range, 0).Err(OK)
		t.Value(0)
	}},
	{Name: "writeprotect/lifted-in-part", Rows: []string{"B.10.W6"}, Memory: all, Features: wpAny, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(3)
		for i := range 3 {
			p.Puts(r.At(i), 'a')
		}
		u.Watch(r.Range, wp)
		u.Protect(r.Range, protect).Err(OK)
		u.Protect(r.Pages(1, 1), 0).Err(OK)
		r.WantProtected(0, true)
		p.Puts(r.At(1), 'b')
		r.WantProtected(2, true)
	}},
	{Name: "writeprotect/thp", Rows: []string{"B.10.W9"}, Memory: anon, run: func(c *C) {
		// Protecting a part of a transparent huge page, be it one or not,
		// leaves the others alone.
		p := c.Process()
		u := p.UFFD(0)
		r := p.MapAs(Anon, 1024, ProtRead|ProtWrite)
		p.Call(Madvise, r.Start, r.Len(), MadvHugepage)
		p.Puts(r.At(1), 'a')
		p.Puts(r.At(2), 'a')
		u.Watch(r.Range, wp)
		u.Protect(r.Pages(1, 1), protect).Err(OK)
		r.WantProtected(1, true)
		r.WantProtected(2, false)
		p.Puts(r.At(2), 'b')
		p.NewThread().Store(r.At(1), 'b').Blocked()
		u.WantFault(r.At(1), wpFault)
	}},
	{Name: "writeprotect/mremap", Rows: []string{"B.13.4", "D.uffd-wp-mremap"}, Memory: all, Since: "6.12", Features: wpAny, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		p.Puts(r.At(0), 'a')
		p.Puts(r.At(1), 'b')
		u.Watch(r.Range, wp)
		u.Protect(r.Range, protect).Err(OK)
		to := &Region{c: c, proc: p, Memory: r.Memory, fd: r.fd, flags: r.flags, Range: p.place(r.Len())}
		p.Do(Mremap, r.Start, r.Len(), r.Len(), MremapMayMove|MremapFixed, to.Start)
		to.WantLayout("0+2 rw-p")
		to.WantProtected(0, false)
		to.WantProtected(1, false)
		p.Puts(to.At(1), 'c')
	}},
}
