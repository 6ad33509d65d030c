// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

var unregisterCases = []Case{
	{Name: "unregister/nothing-there", Rows: []string{"B.8.3", "C.18"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(3)
		u.Unregister(mem.MakeRange(r.End, r.Len())).Err(EINVAL)
		u.Watch(r.Range, missing)
		p.Do(Munmap, r.At(1), r.Page())
		u.Unregister(r.Pages(1, 1)).Err(EINVAL)
		u.Unregister(r.Range).Err(OK)
		r.WantLayout("0+1 rw-p, 2+1 rw-p")
	}},
	{Name: "unregister/twice", Rows: []string{"B.8.6", "C.18"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Unregister(r.Range).Err(OK)
		u.Watch(r.Pages(0, 1), missing)
		u.Unregister(r.Range).Err(OK)
		u.Unregister(r.Range).Err(OK)
		want := "0+2 rw-p"
		if c.Memory.Huge() { // which never merges
			want = "0+1 rw-p, 1+1 rw-p"
		}
		r.WantLayout(want)
	}},
	{Name: "unregister/huge-alignment", Rows: []string{"B.8.4"}, Memory: huge, run: func(c *C) {
		// The end is checked too, of which the specification was not sure.
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		u.Unregister(mem.Range{Start: r.Start + mem.PageSize, End: r.End}).Err(EINVAL)
		u.Unregister(mem.Range{Start: r.Start, End: r.End - mem.PageSize}).Err(EINVAL)
		r.WantLayout("0+2 rw-p um")
	}},
	{Name: "unregister/other-owner", Rows: []string{"B.8.5", "C.18"}, Memory: all, Since: "6.18", run: func(c *C) {
		p := c.Process()
		u, other := p.UFFD(0), p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		other.Unregister(r.Range).Err(EINVAL)
		other.Unregister(r.Pages(0, 1)).Err(EINVAL)
		r.WantLayout("0+2 rw-p um")
	}},
	{Name: "unregister/unsuitable", Rows: []string{"B.8.5"}, Memory: anon, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Pages(0, 1), missing)
		p.regularFile(r.At(1))
		u.Unregister(r.Range).Err(EINVAL)
		u.Unregister(r.Pages(0, 1)).Err(OK)
	}},
	{Name: "unregister/clears-protection", Rows: []string{"B.8.7"}, Memory: all,
		Features: uapi.UFFD_FEATURE_WP_HUGETLBFS_SHMEM, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(0)
			r := p.Map(1)
			p.Puts(r.Start, 'a')
			u.Watch(r.Range, wp)
			u.Protect(r.Range, uapi.UFFDIO_WRITEPROTECT_MODE_WP).Err(OK)
			r.WantProtected(0, true)
			u.Unregister(r.Range).Err(OK)
			r.WantProtected(0, false)
			p.Puts(r.Start, 'b')
		}},
	{Name: "unregister/wakes-the-missing", Rows: []string{"B.8.8", "C.22"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		unread := p.NewThread().Load(r.At(0)).Blocked()
		read := p.NewThread().Store(r.At(1), 'x')
		read.Blocked()
		u.Next()
		u.Unregister(r.Range).Err(OK)
		unread.Value(0)
		read.Value(0)
		p.Sees(r.At(1), 'x')
	}},
	{Name: "unregister/leaves-others-asleep", Rows: []string{"B.8.8", "C.22"}, Memory: all,
		Features: uapi.UFFD_FEATURE_WP_HUGETLBFS_SHMEM, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(0)
			r := p.Map(1)
			p.Puts(r.Start, 'a')
			u.Watch(r.Range, wp)
			u.Protect(r.Range, uapi.UFFDIO_WRITEPROTECT_MODE_WP).Err(OK)
			t := p.NewThread().Store(r.Start, 'b').Blocked()
			u.Unregister(r.Range).Err(OK)
			t.StillBlocked()
			u.Wake(r.Range).Err(OK)
			t.Value(0)
			p.Sees(r.Start, 'b')
		}},
	{Name: "unregister/leaves-minor-asleep", Rows: []string{"B.8.8"}, Memory: shared,
		Features: uapi.UFFD_FEATURE_MINOR_SHMEM | uapi.UFFD_FEATURE_MINOR_HUGETLBFS, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(0)
			r := p.Map(1)
			p.Puts(r.Alias().Start, 'a')
			u.Watch(r.Range, minor)
			t := p.NewThread().Load(r.Start).Blocked()
			u.Unregister(r.Range).Err(OK)
			t.StillBlocked()
			u.Wake(r.Range).Err(OK)
			t.Value('a')
		}},
	{Name: "unregister/keeps-poison", Rows: []string{"B.8.9"}, Memory: all, Features: uapi.UFFD_FEATURE_POISON, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		u.Poison(r.Range, 0).Is(OK, int64(r.Page()))
		u.Unregister(r.Range).Err(OK)
		p.Load(r.Start).Poisoned(r.Start)
	}},
}
