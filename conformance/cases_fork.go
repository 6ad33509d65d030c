// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"github.com/faultline-go/faultline/uffd/uapi"
)

var forkCases = []Case{
	{Name: "fork/silent", Rows: []string{"B.13.3", "C.24"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		child := p.Fork()
		Is(c, "layout of the child", child.LayoutOf(r.Range, r.Page()), r.moved(r.Range).plain(2))
		child.Sees(r.At(0), 0)
		u.Quiet()
		if c.Memory != Anon && c.Memory != PrivateHugetlb {
			return // the child has made a page of the file, which the parent maps
		}
		// The inherited descriptor is about the parent's memory.
		t := p.NewThread().Load(r.At(0)).Blocked()
		cu := child.UFFDOf(u)
		cu.WantFault(r.At(0), readFault)
		cu.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
		t.Value('a')
		child.Sees(r.At(0), 0)
	}},
	{Name: "fork/clears-protection", Rows: []string{"B.13.3", "D.wp-fork"}, Memory: all, Since: "6.12", Features: wpAny, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		p.Puts(r.At(0), 'a')
		u.Watch(r.Range, wp)
		u.Protect(r.Range, protect).Err(OK)
		r.WantProtected(0, true)
		child := p.Fork()
		for i := range 2 {
			Is(c, "bit in the child", child.pagemap(r.At(i))&PagemapWP != 0, false)
		}
		child.Puts(r.At(0), 'b')
		r.WantProtected(0, true)
	}},
	{Name: "fork/event", Rows: []string{"B.13.3", "C.25", "B.2.1", "D.events"}, Memory: all, Features: forkEvent, Privileged: true, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(forkEvent | uapi.UFFD_FEATURE_THREAD_ID)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		th := p.NewThread()
		fork := p.BeginFork(th)
		fork.InEvent()
		u.Fill(r.Pages(0, 1), 'x').Err(EAGAIN)
		Is(c, "poll", u.Poll(), PollIn)
		cu := u.WantFork()
		child := fork.Child()
		Is(c, "layout of the child", child.LayoutOf(r.Range, r.Page()), r.moved(r.Range).plain(2)+" um")
		// The new descriptor: done with the handshake, flags as they were.
		wantZeroed(cu.API(uapi.UFFD_API, 0), EINVAL)
		Is(c, "flags", p.Do(Fcntl, cu.fd, FGetfl, 0)&ONonblock, ONonblock)
		Is(c, "close-on-exec", p.Do(Fcntl, cu.fd, FGetfd, 0), 1)
		t := child.Load(r.At(0)).Blocked()
		addr, _, tid := ref(cu.Next()).Fault()
		Is(c, "address", addr, r.At(0))
		Is(c, "thread", int(tid), child.t.TID())
		cu.Fill(r.Pages(0, 1), 'c').Is(OK, int64(r.Page()))
		t.Value('c')
		u.Quiet()
		if c.Memory.Shared() {
			return
		}
		p.NewThread().Load(r.At(0)).Blocked() // nothing came to the parent
		u.Next()
	}},
	{Name: "fork/event-waits", Rows: []string{"B.11.6", "B.11.11"}, Memory: anon, Features: forkEvent, Since: "6.12", Privileged: true, run: func(c *C) {
		// A read of the new descriptor cannot be asked not to wait, as one of
		// a descriptor of the system call's can.
		p := c.Process()
		u := p.UFFD(forkEvent)
		p.waiting(u, 1)
		fork := p.BeginFork(p.NewThread())
		fork.InEvent()
		u.Next() // the fault
		cu := u.WantFork()
		fork.Child()
		iov := p.put(words(uint64(p.scratch(64)), 64))
		p.Begin(Preadv2, u.fd, iov, 1, -1, RwfNowait).Err(EAGAIN)
		p.Begin(Preadv2, cu.fd, iov, 1, -1, RwfNowait).Err(EOPNOTSUPP)
		p.Begin(Preadv2, cu.fd, iov, 1, -1, 0).Err(EAGAIN)
	}},
	{Name: "fork/event-keeps-protection", Rows: []string{"B.13.3", "D.wp-fork-with-event", "D.events-wp"}, Memory: all,
		Features: forkEvent | wpAny, Privileged: true, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(forkEvent)
			r := p.Map(1)
			p.Puts(r.Start, 'a')
			u.Watch(r.Range, wp)
			u.Protect(r.Range, protect).Err(OK)
			child, cu := p.ForkWatched(u)
			Is(c, "bit in the child", child.pagemap(r.Start)&PagemapWP != 0, true)
			t := child.Store(r.Start, 'b').Blocked()
			cu.WantFault(r.Start, wpFault)
			cu.Protect(r.Range, 0).Err(OK)
			t.Value(0)
		}},
	{Name: "fork/one-event-a-descriptor", Rows: []string{"B.13.3"}, Memory: anon, Features: forkEvent, Privileged: true, run: func(c *C) {
		p := c.Process()
		u, other := p.UFFD(forkEvent), p.UFFD(forkEvent)
		r := p.Map(4)
		u.Watch(r.Pages(0, 1), missing)
		u.Watch(r.Pages(2, 1), missing)
		other.Watch(r.Pages(3, 1), missing)
		fork := p.BeginFork(p.NewThread())
		eachOnce(c, u, other, func(d *UFFD) { d.WantFork() })
		fork.Child()
		u.Quiet()
		other.Quiet()
	}},
	{Name: "fork/no-number-free", Rows: []string{"B.11.11", "C.27"}, Memory: anon, Features: forkEvent, Privileged: true, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(forkEvent)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		fork := p.BeginFork(p.NewThread())
		fork.InEvent()
		p.Do(SetNofile, 1)
		_, errno := u.ReadN(uapi.MsgSize)
		Is(c, "read", errno, EMFILE)
		Is(c, "poll", u.Poll(), PollIn) // it is kept
		p.Do(SetNofile, 64)
		u.WantFork()
		fork.Child()
	}},
	{Name: "fork/reader-elsewhere", Rows: []string{"B.11.11", "C.29"}, Memory: anon, Features: forkEvent, Privileged: true, run: func(c *C) {
		// The child's descriptor goes to the table of the reader.
		p, manager := c.Process(), c.Process()
		u := p.UFFD(forkEvent)
		mu := manager.Take(u)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		child, cu := p.ForkWatched(mu)
		t := child.Load(r.Start).Blocked()
		cu.WantFault(r.Start, readFault)
		cu.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		t.Value('a')
	}},
	{Name: "fork/unread-and-inherited", Rows: []string{"B.13.3", "C.26"}, Memory: anon, Features: forkEvent, Privileged: true, run: func(c *C) {
		// The child that is to be has inherited the descriptor, so closing
		// the parent's closes nothing, and nobody can read it: the fork ends
		// only with the process.
		p := c.Process()
		u := p.UFFD(forkEvent)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		fork := p.BeginFork(p.NewThread())
		fork.InEvent()
		u.Close()
		Is(c, "fork after close", fork.th.t.State(), InEvent)
		p.Kill()
		Is(c, "exited", p.p.Exited(), true)
	}},
	{Name: "fork/unread-and-closed", Rows: []string{"B.13.3", "C.26"}, Memory: anon, Features: forkEvent, Privileged: true, run: func(c *C) {
		// Only a manager has it: its end releases the fork.
		p, manager := c.Process(), c.Process()
		u := p.UFFD(forkEvent)
		manager.Take(u)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		u.Close()
		fork := p.BeginFork(p.NewThread())
		fork.InEvent()
		manager.Kill()
		child := fork.Child()
		Is(c, "layout of the child", child.LayoutOf(r.Range, r.Page()), "0+1 rw-p")
	}},
}

