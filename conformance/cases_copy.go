// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

var copyCases = []Case{
	{Name: "copy/present", Rows: []string{"B.10.12", "C.13"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		p.Puts(r.At(0), 'x')
		u.Watch(r.Range, missing)
		u.Fill(r.Pages(0, 1), 'a').Failed(EEXIST)
		u.Fill(r.Pages(1, 1), 'a').Is(OK, int64(r.Page()))
		u.Fill(r.Pages(1, 1), 'b').Failed(EEXIST)
		r.Has(p.Thread, 1, 'a')
		p.Sees(r.At(0), 'x')
	}},
	{Name: "copy/source", Rows: []string{"B.6.3", "B.6.4", "B.10.14", "C.14"}, Memory: small, Since: "6.12", run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(4)
		n := int64(r.Page())
		u.Watch(r.Range, missing)
		text := bytes.Repeat([]byte("x"), 2*mem.PageSize)
		src := p.put(text) + 3
		u.Copy(r.Pages(0, 1), src, 0).Is(OK, n)
		r.Has(p.Thread, 0, 'x')
		s := p.MapAs(Anon, 2, ProtRead|ProtWrite)
		p.Puts(s.At(0), 's')
		p.Do(Munmap, s.At(1), s.Page())
		u.Copy(r.Pages(1, 1), s.At(1), 0).Failed(EFAULT)
		u.Copy(r.Pages(1, 1), 1<<63, 0).Refused(EINVAL)
		// The second page of two.
		u.Copy(r.Pages(1, 2), s.At(0), 0).Is(EAGAIN, n)
		u.Copy(r.Pages(2, 1), s.At(1), 0).Failed(EFAULT)
		p.Sees(r.At(1), 's')
	}},
	{Name: "copy/source-not-readable", Rows: []string{"B.10.14"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r, s := p.Map(1), p.Map(1)
		u.Watch(r.Range, missing)
		p.Puts(s.Start, 's')
		p.Do(Mprotect, s.Start, s.Len(), ProtNone)
		u.Copy(r.Range, s.Start, 0).Failed(EFAULT)
		p.Do(Mprotect, s.Start, s.Len(), ProtRead)
		u.Copy(r.Range, s.Start, 0).Is(OK, int64(r.Page()))
		p.Sees(r.Start, 's')
	}},
	{Name: "copy/source-faults", Rows: []string{"B.12.6", "C.35"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		a := p.NewThread()
		copying, answer := u.On(a).BeginIoctl(uapi.UFFDIO_COPY,
			uint64(r.At(0)), uint64(r.At(1)), r.Page(), 0, untouched)
		copying.Blocked()
		u.WantFault(r.At(1), readFault)
		u.Fill(r.Pages(1, 1), 's').Is(OK, int64(r.Page()))
		answer().Is(OK, int64(r.Page()))
		r.Has(p.Thread, 0, 's')
	}},
	{Name: "copy/over-markers", Rows: []string{"B.10.21"}, Memory: all,
		Features: uapi.UFFD_FEATURE_WP_UNPOPULATED | uapi.UFFD_FEATURE_WP_HUGETLBFS_SHMEM, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(uapi.UFFD_FEATURE_WP_UNPOPULATED)
			r := p.Map(2)
			u.Watch(r.Range, missing|wp)
			u.Protect(r.Range, uapi.UFFDIO_WRITEPROTECT_MODE_WP).Err(OK)
			r.WantProtected(0, true)
			u.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
			r.WantProtected(0, false)
			p.Puts(r.At(0), 'b')
			u.Copy(r.Pages(1, 1), p.fill('a', r.Page()), uapi.UFFDIO_COPY_MODE_WP).Is(OK, int64(r.Page()))
			r.WantProtected(1, true)
		}},
	{Name: "copy/over-poison", Rows: []string{"B.10.21"}, Memory: all, Features: uapi.UFFD_FEATURE_POISON, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		u.Poison(r.Range, 0).Is(OK, int64(r.Page()))
		// Newer kernels may keep the poison: both are allowed.
		a := u.Fill(r.Range, 'a')
		if a.Errno == EEXIST {
			a.Failed(EEXIST)
			p.Load(r.Start).Poisoned(r.Start)
			return
		}
		a.Is(OK, int64(r.Page()))
		r.Has(p.Thread, 0, 'a')
	}},
	{Name: "copy/page-cache", Rows: []string{"B.10.17"}, Memory: shared, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		alias := r.Alias()
		u.Watch(r.Range, missing)
		u.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
		alias.Has(p.Thread, 0, 'a')
		// A page that is in the file but not mapped here.
		p.Puts(alias.At(1), 'x')
		u.Fill(r.Pages(1, 1), 'a').Failed(EEXIST)
		p.Sees(r.At(1), 'x')
	}},
	{Name: "copy/page-cache-ignored", Rows: []string{"B.10.17"}, Memory: []Memory{PrivateShmem, PrivateHugetlb}, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		alias := r.Alias()
		p.Puts(alias.Start, 'x')
		u.Watch(r.Range, missing)
		u.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		r.Has(p.Thread, 0, 'a')
		p.Sees(alias.Start, 'x')
	}},
	{Name: "copy/beyond-the-file", Rows: []string{"B.10.13"}, Memory: []Memory{Shmem, PrivateShmem}, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing|minor)
		p.Do(Ftruncate, r.fd, r.Page())
		u.Fill(r.Pages(1, 1), 'a').Failed(EFAULT)
		u.Continue(r.Pages(1, 1), 0).Failed(EINVAL)
		u.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
	}},
}

