// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"fmt"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager/internal/evict"
)

// install puts the staged pages of server.want into the space, for the fault
// f, and brings the table up to date.
func (s *Space) install(f fault) {
	sv := &s.server
	s.p.stat.latency.Add(time.Since(f.at))
	// The page that the thread waits for comes last. It would go on as soon as
	// that is there, in our place on the processor, and fault on the next one.
	first, end := 0, 0
	for i := 0; i < len(sv.want); {
		j := i + 1
		for j < len(sv.want) && sv.want[j].page == sv.want[j-1].page+1 {
			j++
		}
		if sv.want[i].page <= f.page && f.page <= sv.want[j-1].page {
			first, end = i, j
		} else {
			s.installRun(i, j)
		}
		i = j
	}
	s.installRun(first, end)
	why, retry := s.commit(f)
	sv.want = sv.want[:0]
	if retry {
		s.park(f, why)
	}
}

// installRun installs server.want[i:j], whose pages are neighbours, leaving
// out those that are not staged.
func (s *Space) installRun(i, j int) {
	sv := &s.server
	for i < j {
		if sv.want[i].fate != staged {
			i++
			continue
		}
		k := i + 1
		for k < j && sv.want[k].fate == staged {
			k++
		}
		s.installStaged(i, k)
		i = k
	}
}

// installStaged installs server.want[i:j], all staged neighbours, and sets
// their fates. It goes on after a short copy from where the kernel stopped
// (H4), and steps over what is present already.
func (s *Space) installStaged(i, j int) {
	sv := &s.server
	most := j - i
	for i < j {
		n := min(most, j-i)
		at := sv.want[i].page
		src := sv.stage[i*mem.PageSize : (i+n)*mem.PageSize]
		done, errno := s.fd.Copy(at.Addr(), src, 0)
		landedPages := done / mem.PageSize
		for k := range landedPages {
			sv.want[i+k].fate = landed
		}
		i += landedPages
		switch errno {
		case 0, syscall.EINTR:
			most = j - i
			continue
		case syscall.EAGAIN:
			if landedPages > 0 {
				continue // the next call says why it stopped
			}
		case syscall.EEXIST:
			// Present, by another way than ours. That wakes nobody (H3).
			sv.want[i].fate, sv.want[i].found = landed, true
			s.wake(sv.want[i].page)
			i++
			continue
		case syscall.ENOENT:
			if n > 1 {
				// The range leaves its VMA. Find out where.
				most = n / 2
				s.noteEdge(at + mem.Page(most))
				continue
			}
			// Unmapped. The thread must wake to learn it. Should it fault
			// on the page again, it says so.
			sv.want[i].fate = unmapped
			s.wake(sv.want[i].page)
			i++
			most = j - i
			continue
		default:
			s.must("UFFDIO_COPY", mem.MakeRange(at.Addr(), uint64(n)*mem.PageSize), errno)
		}
		for k := i; k < j; k++ {
			sv.want[k].fate = refused
		}
		return
	}
}

// noteEdge remembers that an install across pg was refused.
func (s *Space) noteEdge(pg mem.Page) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sv := &s.server
	for _, e := range sv.edges {
		if e == pg {
			return
		}
	}
	sv.edges[sv.nedges%len(sv.edges)] = pg
	sv.nedges++
}

