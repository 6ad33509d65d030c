// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

var wakeCases = []Case{
	{Name: "wake/nobody", Rows: []string{"B.9.1", "C.10"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Wake(r.Range).Err(OK)
		u.Watch(r.Range, missing)
		u.Wake(r.Range).Err(OK)
		u.Wake(mem.MakeRange(r.End, mem.PageSize)).Err(OK)
	}},
	{Name: "wake/read-and-unread", Rows: []string{"B.9.2", "B.9.4", "C.11"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		// Unread: the thread faults anew, and there is one message.
		t := p.NewThread().Load(r.At(0)).Blocked()
		u.Wake(r.Pages(0, 1)).Err(OK)
		t.Blocked()
		u.WantFault(r.At(0), readFault)
		u.Quiet()
		// Read: it faults anew, and there is another message.
		u.Wake(r.Pages(0, 1)).Err(OK)
		c.Eventually("another message", func() bool { return u.Poll() == PollIn })
		t.Blocked() // the message comes before the sleep
		u.WantFault(r.At(0), readFault)
		u.Quiet()
		// A range beside it does nothing.
		u.Wake(r.Pages(1, 1)).Err(OK)
		t.StillBlocked()
		u.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
		t.Value('a')
	}},
	{Name: "wake/all-of-the-range", Rows: []string{"B.9.2"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		threads := []*Pending{
			p.NewThread().Load(r.At(0)).Blocked(), p.NewThread().Load(r.At(0)).Blocked(),
			p.NewThread().Load(r.At(1)).Blocked(),
		}
		for i := range 2 {
			u.Copy(r.Pages(i, 1), p.fill('a', r.Page()), uapi.UFFDIO_COPY_MODE_DONTWAKE).Is(OK, int64(r.Page()))
		}
		for _, t := range threads {
			t.StillBlocked()
		}
		u.Wake(r.Range).Err(OK)
		for _, t := range threads {
			t.Value('a')
		}
	}},
	{Name: "wake/huge-pages-as-a-whole", Rows: []string{"B.9.3"}, Memory: huge,
		Features: uapi.UFFD_FEATURE_EXACT_ADDRESS, run: func(c *C) {
			p := c.Process()
			r := p.Map(1)
			const off = 5 * mem.PageSize
			sub := mem.MakeRange(r.Start+off, mem.PageSize)
			first := mem.MakeRange(r.Start, mem.PageSize)
			// The address of the message decides: the page's, or the exact one.
			for _, f := range []uapi.Features{0, uapi.UFFD_FEATURE_EXACT_ADDRESS} {
				u := p.UFFD(f)
				u.Watch(r.Range, missing)
				t := p.NewThread().Load(r.Start + off).Blocked()
				u.Copy(r.Range, p.fill('a', r.Page()), uapi.UFFDIO_COPY_MODE_DONTWAKE).Is(OK, int64(r.Page()))
				miss, hit := sub, first
				if f != 0 {
					miss, hit = first, sub
				}
				u.Wake(miss).Err(OK)
				t.StillBlocked()
				u.Wake(hit).Err(OK)
				t.Value('a')
				p.Do(Madvise, r.Start, r.Len(), MadvDontneed)
				if r.fd != none {
					p.Do(Fallocate, r.fd, FallocPunchHole|FallocKeepSize, 0, r.Len())
				}
				u.Close()
			}
		}},
	{Name: "wake/not-by-another-descriptor", Rows: []string{"B.9.2", "C.20"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u, other := p.UFFD(0), p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		t := p.NewThread().Load(r.Start).Blocked()
		u.WantFault(r.Start, readFault)
		other.Wake(r.Range).Err(OK)
		t.StillBlocked()
		u.Wake(r.Range).Err(OK)
		c.Eventually("another message", func() bool { return u.Poll() == PollIn })
		u.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		t.Value('a')
	}},
}