var zeroCases = []Case{
	{Name: "zeropage/fills", Rows: []string{"B.10.18", "D.zeropage"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		t := p.NewThread().Load(r.At(0)).Blocked()
		u.Zero(r.Pages(0, 1), 0).Is(OK, int64(r.Page()))
		t.Value(0)
		u.Zero(r.Pages(0, 1), 0).Failed(EEXIST)
		u.Zero(r.Range, 0).Failed(EEXIST)
		p.Puts(r.At(0), 'a')
		t = p.NewThread().Store(r.At(1), 'b').Blocked()
		u.Zero(r.Pages(1, 1), uapi.UFFDIO_ZEROPAGE_MODE_DONTWAKE).Is(OK, int64(r.Page()))
		t.StillBlocked()
		u.Wake(r.Range).Err(OK)
		t.Value(0)
	}},
	{Name: "zeropage/not-huge", Rows: []string{"B.10.18", "D.zeropage", "C.34"}, Memory: huge, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		u.Zero(r.Range, 0).Failed(EINVAL)
	}},
	{Name: "zeropage/page-cache", Rows: []string{"B.10.18", "D.zeropage"}, Memory: shmem, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		alias := r.Alias()
		u.Watch(r.Range, missing)
		u.Zero(r.Pages(0, 1), 0).Is(OK, int64(r.Page()))
		p.Puts(r.At(0), 'a')
		p.Sees(alias.At(0), 'a')
		p.Puts(alias.At(1), 'x')
		u.Zero(r.Pages(1, 1), 0).Failed(EEXIST)
	}},
	{Name: "zeropage/unprotected", Rows: []string{"B.10.22", "C.33"}, Memory: small,
		Features: uapi.UFFD_FEATURE_WP_HUGETLBFS_SHMEM, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(0)
			r := p.Map(1)
			u.Watch(r.Range, missing|wp)
			u.Zero(r.Range, 0).Is(OK, int64(r.Page()))
			r.WantProtected(0, false)
			p.Puts(r.Start, 'a')
			u.Protect(r.Range, uapi.UFFDIO_WRITEPROTECT_MODE_WP).Err(OK)
			t := p.NewThread().Store(r.Start, 'b').Blocked()
			u.WantFault(r.Start, wpFault)
			u.Protect(r.Range, 0).Err(OK)
			t.Value(0)
		}},
	{Name: "zeropage/over-markers", Rows: []string{"B.10.21"}, Memory: small,
		Features: uapi.UFFD_FEATURE_WP_UNPOPULATED | uapi.UFFD_FEATURE_POISON, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(uapi.UFFD_FEATURE_WP_UNPOPULATED)
			r := p.Map(2)
			u.Watch(r.Range, missing|wp)
			u.Protect(r.Pages(0, 1), uapi.UFFDIO_WRITEPROTECT_MODE_WP).Err(OK)
			u.Poison(r.Pages(0, 1), 0).Failed(EEXIST)
			u.Poison(r.Pages(1, 1), 0).Is(OK, int64(r.Page()))
			u.Poison(r.Pages(1, 1), 0).Failed(EEXIST)
			if c.Memory != Shmem {
				u.Zero(r.Pages(0, 1), 0).Failed(EEXIST)
				u.Zero(r.Pages(1, 1), 0).Failed(EEXIST)
				return
			}
			// The specification does not say that in shared memory it
			// overwrites both, as COPY does.
			u.Zero(r.Pages(0, 1), 0).Is(OK, int64(r.Page()))
			r.WantProtected(0, false)
			a := u.Zero(r.Pages(1, 1), 0)
			if a.Errno != EEXIST { // newer kernels may keep the poison
				a.Is(OK, int64(r.Page()))
				p.Sees(r.At(1), 0)
			}
		}},
}