// ForkWatched makes a child, the event of which is read from u.
func (p *Proc) ForkWatched(u *UFFD) (child *Proc, cu *UFFD) {
	fork := p.BeginFork(p.NewThread())
	fork.InEvent()
	cu = u.WantFork()
	return fork.Child(), cu
}

// plain is the layout of n pages that are not registered.
func (r *Region) plain(n int) string {
	kind := "p"
	if r.flags&MapShared != 0 {
		kind = "s"
	}
	return "0+" + string(rune('0'+n)) + " rw-" + kind
}

var goneCases = []Case{
	{Name: "gone/killed", Rows: []string{"B.13.8", "B.10.5", "B.7.4", "B.8.2", "B.9.5", "C.29"}, Memory: all, run: func(c *C) {
		p, manager := c.Process(), c.Process()
		u := p.UFFD(0)
		mu := manager.Take(u)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		p.NewThread().Load(r.Start).Blocked()
		mu.WantFault(r.Start, readFault)
		mu.Fill(r.Pages(1, 1), 'a').Is(OK, int64(r.Page()))
		p.Kill()
		mu.WantQueue(0, 0)
		mu.deadMemory(r)
	}},
	{Name: "gone/executed", Rows: []string{"B.13.8", "C.30"}, Memory: anon, run: func(c *C) {
		p := c.Process()
		u := p.NewUFFD(ONonblock)
		u.API(uapi.UFFD_API, 0).Err(OK)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		c.Must(p.p.Exec())
		u.deadMemory(r)
		u.Protect(r.Range, 0).Err(ESRCH)
		u.Quiet()
	}},
	{Name: "gone/passed-on", Rows: []string{"B.12.5", "C.29"}, Memory: small, run: func(c *C) {
		p, manager := c.Process(), c.Process()
		u := p.UFFD(0)
		mu := manager.Take(u)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		a, b := p.NewThread().Load(r.At(0)).Blocked(), p.NewThread().Load(r.At(1)).Blocked()
		mu.WantFault(r.At(0), readFault)
		mu.WantFault(r.At(1), readFault)
		mu.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
		mu.Zero(r.Pages(1, 1), 0).Is(OK, int64(r.Page()))
		a.Value('a')
		b.Value(0)
	}},
}

// deadMemory checks what a descriptor says whose memory is gone.
func (u *UFFD) deadMemory(r *Region) {
	u.Copy(r.Range, u.th.fill('a', r.Len()), 0).Refused(ESRCH)
	if !r.Memory.Huge() {
		u.Zero(r.Range, 0).Refused(ESRCH)
	}
	if u.th.c.knows(uapi.UFFDIO_POISON) {
		u.Poison(r.Range, 0).Refused(ESRCH)
	}
	u.Continue(r.Range, 0).Refused(ESRCH)
	u.Register(r.Range, missing).Refused(ENOMEM)
	u.Unregister(r.Range).Err(ENOMEM)
	u.Wake(r.Range).Err(OK)
	u.Move(r.Range, r.Start, 0).Refused(EINVAL)
	u.Quiet()
}
