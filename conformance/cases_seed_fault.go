// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"github.com/faultline-go/faultline/uffd/uapi"
)

var seedFaultCases = []Case{
	seedCase("signals-wait", []string{"A.11.5", "A.15.17"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		th := p.NewThread()
		t := th.Load(r.Start).Blocked()
		c.Must(th.t.Signal(SIGUSR1))
		t.Blocked()
		Is(c, "handlers run", th.t.Handled(), 0)
		u.wantRecords(8, uint64(r.Start))
		u.release(r.Range)
		t.Value(0)
		c.Eventually("the handler", func() bool { return th.t.Handled() == 1 })
	}),
	seedCase("kill", []string{"A.11.5", "A.15.3"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		manager := c.Process().Take(u)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		p.NewThread().Load(r.Start).Blocked()
		p.Kill()
		manager.WantQueue(0, 0)
		manager.seedQuiet()
	}),
	seedCase("no-retry", []string{"A.11.3"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		errno, err := c.Process().p.Ptrace(p.p, r.Start)
		c.Must(err)
		Is(c, "PTRACE_PEEKDATA", errno, EIO)
		u.seedQuiet()
	}),
	seedCase("close", []string{"A.12.1", "A.14.2", "A.14.3", "A.14.5", "A.15.15"}, func(c *C, p *Proc) {
		// The last close strips the registration and wakes everybody, read
		// or not, to ordinary pages.
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		dup := p.Do(Dup, u.fd)
		read := p.NewThread().Load(r.At(0)).Blocked()
		u.wantRecords(8, uint64(r.At(0)))
		unread := p.NewThread().Load(r.At(1)).Blocked()
		u.Close()
		read.StillBlocked()
		unread.StillBlocked()
		p.Do(Close, dup)
		read.Value(0)
		unread.Value(0)
		r.WantLayout("0+2 rw-p")
	}),
	seedCase("close-does-not-end-a-read", []string{"A.12.2"}, func(c *C, p *Proc) {
		u := p.NewUFFD(0)
		u.API(uapi.UFFD_API, 0).Err(OK)
		reader := p.NewThread()
		read := reader.Begin(Read, u.fd, p.scratch(8), 8).Asleep()
		p.Do(Close, u.fd)
		Is(c, "reader after close", reader.t.State(), Asleep)
		_ = read
	}),
	seedCase("no-events", []string{"A.15.19"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.Map(2)
		p.Puts(r.At(0), 'a')
		u.Watch(r.Range, missing)
		p.Do(Madvise, r.At(0), r.Page(), MadvDontneed)
		p.Do(Munmap, r.At(1), r.Page())
		p.Fork()
		u.seedQuiet()
	}),
}
