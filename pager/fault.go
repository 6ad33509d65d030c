// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager/internal/evict"
	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// want is one page that is being brought in.
type want struct {
	page    mem.Page
	ref     store.Ref   // its content, if inStore
	stamp   evict.Stamp // of the time when it left
	inStore bool
	kind    evict.Kind
	// what has become of it
	fate  fate
	found bool // it was there already
}

type fate uint8

const (
	staged   fate = iota // its bytes are in the stage
	loaning              // a worker fetches it
	bad                  // it cannot be had
	landed               // it is present in the space
	refused              // the install has to be taken back
	unmapped             // so has this one, and nobody waits for it any more
)

// serveFault brings in the page of f, or puts f off.
func (s *Space) serveFault(f fault) {
	s.server.pace.faulted(s.server.thread, s.cfg.Pid, f.tid, f.at)
	s.mu.Lock()
	reg := s.regions.find(f.page.Addr())
	if reg == nil {
		s.mu.Unlock()
		s.adopt(f)
		return
	}
	switch st := s.table.stateOf(f.page); st {
	case loading:
		// The install under way wakes every waiter of the page.
		s.mu.Unlock()
		s.p.stat.repeated.Add(1)
	case resident:
		s.mu.Unlock()
		s.refault(f)
	case poisoned:
		s.mu.Unlock()
		s.poison(f.page)
	case evicting:
		if !s.batch.rescue(f.page, s.server.stage) {
			s.mu.Unlock()
			s.park(f, moving)
			return
		}
		e := s.table.peek(f.page)
		e.state = loading
		e.mark(rescued)
		s.server.want = append(s.server.want, want{page: f.page, stamp: e.stamp, kind: evict.Rescued})
		s.mu.Unlock()
		s.p.stat.rescued.Add(1)
		s.install(f)
	default:
		if s.batch.takingPage(f.page) {
			s.mu.Unlock()
			s.park(f, moving)
			return
		}
		if st == outside {
			// Its bytes are far, and come while we decide.
			s.p.bring(s.table.peek(f.page).ref)
		}
		room := s.p.room()
		if room < 1 && time.Since(f.at) < stallTime {
			s.mu.Unlock()
			s.park(f, noRoom)
			return
		}
		s.choose(f, st, reg.Range, int(min(max(room, 1), int64(cap(s.server.want)))))
		s.mu.Unlock()
		s.fetch()
		s.install(f)
	}
}

// stallTime is how long a fault waits for room. Then it is served all the
// same: what keeps the evictor from making room may be waiting for this very
// page, as a thread does that has to be stopped for an agent.
const stallTime = 50 * time.Millisecond

// take marks a page as loading and adds it to server.want.
//
// Preconditions: s.mu is held, and the page's entry agrees with w.
func (s *Space) take(w want) {
	s.table.set(w.page, entry{ref: w.ref, stamp: w.stamp, state: loading, inStore: w.inStore})
	s.server.want = append(s.server.want, w)
}

// choose fills server.want with the page of f and the pages that are worth
// bringing in along with it: at most most, all within r, all of which are in
// the same state as the page itself. The pages are in order of address.
//
// Preconditions: s.mu is held; the page of f is in state st, fresh or outside.
func (s *Space) choose(f fault, st state, r mem.Range, most int) {
	sv := &s.server
	plan := sv.ahead.Miss(f.page, f.tid, st == outside)
	kind := evict.Demand
	if st == fresh {
		kind = evict.Fresh
		s.p.stat.fresh.Add(1)
	} else {
		s.p.stat.major.Add(1)
	}
	s.add(f.page, kind)
	if at := mem.MakeRange(f.page.Addr(), mem.PageSize); s.guards.overlaps(at) {
		s.guards.remove(at) // a guard does not fault
	}
	last, more, passed := f.page, 0, 0
	for i := 1; i <= min(plan.Count, most-1, cap(sv.want)-1); i++ {
		pg := f.page + mem.Page(plan.Stride*int64(i))
		if !r.Contains(pg.Addr()) || s.edge(last, pg) || s.guards.find(pg.Addr()) != nil {
			break
		}
		last, passed = pg, i
		if s.table.stateOf(pg) != st || s.batch.takingPage(pg) {
			continue
		}
		k := evict.Ahead
		if st == fresh {
			k = evict.Fresh
		}
		s.add(pg, k)
		more++
	}
	if plan.Count > 0 {
		sv.ahead.Granted(plan, passed)
	}
	if plan.Stride < 0 {
		slices.Reverse(sv.want)
	}
	s.p.stat.ahead.Add(int64(more))
}

// add takes a page that is fresh or outside. Preconditions: s.mu is held.
func (s *Space) add(pg mem.Page, kind evict.Kind) {
	w := want{page: pg, kind: kind}
	if e := s.table.peek(pg); e != nil {
		w.ref, w.stamp, w.inStore = e.ref, e.stamp, e.inStore
	}
	s.take(w)
}

// fetch fills the stage with the content of the pages in server.want. What
// would have to wait for a device goes to a worker.
func (s *Space) fetch() {
	sv := &s.server
	for i := range sv.want {
		w := &sv.want[i]
		dst := sv.stage[i*mem.PageSize : (i+1)*mem.PageSize]
		if !w.inStore {
			clear(dst)
			continue
		}
		ok, err := s.p.fetchNow(w.ref, dst)
		switch {
		case err != nil:
			w.fate = bad
			s.lost(w.page, err)
		case !ok:
			w.fate = loaning
			s.lend(w.page, w.ref)
		}
	}
}

