// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"github.com/faultline-go/faultline/vkernel"
)

// The races that the patch speaks of, each forced; and what is rare.
var seedRaceCases = []Case{
	seedCase("wake-before-sleep", []string{"A.14.1"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		th := p.NewThread()
		h := c.holdAt(vkernel.PhaseSleep, th)
		t := th.Load(r.Start)
		h.stopped()
		u.wantRecords(8, uint64(r.Start))
		u.release(r.Range)
		h.goOn()
		t.Value(0)
	}),
	seedCase("late-fault", []string{"A.11.2", "A.14.2", "A.15.15"}, func(c *C, p *Proc) {
		// It has found the descriptor open and is not queued yet.
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		late, closer := p.NewThread(), p.NewThread()
		h, released := c.holdAt(vkernel.PhaseChecked, late), c.holdAt(vkernel.PhaseReleased, nil)
		t := late.Load(r.Start)
		h.stopped()
		closing := closer.Begin(Close, u.fd)
		released.stopped()
		released.goOn()
		h.goOn()
		t.Bus(r.Start)
		closing.Value(0)
		p.Sees(r.Start, 0) // nobody's memory now
	}),
	seedCase("unregistered-before-its-fault", []string{"A.11.1"}, func(c *C, p *Proc) {
		// It was registered when the access failed, and is nobody's when the fault
		// is looked at: it gets an ordinary page, and no SIGBUS.
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		th := p.NewThread()
		h := c.holdAt(vkernel.PhaseFault, th)
		t := th.Load(r.Start)
		h.stopped()
		u.Unregister(r.Range).Err(OK)
		h.goOn()
		t.Value(0)
		p.Puts(r.At(1), 'x')
		u.seedQuiet()
	}),
	seedCase("number-comes-last", []string{"A.14.7"}, func(c *C, p *Proc) {
		fd := p.Do(Dup, p.NewUFFD(0).fd) // what is free next
		p.Do(Close, fd)
		th := p.NewThread()
		h := c.holdAt(vkernel.PhaseInstall, nil)
		t := th.Begin(Userfaultfd, 0)
		h.stopped()
		p.Begin(Fcntl, fd, FGetfd, 0).Err(EBADF)
		h.goOn()
		t.Value(fd)
	}),
	seedCase("fault-before-reader-sleeps", []string{"A.15.5"}, func(c *C, p *Proc) {
		u := p.NewUFFD(0)
		u.API(0xaa, 0).Err(OK)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		reader := p.NewThread()
		h := c.holdAt(vkernel.PhaseWait, reader)
		read := reader.Begin(Read, u.fd, p.scratch(8), 8)
		h.stopped()
		p.NewThread().Load(r.Start).Blocked()
		h.goOn()
		read.Value(8)
	}),
	seedCase("register-no-room-to-split", []string{"A.6.11"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.withoutRoom()
		u.Register(r.Pages(0, 3), missing).Is(ENOMEM, int64(seedRange)) // stored before
		r.WantLayout("0+2 rw-p um, 2+2 r--p")
	}),
	seedCase("memory-gone", []string{"A.15.22"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		manager := c.Process().Take(u)
		r := p.Map(2)
		u.Watch(r.Pages(0, 1), missing)
		p.Kill()
		manager.Register(r.Range, missing).Err(ENOMEM)
		manager.Unregister(r.Range).Err(ENOMEM)
		manager.seedQuiet()
	}),
	seedCase("fault-of-the-dying", []string{"A.15.3", "A.15.23"}, func(c *C, p *Proc) {
		// It has entered the fault when it is killed.
		u := p.UFFD(0)
		manager := c.Process().Take(u)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		th := p.NewThread()
		h := c.holdAt(vkernel.PhaseQueued, th)
		th.Load(r.Start)
		h.stopped()
		manager.wantRecords(8, uint64(r.Start))
		killed := make(chan error)
		go func() { killed <- p.p.Kill() }()
		c.Eventually("its death", p.p.Exited)
		h.goOn()
		c.Must(<-killed)
		manager.WantQueue(0, 0)
	}),
}
