// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

var deliveryCases = []Case{
	{Name: "delivery/address", Rows: []string{"B.12.7", "B.2.11", "B.1.4"}, Memory: all, Features: uapi.UFFD_FEATURE_EXACT_ADDRESS, run: func(c *C) {
		p := c.Process()
		r := p.Map(2)
		off := mem.Addr(r.Page() - 0x123)
		u := p.UFFD(0)
		u.Watch(r.Pages(0, 1), missing)
		p.NewThread().Load(r.At(0) + off).Blocked()
		u.WantFault(r.At(0), readFault)
		e := p.UFFD(uapi.UFFD_FEATURE_EXACT_ADDRESS)
		e.Watch(r.Pages(1, 1), missing)
		p.NewThread().Store(r.At(1)+off, 1).Blocked()
		e.WantFault(r.At(1)+off, writeFault)
	}},
	{Name: "delivery/thread-id", Rows: []string{"B.12.7", "B.2.8"}, Memory: all, Features: uapi.UFFD_FEATURE_THREAD_ID, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(uapi.UFFD_FEATURE_THREAD_ID)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		a, b := p.NewThread(), p.NewThread()
		for _, th := range []*Thread{a, b} {
			th.Load(r.Start).Blocked()
			addr, _, tid := ref(u.Next()).Fault()
			Is(c, "address", addr, r.Start)
			Is(c, "thread", int(tid), th.t.TID())
		}
	}},
	{Name: "delivery/one-message-a-thread", Rows: []string{"B.12.8"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		a, b := p.NewThread().Load(r.Start).Blocked(), p.NewThread().Store(r.Start+1, 'b').Blocked()
		u.WantFault(r.Start, readFault)
		u.WantFault(r.Start, writeFault)
		u.Quiet()
		u.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		a.Value('a')
		b.Value(0)
		p.Sees(r.Start+1, 'b')
	}},
	{Name: "delivery/compare-and-swap", Rows: []string{"B.12.8"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		t := p.NewThread().Begin(CAS64, r.Start, 0x6161616161616161, 7).Blocked()
		u.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		t.Value(0x6161616161616161)
		p.Begin(Load64, r.Start).Value(7)
	}},
	{Name: "delivery/sigbus", Rows: []string{"B.12.1", "B.2.7", "C.32"}, Memory: all, Features: uapi.UFFD_FEATURE_SIGBUS, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(uapi.UFFD_FEATURE_SIGBUS)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		p.Load(r.Start + 7).Bus(r.Start + 7)
		p.Store(r.Start, 1).Bus(r.Start)
		u.Quiet()
		p.Begin(Write, p.pipe(), r.Start, 1).Err(EFAULT)
		p.Begin(Mlock, r.Start, r.Page()).Err(ENOMEM)
		p.Begin(Madvise, r.Start, r.Page(), MadvPopulateRead).Err(EFAULT)
		u.Quiet()
		u.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		p.Sees(r.Start, 'a')
	}},
	{Name: "delivery/sigbus-write-protected", Rows: []string{"B.12.1", "D.sigbus-wp"}, Memory: all,
		Features: uapi.UFFD_FEATURE_SIGBUS | wpAny, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(uapi.UFFD_FEATURE_SIGBUS)
			r := p.Map(1)
			u.Watch(r.Range, missing|wp)
			p.Store(r.Start, 'b').Bus(r.Start)
			u.Copy(r.Range, p.fill('a', r.Page()), uapi.UFFDIO_COPY_MODE_WP).Is(OK, int64(r.Page()))
			p.Sees(r.Start, 'a')
			p.Store(r.Start, 'b').Bus(r.Start)
			u.Quiet()
			u.Protect(r.Range, 0).Err(OK)
			p.Puts(r.Start, 'b')
		}},
	{Name: "delivery/user-mode-only", Rows: []string{"B.12.2", "B.3.8", "C.32"}, Memory: all, Since: "5.11", run: func(c *C) {
		p := c.Process()
		u := p.NewUFFD(ONonblock | uapi.UFFD_USER_MODE_ONLY)
		u.API(uapi.UFFD_API, 0).Err(OK)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		p.Begin(Write, p.pipe(), r.Start, 1).Err(EFAULT)
		p.Begin(Madvise, r.Start, r.Page(), MadvPopulateWrite).Err(EFAULT)
		u.Quiet()
		t := p.NewThread().Load(r.Start).Blocked()
		u.WantFault(r.Start, readFault)
		u.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		t.Value('a')
	}},
	{Name: "delivery/no-retry", Rows: []string{"B.12.3", "C.36"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		fd := p.Do(OpenSelfMem)
		p.Begin(Pread, fd, p.scratch(8), 8, r.Start).Err(EIO)
		u.Quiet()
	}},
	{Name: "delivery/ptrace", Rows: []string{"B.12.3", "C.36"}, Memory: all, run: func(c *C) {
		p, tracer := c.Process(), c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		errno, err := tracer.p.Ptrace(p.p, r.Start)
		c.Must(err)
		Is(c, "PTRACE_PEEKDATA", errno, EIO)
		u.Quiet()
		u.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		errno, err = tracer.p.Ptrace(p.p, r.Start)
		c.Must(err)
		Is(c, "PTRACE_PEEKDATA", errno, OK)
	}},
	{Name: "delivery/kernel-mode", Rows: []string{"B.12.6"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(6)
		u.Watch(r.Range, missing)
		in, out := p.pipes()
		p.Do(Write, in, p.put([]byte("xy")), 2)
		for i, call := range []struct {
			flags uapi.FaultFlags
			begin func(*Thread, mem.Addr) *Pending
		}{
			{readFault, func(th *Thread, a mem.Addr) *Pending { return th.Begin(Write, in, a, 1) }},
			{writeFault, func(th *Thread, a mem.Addr) *Pending { return th.Begin(Read, out, a, 1) }},
			{writeFault, func(th *Thread, a mem.Addr) *Pending { return th.Begin(Mlock, a, 1) }},
			{readFault, func(th *Thread, a mem.Addr) *Pending { return th.Begin(Madvise, a, mem.PageSize, MadvPopulateRead) }},
			{writeFault, func(th *Thread, a mem.Addr) *Pending { return th.Begin(Madvise, a, mem.PageSize, MadvPopulateWrite) }},
		} {
			flags := call.flags
			if i == 2 && c.Memory == Shmem {
				flags = readFault // of shared memory mlock(2) wants no copy
			}
			t := call.begin(p.NewThread(), r.At(i)).Blocked()
			u.WantFault(r.At(i), flags)
			u.Fill(r.Pages(i, 1), 'a').Is(OK, int64(r.Page()))
			if got := t.Done(); got.Errno != OK {
				c.Failf("%s: %v", t.what, got)
			}
		}
		p.Do(Mincore, r.At(5), r.Page(), p.scratch(8))
		u.Quiet()
	}},
	{Name: "delivery/from-another-process", Rows: []string{"B.12.5"}, Memory: all, run: func(c *C) {
		p, reader := c.Process(), c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		a := reader.scratch(8)
		t := reader.Begin(ProcessVMRead, p.p.PID(), a, r.Start, 8).Blocked()
		u.WantFault(r.Start, readFault)
		u.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		t.Value(8)
		Is(c, "what was read", string(reader.get(a, 8)), "aaaaaaaa")
	}},
	{Name: "delivery/reader-outlives-process", Rows: []string{"B.12.5"}, Memory: all, run: func(c *C) {
		p, reader, manager := c.Process(), c.Process(), c.Process()
		u := p.UFFD(0)
		taken := manager.Take(u)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		a := reader.scratch(8)
		t := reader.Begin(ProcessVMRead, p.p.PID(), a, r.Start, 8).Blocked()
		p.Kill()
		t.Blocked() // and so the memory stays
		taken.WantFault(r.Start, readFault)
		taken.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		t.Value(8)
		Is(c, "what was read", string(reader.get(a, 8)), "aaaaaaaa")
	}},
	{Name: "delivery/unmapped-is-no-fault", Rows: []string{"B.12.9"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		p.Do(Mprotect, r.At(0), r.Page(), ProtNone)
		p.Load(r.At(0)).Segv(SegvAccErr)
		p.Do(Mprotect, r.At(0), r.Page(), ProtRead)
		p.Store(r.At(0), 1).Segv(SegvAccErr)
		p.Do(Munmap, r.At(0), r.Page())
		p.Load(r.At(0)).Segv(SegvMapErr)
		u.Quiet()
	}},
	{Name: "delivery/dying", Rows: []string{"B.12.10", "B.12.13"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		manager := c.Process().Take(u)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		p.NewThread().Load(r.Start).Blocked()
		kernelMode := p.NewThread().Begin(Write, p.pipe(), r.Start, 1).Blocked()
		_ = kernelMode
		manager.WantQueue(2, 2)
		p.Kill()
		manager.WantQueue(0, 0)
		manager.Quiet()
	}},
	{Name: "delivery/close", Rows: []string{"B.12.4", "C.23"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		dup := p.Do(Dup, u.fd)
		read := p.NewThread().Load(r.At(0)).Blocked()
		u.WantFault(r.At(0), readFault)
		unread := p.NewThread().Load(r.At(1)).Blocked()
		u.Close()
		read.StillBlocked()
		unread.StillBlocked()
		r.WantLayout("0+2 rw-p um")
		p.Do(Close, dup)
		read.Value(0)
		unread.Value(0)
		r.WantLayout("0+2 rw-p")
	}},
	{Name: "delivery/close-lifts-protection", Rows: []string{"B.12.4"}, Memory: all, Since: "6.12", Features: wpAny, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		p.Puts(r.Start, 'a')
		u.Watch(r.Range, wp)
		u.Protect(r.Range, protect).Err(OK)
		t := p.NewThread().Store(r.Start, 'b').Blocked()
		u.Close()
		t.Value(0)
		p.Sees(r.Start, 'b')
	}},
	{Name: "delivery/mapped-over", Rows: []string{"B.13.10"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		t := p.NewThread().Load(r.Start).Blocked()
		r.Remap(0, 1)
		r.WantLayout("0+1 rw-p")
		t.StillBlocked()
		u.Wake(r.Range).Err(OK)
		t.Value(0)
	}},
}

