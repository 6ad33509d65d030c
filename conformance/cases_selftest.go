// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// pagesOf is how many pages a whole-area case takes.
func (c *C) pagesOf() int {
	if c.Memory.Huge() {
		return 3
	}
	return 16
}

// selftestCases have the intent of the kernel's own tests, as section D of
// the specification describes it, where it is not that of a case elsewhere.
var selftestCases = []Case{
	{Name: "selftest/missing", Rows: []string{"D.events", "B.10.17"}, Memory: all, run: func(c *C) {
		// Each page of an area faults once, and has what was copied.
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(c.pagesOf())
		u.Watch(r.Range, missing)
		th := p.NewThread()
		for i := range c.pagesOf() {
			t := th.Load(r.At(i)).Blocked()
			u.WantFault(r.At(i), readFault)
			v := byte('a' + i%3)
			u.Fill(r.Pages(i, 1), v).Is(OK, int64(r.Page()))
			t.Value(v)
		}
		for i := range c.pagesOf() {
			r.Has(th, i, byte('a'+i%3))
		}
		u.Quiet()
	}},
	{Name: "selftest/minor", Rows: []string{"D.minor", "B.2.10", "B.2.9"}, Memory: shared,
		Features: uapi.UFFD_FEATURE_MINOR_SHMEM | uapi.UFFD_FEATURE_MINOR_HUGETLBFS, run: func(c *C) {
			// The manager changes each page through another mapping before
			// it lets the first one see it.
			p := c.Process()
			u := p.UFFD(0)
			r := p.Map(c.pagesOf())
			alias := r.Alias()
			u.Watch(r.Range, minor)
			th := p.NewThread()
			for i := range c.pagesOf() {
				p.Puts(alias.At(i), byte(i))
				t := th.Load(r.At(i)).Blocked()
				u.WantFault(r.At(i), minorFault)
				p.Puts(alias.At(i), ^byte(i))
				u.Continue(r.Pages(i, 1), 0).Is(OK, int64(r.Page()))
				u.Continue(r.Pages(i, 1), 0).Failed(EEXIST)
				t.Value(^byte(i))
			}
			u.Quiet()
		}},
	{Name: "selftest/minor-collapse", Rows: []string{"D.minor-collapse"}, Memory: shmem, Features: uapi.UFFD_FEATURE_MINOR_SHMEM,
		run: func(c *C) {
			// Collapsing to a huge page, where it is possible, keeps the
			// content and makes no fault.
			p := c.Process()
			u := p.UFFD(0)
			const n = 512
			r := p.Map(n)
			alias := r.Alias()
			for i := range n {
				p.Puts(alias.At(i), byte(i))
			}
			u.Watch(r.Range, minor)
			u.Continue(r.Range, 0).Is(OK, int64(r.Len()))
			if res := p.Call(Madvise, r.Start, r.Len(), MadvCollapse); res.Errno != OK {
				c.Skipf("MADV_COLLAPSE: %v", res.Errno)
			}
			for i := range n {
				p.Sees(r.At(i), byte(i))
			}
			u.Quiet()
		}},
	{Name: "selftest/sigbus", Rows: []string{"D.sigbus"}, Memory: all, Features: uapi.UFFD_FEATURE_SIGBUS, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(uapi.UFFD_FEATURE_SIGBUS)
		r := p.Map(c.pagesOf())
		u.Watch(r.Range, missing)
		for i := range c.pagesOf() {
			p.Load(r.At(i)).Bus(r.At(i))
			u.Fill(r.Pages(i, 1), 's').Is(OK, int64(r.Page()))
			p.Sees(r.At(i), 's')
		}
		u.Quiet()
	}},
	{Name: "selftest/sigbus-in-child", Rows: []string{"D.sigbus"}, Memory: all,
		Features: uapi.UFFD_FEATURE_SIGBUS | forkEvent, Privileged: true, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(uapi.UFFD_FEATURE_SIGBUS | forkEvent)
			r := p.Map(2)
			u.Watch(r.Range, missing)
			child, cu := p.ForkWatched(u)
			for i := range 2 {
				child.Load(r.At(i)).Bus(r.At(i))
			}
			cu.Quiet()
			cu.Fill(r.Pages(0, 1), 'c').Is(OK, int64(r.Page()))
			child.Sees(r.At(0), 'c')
		}},
	{Name: "selftest/events", Rows: []string{"D.events"}, Memory: small, Features: forkEvent | remapEvent | removeEvent, Privileged: true,
		run: func(c *C) {
			// A child faults, moves its memory, drops it, faults again; its
			// manager is told of everything by the child's own descriptor.
			p := c.Process()
			u := p.UFFD(forkEvent | remapEvent | removeEvent)
			r := p.Map(2)
			u.Watch(r.Range, missing)
			child, cu := p.ForkWatched(u)
			t := child.Load(r.At(0)).Blocked()
			cu.WantFault(r.At(0), readFault)
			cu.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
			t.Value('a')
			to := p.place(r.Len())
			move := child.Begin(Mremap, r.Start, r.Len(), r.Len(), MremapMayMove|MremapFixed, to.Start).InEvent()
			cu.WantRemap(r.Start, to.Start, r.Len())
			move.Value(to.Start)
			child.Sees(to.Start, 'a')
			advice := MadvDontneed
			if c.Memory == Shmem {
				advice = MadvRemove
			}
			drop := child.Begin(Madvise, to.Start, r.Page(), advice).InEvent()
			cu.WantRange(uapi.UFFD_EVENT_REMOVE, mem.MakeRange(to.Start, r.Page()))
			drop.Value(0)
			t = child.Load(to.Start).Blocked()
			cu.WantFault(to.Start, readFault)
			cu.Zero(mem.MakeRange(to.Start, r.Page()), 0).Is(OK, int64(r.Page()))
			t.Value(0)
			u.Quiet()
		}},
	{Name: "selftest/poison", Rows: []string{"D.poison", "B.2.14"}, Memory: all, Features: uapi.UFFD_FEATURE_POISON, run: func(c *C) {
		// Every other page is lost, the rest is there.
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(c.pagesOf())
		u.Watch(r.Range, missing)
		th := p.NewThread()
		for i := range c.pagesOf() {
			t := th.Load(r.At(i)).Blocked()
			u.WantFault(r.At(i), readFault)
			if i%2 == 0 {
				u.Poison(r.Pages(i, 1), 0).Is(OK, int64(r.Page()))
				t.Poisoned(r.At(i))
				continue
			}
			u.Fill(r.Pages(i, 1), 0).Is(OK, int64(r.Page()))
			t.Value(0)
		}
	}},
	{Name: "selftest/move-huge", Rows: []string{"D.move-pmd", "D.move-pmd-split", "B.2.16"}, Memory: anon, Features: uapi.UFFD_FEATURE_MOVE,
		run: func(c *C) {
			// Memory that may be transparent huge pages, in one call and a
			// page at a time, has the same content after it.
			p := c.Process()
			u := p.UFFD(0)
			const n = 512
			for _, part := range []int{n, 1} {
				src, dst := p.Map(n), p.Map(n)
				p.Call(Madvise, src.Start, src.Len(), MadvHugepage)
				p.Call(Madvise, dst.Start, dst.Len(), MadvNohugepage)
				for i := range n {
					p.Puts(src.At(i), byte(i))
				}
				u.Watch(dst.Range, missing)
				if part == n {
					u.Move(dst.Range, src.Start, 0).Is(OK, int64(dst.Len()))
				} else {
					for i := range 8 {
						u.Move(dst.Pages(i, 1), src.At(i), 0).Is(OK, int64(dst.Page()))
					}
					u.Move(dst.Pages(8, n-8), src.At(8), 0).Is(OK, int64(n-8)*int64(dst.Page()))
				}
				for i := range n {
					p.Sees(dst.At(i), byte(i))
				}
				p.Sees(src.At(7), 0)
				u.Quiet()
			}
		}},
	{Name: "selftest/stress", Rows: []string{"D.stress"}, Memory: all, run: func(c *C) {
		// Threads race for the same pages; each sees what was copied, and a
		// second copy says so.
		p := c.Process()
		u := p.UFFD(0)
		n := c.pagesOf()
		r := p.Map(n)
		u.Watch(r.Range, missing)
		var threads []*Thread
		for range 4 {
			threads = append(threads, p.NewThread())
		}
		for i := range n {
			var ts []*Pending
			for k, th := range threads {
				ts = append(ts, th.Begin(CopyMem, p.pageScratch(8), r.At(i)+mem.Addr(8*k), 8))
			}
			for _, t := range ts {
				t.Blocked()
			}
			msgs, _ := u.ReadN(16 * uapi.MsgSize)
			Is(c, fmt.Sprintf("messages about page %d", i), len(msgs), len(threads))
			u.Fill(r.Pages(i, 1), 's').Is(OK, int64(r.Page()))
			u.Fill(r.Pages(i, 1), 'x').Failed(EEXIST)
			u.Wake(r.Pages(i, 1)).Err(OK)
			for _, t := range ts {
				t.Value(0)
			}
			r.Has(p.Thread, i, 's')
		}
		u.Quiet()
	}},
	{Name: "selftest/stress-write-protect", Rows: []string{"D.stress"}, Memory: all, Features: wpAny, run: func(c *C) {
		// The first half comes in and is protected, then the rest comes in.
		p := c.Process()
		u := p.UFFD(0)
		n := c.pagesOf()
		r := p.Map(n)
		u.Watch(r.Range, missing|wp)
		half := r.Pages(0, n/2)
		for i := range n {
			u.Fill(r.Pages(i, 1), 's').Is(OK, int64(r.Page()))
		}
		u.Protect(half, protect).Err(OK)
		th := p.NewThread()
		for i := range n {
			t := th.Store(r.At(i), 'w')
			if i < n/2 {
				t.Blocked()
				u.WantFault(r.At(i), wpFault)
				u.Protect(r.Pages(i, 1), 0).Err(OK)
			}
			t.Value(0)
			p.Sees(r.At(i), 'w')
		}
		u.Quiet()
	}},
}
