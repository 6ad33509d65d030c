// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// growing registers one page that is there and locked, with room for two more
// behind it, and file for them.
func (p *Proc) growing(u *UFFD) *Region {
	r := p.Map(3)
	p.Do(Munmap, r.At(1), 2*r.Page())
	u.Watch(r.Pages(0, 1), missing)
	u.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
	p.Do(Mlock, r.Start, r.Page())
	return r
}

// lockFault are the flags of a fault of memory that is brought in: of shared
// memory a lock wants no copy.
func (c *C) lockFault() uapi.FaultFlags {
	if c.Memory == Shmem {
		return readFault
	}
	return writeFault
}

var lockCases = []Case{
	{Name: "lock/grows-in-place", Rows: []string{"B.12.16", "B.12.6", "B.13.4"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.growing(u)
		grow := p.NewThread().Begin(Mremap, r.Start, r.Page(), r.Len(), 0)
		for i := 1; i < 3; i++ {
			grow.Blocked()
			r.WantLayout("0+3 rw-p um") // it has happened
			u.WantFault(r.At(i), c.lockFault())
			u.Fill(r.Pages(i, 1), 'b').Is(OK, int64(r.Page()))
		}
		grow.Value(r.Start)
		r.Has(p.Thread, 2, 'b')
	}},
	{Name: "lock/grows-elsewhere", Rows: []string{"B.12.16", "B.13.2", "B.13.4"}, Memory: small, Features: remapEvent, Since: "6.18", run: func(c *C) {
		// It asks for its pages before it tells that it has moved: nobody can
		// give them, since nothing can be filled until somebody was told.
		p := c.Process()
		u := p.UFFD(remapEvent)
		r := p.growing(u)
		to := r.moved(p.place(r.Len()))
		grow := p.NewThread().Begin(Mremap, r.Start, r.Page(), r.Len(), MremapMayMove|MremapFixed, to.Start).Blocked()
		to.WantLayout("0+3 rw-p um")
		u.WantFault(to.At(1), c.lockFault())
		u.Fill(to.Pages(1, 1), 'b').Failed(EAGAIN)
		u.Quiet()
		u.Wake(to.Pages(1, 1)).Err(OK)
		grow.Blocked()
		u.WantFault(to.At(1), c.lockFault())
		u.Unregister(to.Range).Err(OK) // is what lets it go on
		grow.InEvent()
		u.WantRemap(r.Start, to.Start, r.Page())
		grow.Value(to.Start)
		p.Sees(to.At(0), 'a')
		p.Sees(to.At(2), 0)
	}},
	{Name: "lock/what-cannot-be-had", Rows: []string{"B.12.16", "B.12.1"}, Memory: small, Features: uapi.UFFD_FEATURE_SIGBUS, run: func(c *C) {
		// mlock(2) of it is an error; growing by it is none.
		p := c.Process()
		u := p.UFFD(uapi.UFFD_FEATURE_SIGBUS)
		r := p.growing(u)
		p.Begin(Mremap, r.Start, r.Page(), r.Len(), 0).Value(r.Start)
		p.Begin(Mlock, r.Start, r.Len()).Err(ENOMEM)
		u.Quiet()
		Is(c, "page 1 is there", r.Pagemap(1)&PagemapPresent != 0, false)
	}},
	{Name: "lock/on-fault", Rows: []string{"B.12.16", "B.12.6"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(3)
		p.Do(Munmap, r.At(1), 2*r.Page())
		u.Watch(r.Pages(0, 1), missing)
		p.Begin(Mlock2, r.Start, r.Page(), 2).Err(EINVAL)
		p.Do(Mlock2, r.Start, r.Page(), MlockOnFault)
		p.Begin(Mremap, r.Start, r.Page(), r.Len(), 0).Value(r.Start)
		u.Quiet()
		t := p.NewThread().Load(r.At(2)).Blocked()
		u.WantFault(r.At(2), readFault)
		u.Zero(r.Pages(2, 1), 0).Is(OK, int64(r.Page()))
		t.Value(0)
	}},
	{Name: "lock/all", Rows: []string{"B.12.16", "B.12.6"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		for _, flags := range []int{0, MclOnFault, 8, MclFuture | 8} {
			p.Begin(Mlockall, flags).Err(EINVAL)
		}
		lock := p.NewThread().Begin(Mlockall, MclCurrent)
		for i := range 2 {
			lock.Blocked()
			u.WantFault(r.At(i), c.lockFault())
			u.Fill(r.Pages(i, 1), 'a').Is(OK, int64(r.Page()))
		}
		lock.Value(0)
		p.Begin(Madvise, r.Start, r.Len(), MadvDontneed).Err(EINVAL) // it is locked
		p.Do(Munlockall)
		p.Do(Madvise, r.Start, r.Len(), MadvDontneed)
	}},
	{Name: "lock/all-that-comes", Rows: []string{"B.12.16"}, Memory: all, run: func(c *C) {
		p := c.Process()
		there := func(r *Region) bool { return r.Pagemap(0)&PagemapPresent != 0 }
		p.Do(Mlockall, MclFuture)
		Is(c, "a page is there", there(p.Map(1)), true)
		Is(c, "a page without permission is there", there(p.MapAs(c.Memory, 1, ProtNone)), false)
		p.Do(Mlockall, MclFuture|MclOnFault)
		// Huge pages are not locked, and so not on fault either.
		Is(c, "a page on fault is there", there(p.Map(1)), c.Memory.Huge())
		p.Do(Munlockall)
		Is(c, "a page afterwards is there", there(p.Map(1)), false)
	}},
	{Name: "brk/grows", Rows: []string{"B.13.11", "B.12.16"}, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(unmapEvent)
		r := p.heap(2)
		u.Watch(r, missing)
		end := r.End + mem.PageSize
		p.Begin(Brk, end).Value(end)
		Is(c, "layout", p.LayoutOf(mem.MakeRange(r.Start, 3*mem.PageSize), mem.PageSize), "0+2 rw-p um, 2+1 rw-p")
		p.Sees(r.End, 0)
		// A locked heap brings in what is new.
		p.Do(Mlockall, MclFuture)
		p.Begin(Brk, end+mem.PageSize).Value(end + mem.PageSize)
		Is(c, "new page is there", p.pagemap(end)&PagemapPresent != 0, true)
		u.Quiet()
	}},
	{Name: "brk/shrinks", Rows: []string{"B.13.11", "B.13.5"}, Features: unmapEvent, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(unmapEvent)
		r := p.heap(3)
		u.Watch(r, missing)
		end := r.Start + mem.PageSize
		shrink := p.NewThread().Begin(Brk, end).InEvent()
		u.WantRange(uapi.UFFD_EVENT_UNMAP, mem.Range{Start: end, End: r.End})
		shrink.Value(end)
		Is(c, "layout", p.LayoutOf(r, mem.PageSize), "0+1 rw-p um")
		// What cannot be is not done, and says where the end is.
		p.Begin(Brk, 1).Value(end)
	}},
}

// heap makes a heap of n pages and returns it.
func (p *Proc) heap(n int) mem.Range {
	r := mem.MakeRange(mem.Addr(p.Do(Brk, 0)).Up(), uint64(n)*mem.PageSize)
	p.Begin(Brk, r.End).Value(r.End)
	return r
}