// pipes makes a pipe and returns where to write and where to read.
func (p *Proc) pipes() (in, out uint64) {
	a := p.scratch(8)
	p.Do(Pipe, a, 0)
	ends := le64(p.get(a, 8))
	return ends >> 32, ends & 0xffff_ffff
}

// pipe makes a pipe and returns where to write.
func (p *Proc) pipe() uint64 {
	in, _ := p.pipes()
	return in
}

// ref makes a variable of a value.
func ref[T any](v T) *T { return &v }

var signalCases = []Case{
	{Name: "signal/user-mode", Rows: []string{"B.12.14", "C.31"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		th := p.NewThread()
		t := th.Load(r.Start).Blocked()
		// Unread: the handler runs, and it is still one message.
		th.interrupt(1)
		t.Blocked()
		u.WantFault(r.Start, readFault)
		u.Quiet()
		// Read: another message for every signal.
		for i := range 3 {
			th.interrupt(2 + i)
			c.Eventually("another message", func() bool { return u.Poll() == PollIn })
			u.WantFault(r.Start, readFault)
			u.Quiet()
		}
		u.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		t.Value('a')
	}},
	{Name: "signal/ignored", Rows: []string{"B.12.14"}, Memory: all, run: func(c *C) {
		const sigurg = 23 // its default is to be ignored
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		th := p.NewThread()
		t := th.Load(r.Start).Blocked()
		u.WantFault(r.Start, readFault)
		c.Must(th.t.Signal(sigurg))
		t.StillBlocked()
		u.Quiet()
		u.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		t.Value('a')
	}},
	{Name: "signal/kernel-mode", Rows: []string{"B.12.15", "C.31"}, Memory: all, run: func(c *C) {
		// A signal that is not fatal makes the thread fault again and again,
		// with its handler waiting: messages without end.
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		th := p.NewThread()
		t := th.Begin(Write, p.pipe(), r.Start, 1).Blocked()
		u.WantFault(r.Start, readFault)
		c.Must(th.t.Signal(SIGUSR1))
		for range 5 {
			// The thread comes and goes: poll(2) may have been too early.
			c.Eventually("another message", func() bool {
				msgs, _ := u.ReadN(uapi.MsgSize)
				return len(msgs) == 1
			})
		}
		Is(c, "handlers run", th.t.Handled(), 0)
		u.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		t.Value(1)
		c.Eventually("the handler", func() bool { return th.t.Handled() == 1 })
	}},
	{Name: "signal/kill", Rows: []string{"B.12.13"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		p.NewThread().Begin(Write, p.pipe(), r.Start, 1).Blocked()
		p.NewThread().Load(r.Start).Blocked()
		p.Kill()
		Is(c, "exited", p.p.Exited(), true)
	}},
}

// interrupt sends SIGUSR1 and waits until n were handled.
func (t *Thread) interrupt(n int) {
	t.c.Must(t.t.Signal(SIGUSR1))
	t.c.Eventually("the handler", func() bool { return t.t.Handled() == n })
}
