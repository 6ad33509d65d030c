// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"fmt"
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// Child is the page table of a forked address space that is not served yet.
// Its threads may fault, and wait. It is used once: Start or Discard.
type Child struct {
	p       *Pager
	table   table
	regions regions
	guards  regions
}

// fork copies the page table for the child whose descriptor is fd. What is
// outside is then shared by both; what is resident is the kernel's to share,
// and the child learns of it from [Space.FindResident].
//
// The forking thread waits until its event is read, and until then no page
// can be installed in the parent: so the table says what the child has, but
// for the pages that are on their way out. It is the only place where the
// serving thread waits for the evictor; where the evictor's mover may wait for
// that thread ([SpaceConfig.On]), fork reports false instead.
func (s *Space) fork(fd int) bool {
	if s.cfg.On == nil {
		s.batchMu.Lock()
	} else if !s.batchMu.TryLock() {
		return false
	}
	defer s.batchMu.Unlock()
	s.clearLimbo() // the child's table has no other way to what is there
	c := &Child{p: s.p}
	s.mu.Lock()
	c.regions.list = append(c.regions.list, s.regions.list...)
	c.guards.list = append(c.guards.list, s.guards.list...)
	s.table.each(allPages(), noLimit, func(pg mem.Page, e *entry) {
		if r := s.regions.find(pg.Addr()); r == nil || r.wipe {
			return // MADV_WIPEONFORK: fresh in the child
		}
		switch {
		case e.inStore && (e.state == outside || e.state == loading): // not yet installed
			s.p.share(e.ref)
			c.table.set(pg, entry{ref: e.ref, stamp: e.stamp, state: outside, inStore: true})
		case e.state == poisoned:
			c.table.set(pg, entry{state: poisoned})
		}
	})
	s.mu.Unlock()
	s.p.stat.forks.Add(1)
	s.cfg.Forked(fd, c)
	return true
}

// Start serves the child.
func (c *Child) Start(fd Descriptor, cfg SpaceConfig) *Space {
	return c.p.attach(fd, cfg, c.table, c.regions, c.guards)
}

// Discard gives back what the child shares, when it is not to be served: it
// has ended.
func (c *Child) Discard() {
	c.table.each(allPages(), noLimit, func(_ mem.Page, e *entry) {
		if e.inStore {
			c.p.free(e.ref)
		}
	})
	c.table = table{}
}

// Probe tells whether the child's memory is that of a certain process, by
// installing a page through fd and looking whether it shows there. present
// asks that process; its threads must be stopped. What is installed is what
// belongs there, so a wrong guess does no harm. If no page can be installed
// the answer is false.
func (c *Child) Probe(fd Descriptor, present func(mem.Range) bool) bool {
	for _, pg := range c.absent() {
		at := mem.MakeRange(pg.Addr(), mem.PageSize)
		if present(at) {
			continue
		}
		switch errno, err := c.install(fd, pg); {
		case err != nil:
			continue // its first fault will tell the user
		case errno == syscall.EEXIST:
			return false // present in the child, absent in that process
		case errno != 0:
			continue
		}
		return present(at)
	}
	return false
}

// install brings in what belongs at a page. err is the store's.
func (c *Child) install(fd Descriptor, pg mem.Page) (errno syscall.Errno, err error) {
	page := make([]byte, mem.PageSize)
	var e entry
	if p := c.table.peek(pg); p != nil {
		e = *p
	}
	if e.inStore {
		if err := c.p.fetchAny(e.ref, page); err != nil {
			return 0, err
		}
	}
	if _, errno := fd.Copy(pg.Addr(), page, 0); errno != 0 {
		return errno, nil
	}
	if e.inStore {
		c.p.free(e.ref)
		c.table.set(pg, entry{})
	}
	return 0, nil
}

// Nurse serves the faults that are queued at fd. It is for a child that is
// not started for a while: the kernel writes the id of a new thread into its
// memory (CLONE_CHILD_SETTID) before the thread gets as far as to stop for a
// tracer, so whoever waits for that stop would wait for ever if that page is
// outside. It reports false when the child has ended.
func (c *Child) Nurse(fd Descriptor) (alive bool) {
	var msgs [4]uapi.Msg
	for {
		n, _ := fd.Read(msgs[:]) // an error is no message
		if n == 0 {
			break
		}
		for i := range msgs[:n] {
			if msgs[i].Event == uapi.UFFD_EVENT_PAGEFAULT { // a thread that waits raises no other
				addr, _, _ := msgs[i].Fault()
				c.nurse(fd, addr.Page())
			}
		}
	}
	for _, pg := range c.absent() {
		if errno, err := c.install(fd, pg); err == nil {
			return errno != syscall.ESRCH
		}
	}
	return true
}

func (c *Child) nurse(fd Descriptor, pg mem.Page) {
	e := c.table.peek(pg)
	bad := e != nil && e.state == poisoned
	if !bad {
		errno, err := c.install(fd, pg)
		if err == nil {
			if errno == syscall.EEXIST {
				fd.Wake(mem.MakeRange(pg.Addr(), mem.PageSize)) // H3
			}
			return
		}
		c.p.free(e.ref)
		c.table.set(pg, entry{state: poisoned})
		c.p.stat.lost.Add(1)
		c.p.log.Error(fmt.Sprintf("page %v of a forked child is lost: %v; a thread that touches it gets SIGBUS", pg.Addr(), err))
	}
	// An errno means that the child has ended.
	_, _ = fd.Poison(mem.MakeRange(pg.Addr(), mem.PageSize), 0)
}

// absent returns some pages that are absent in the child: such as are
// outside, or else the last of each region, which are the least likely to
// have been touched.
func (c *Child) absent() (some []mem.Page) {
	const enough = 16
	c.table.each(allPages(), chunkPages*enough, func(pg mem.Page, e *entry) {
		if e.inStore && len(some) < enough {
			some = append(some, pg)
		}
	})
	for _, reg := range c.regions.list {
		for pg := reg.End.Page(); pg > reg.Start.Page() && len(some) < 64*enough; pg-- {
			if c.table.stateOf(pg-1) == fresh && c.guards.find((pg-1).Addr()) == nil {
				some = append(some, pg-1)
				if len(some)%enough == 0 {
					break
				}
			}
		}
	}
	return some
}