// refault deals with a missing fault on a page that is thought present.
//
// Mostly the message is a second one for a fault that has been resolved
// since: another thread's, or the same thread's after a signal. Waking it is
// all that is needed. If the page keeps missing, the kernel knows better.
func (s *Space) refault(f fault) {
	s.p.stat.repeated.Add(1)
	s.mu.Lock()
	e := s.table.peek(f.page)
	loose := e != nil && e.is(lazy)
	in := s.inLimbo(f.page)
	var stamp evict.Stamp
	if e != nil {
		stamp = e.stamp
	}
	s.mu.Unlock()
	if in {
		if s.present(f.page) {
			s.wake(f.page)
		} else if s.settleLimbo(); s.stateOf(f.page) != resident {
			s.serveFault(f)
		} else {
			s.park(f, moving) // until the batch is through that has it
		}
		return
	}
	if loose {
		// A REMOVE is queued before the pages go. This one was installed
		// again in between, and went with the others: it is zero (H5, H6).
		// Or it stayed after MADV_FREE, and was reclaimed.
		s.refill(f)
		return
	}
	sp := &s.server.suspect[f.page%mem.Page(len(s.server.suspect))]
	if sp.page != f.page {
		*sp = suspect{page: f.page}
	}
	sp.count++
	if sp.count < enough || s.present(f.page) {
		s.wake(f.page)
		return
	}
	*sp = suspect{}
	if s.fd.Changing() || s.fd.Pending() {
		s.park(f, changing) // an event that is not read yet may tell where it went
		return
	}
	// It may have been on its way out when we looked, and have come back since. The
	// kernel poisons nothing that is there: so it is asked first, and believed; and with
	// the lock, so that nobody takes the page away meanwhile. No thread is woken before
	// the user is told.
	r := mem.MakeRange(f.page.Addr(), mem.PageSize)
	s.mu.Lock()
	e = s.table.peek(f.page)
	if e == nil || e.state != resident || e.stamp != stamp || s.inLimbo(f.page) {
		s.mu.Unlock()
		s.serveFault(f) // the evictor has taken it, while we looked
		return
	}
	stuck := e.stuck
	_, errno := s.fd.Poison(r, uapi.UFFDIO_POISON_MODE_DONTWAKE)
	if errno == 0 {
		s.vanish(e)
		s.dropHint(e)
		s.table.set(f.page, entry{state: poisoned})
	}
	s.mu.Unlock()
	switch errno {
	case 0:
		s.lost(f.page, fmt.Errorf("it left memory, and not by our hand (thread %d; tried %d times)", f.tid, stuck))
	case syscall.EEXIST, syscall.ENOENT:
		s.wake(f.page)
	case syscall.EAGAIN:
		s.park(f, changing)
	default:
		s.must("UFFDIO_POISON", r, errno)
	}
}

func (s *Space) stateOf(pg mem.Page) state {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table.stateOf(pg)
}

// suspect is a page on which threads fault though it is thought present.
type suspect struct {
	page  mem.Page
	count int
}

// enough is how often a page has to miss before it is looked up.
const enough = 3

// refill makes a page that is thought present fresh, and serves f again.
func (s *Space) refill(f fault) {
	s.mu.Lock()
	if e := s.table.peek(f.page); e != nil && e.state == resident {
		s.vanish(e)
		s.dropHint(e)
		s.table.set(f.page, entry{})
	}
	s.mu.Unlock()
	s.serveFault(f)
}

// vanish accounts for a resident page that is no more. The caller changes
// its entry. Preconditions: s.mu is held.
func (s *Space) vanish(e *entry) {
	if !e.is(picked) {
		s.p.queue.Removed(e.stamp)
	}
	s.p.addResident(-1)
}

// dropHint gives back the stored copy of a resident page, when its entry is
// about to be replaced. Preconditions: s.mu is held.
func (s *Space) dropHint(e *entry) {
	if e.inStore {
		s.server.refs = append(s.server.refs, e.ref)
		e.ref, e.inStore = store.Ref{}, false
	}
}

// present asks the kernel whether a page is present. If it cannot tell, the
// page is taken for present: its thread is woken, and faults again.
func (s *Space) present(pg mem.Page) bool {
	if s.cfg.Present == nil {
		return true
	}
	found := false
	err := s.cfg.Present(mem.MakeRange(pg.Addr(), mem.PageSize), func(mem.Range) { found = true })
	return found || err != nil
}

// adopt deals with a fault in memory that nobody has announced. The message
// came from our descriptor, so the kernel has the memory registered: a
// mapping grew in place, which queues no event, or it is unmapped by now.
func (s *Space) adopt(f fault) {
	at := f.page.Addr()
	var r mem.Range
	ok := false
	if s.cfg.Mapping != nil {
		r, ok = s.cfg.Mapping(at)
	}
	if !ok {
		// Unmapped: the thread wakes, and finds out by itself.
		s.p.stat.stale.Add(1)
		s.wake(f.page)
		return
	}
	s.Found(r)
	s.mu.Lock()
	reg := s.regions.find(at)
	known := reg != nil
	if head := s.regions.find(r.Start); known && head != nil && head.wipe {
		// What a mapping grows by is as it is, and r was one a moment ago.
		s.regions.add(region{r.Intersect(reg.Range), true})
	}
	s.mu.Unlock()
	if !known {
		s.p.stat.stale.Add(1)
		s.wake(f.page)
		return
	}
	s.serveFault(f)
}

// edge reports whether readahead should stop between two pages, because the
// kernel refused an install across it before: mappings that we see as one
// region are several to the kernel once mprotect(2) has split them.
//
// Preconditions: s.mu is held.
func (s *Space) edge(from, to mem.Page) bool {
	if from > to {
		from, to = to, from
	}
	for _, e := range s.server.edges {
		if from < e && e <= to {
			return true
		}
	}
	return false
}