// commit enters the fates of server.want into the table. It reports whether
// the page of f is still to be brought in, and what it waits for.
func (s *Space) commit(f fault) (why reason, retry bool) {
	sv := &s.server
	count := 0
	s.mu.Lock()
	loose := len(sv.want) > 0 && s.removes.overlap(mem.Range{
		Start: sv.want[0].page.Addr(), End: (sv.want[len(sv.want)-1].page + 1).Addr(),
	})
	for i := range sv.want {
		w := &sv.want[i]
		e := s.table.peek(w.page)
		if e == nil || e.state != loading {
			continue // lost, and poisoned by now
		}
		switch w.fate {
		case landed:
			// The ref stays, as a hint.
			e.state = resident
			e.clear(rescued)
			if loose || w.found && !e.inStore {
				e.mark(lazy)
			}
			e.stamp = s.p.queue.Insert(evict.Key{Space: s.id, Page: w.page}, w.stamp, w.kind)
			if ref, in := s.limbo[w.page]; in {
				// That was of another time: nothing is installed while an event is
				// outstanding that could bring it here.
				delete(s.limbo, w.page)
				sv.refs = append(sv.refs, ref)
			}
			count++
		case refused, staged, unmapped:
			s.takeBack(w.page, *e)
			if w.page == f.page && w.fate != unmapped && !s.gone.Load() {
				why, retry = changing, true
			}
		}
	}
	s.mu.Unlock()
	s.p.addResident(count)
	s.p.stat.pagesIn.Add(int64(count))
	s.freeRefs()
	return why, retry
}

// takeBack undoes the loading of a page. Preconditions: s.mu is held.
func (s *Space) takeBack(pg mem.Page, e entry) {
	switch {
	case e.is(rescued):
		e.state = evicting // its batch is still under way
	case e.inStore:
		e.state = outside
		e.clear(lazy)
	default:
		e = entry{}
	}
	e.clear(rescued)
	s.table.set(pg, e)
}

// freeRefs gives back what commit and forget have collected.
func (s *Space) freeRefs() {
	for _, ref := range s.server.refs {
		s.p.free(ref)
	}
	s.server.refs = s.server.refs[:0]
}

// wake wakes the waiters of one page.
func (s *Space) wake(pg mem.Page) {
	r := mem.MakeRange(pg.Addr(), mem.PageSize)
	s.must("UFFDIO_WAKE", r, s.fd.Wake(r))
}

// lost marks a page as poisoned in the table and tells the user.
func (s *Space) lost(pg mem.Page, cause error) {
	s.mu.Lock()
	if e := s.table.peek(pg); e != nil && e.inStore {
		s.server.refs = append(s.server.refs, e.ref)
	}
	s.table.set(pg, entry{state: poisoned})
	s.mu.Unlock()
	s.freeRefs()
	s.p.stat.lost.Add(1)
	s.p.log.Error(fmt.Sprintf("page %v of %s is lost: %v; a thread that touches it gets SIGBUS",
		pg.Addr(), s.cfg.Name, cause))
	s.poison(pg)
}

// condemn gives up on a page that has been put off for too long.
func (s *Space) condemn(pg mem.Page, why string) {
	if s.gone.Load() {
		return
	}
	s.mu.Lock()
	st := s.table.stateOf(pg)
	known := s.regions.find(pg.Addr()) != nil
	s.mu.Unlock()
	switch st {
	case resident, loading:
		s.wake(pg) // it came in by another way
		return
	case poisoned:
		s.poison(pg) // still to be told to the kernel
		return
	}
	if !known {
		s.wake(pg) // unmapped meanwhile
		return
	}
	s.lost(pg, fmt.Errorf("for %v %s", s.p.cfg.Patience, why))
}

// poison makes every access to a page a SIGBUS. While the layout changes that
// cannot be done: the waiters are left asleep rather than given zeros, and it
// is tried again until it can.
//
// It reads no messages for that, because it is called while the pages of a
// fault are being brought in: an event that was applied in between could
// remove them, and the install would bring them back (H21).
func (s *Space) poison(pg mem.Page) {
	r := mem.MakeRange(pg.Addr(), mem.PageSize)
	switch _, errno := s.fd.Poison(r, 0); errno {
	case 0:
	case syscall.EEXIST, syscall.ENOENT:
		s.wake(pg)
	case syscall.EAGAIN:
		s.park(fault{page: pg, at: time.Now()}, changing)
	default:
		s.must("UFFDIO_POISON", r, errno)
	}
}
