// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"fmt"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager/internal/evict"
	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// apply brings the table up to date with an event. It runs before the faults
// that were read with it are served. It reports false if that cannot be done yet.
func (s *Space) apply(m *uapi.Msg) bool {
	switch m.Event {
	case uapi.UFFD_EVENT_UNMAP:
		r := m.Range()
		s.forget(r)
		s.mu.Lock()
		s.unhold(r)
		s.regions.remove(r)
		s.guards.remove(r)
		s.changes++
		s.mu.Unlock()
	case uapi.UFFD_EVENT_REMOVE:
		r := m.Range()
		dropped := s.forget(r)
		s.mu.Lock()
		s.removes.add(r)
		if dropped > 0 && s.cfg.Present != nil {
			// MADV_FREE raises the same event, and leaves its pages where
			// they are until memory is short. They still count. (Where they
			// can be moved it must not be used: see Mover.)
			s.verify = append(s.verify, r)
		}
		s.mu.Unlock()
	case uapi.UFFD_EVENT_REMAP:
		from, to, n := m.Remap()
		s.moveEntries(from, to, n)
	case uapi.UFFD_EVENT_FORK:
		if !s.fork(int(m.ForkFD())) {
			return false
		}
	default:
		s.p.log.Warn(fmt.Sprintf("unknown event %v: newer than this program", m.Event), "space", s.cfg.Name)
	}
	s.p.stat.events.Add(1)
	return true
}

// forget makes all pages of r fresh and frees what the store holds of them.
// It returns how many of them were resident.
func (s *Space) forget(r mem.Range) (dropped int) {
	var refs []store.Ref
	all, waited := r, false
	for !r.Empty() {
		// In steps, so that no fault waits for the lock while a process
		// with millions of pages goes.
		refs = refs[:0]
		s.mu.Lock()
		r.Start = s.table.each(r, forgetStep, func(pg mem.Page, e *entry) {
			switch e.state {
			case resident:
				s.vanish(e)
				dropped++
			case loading:
				waited = true
			case evicting:
				s.batch.drop(pg)
			}
			if e.inStore && (e.state != loading || s.abandon(pg)) {
				refs = append(refs, e.ref)
			}
			// The batch finds an evicting entry changed, and drops its copy.
			s.table.set(pg, entry{})
		})
		s.mu.Unlock()
		for _, ref := range refs {
			s.p.free(ref)
		}
	}
	if waited && !s.closing.Load() {
		// Their messages have been read, and no install will wake them.
		s.must("UFFDIO_WAKE", all, s.fd.Wake(all))
	}
	return dropped
}

// forgetStep is the number of pages for which the lock is held at a time.
const forgetStep = 4096

// moveEntries follows an mremap(2) that has moved n bytes of registered
// memory. The source stays a region: with MREMAP_DONTUNMAP it remains mapped
// and registered, and otherwise no fault will come from there.
func (s *Space) moveEntries(from, to mem.Addr, n uint64) {
	src, dst := mem.MakeRange(from, n), mem.MakeRange(to, n)
	defer s.settleLimbo()
	s.forget(dst) // whatever was there is unmapped
	if s.carry(from, to, src) {
		// Threads that wait at the old address: the install comes elsewhere.
		s.must("UFFDIO_WAKE", src, s.fd.Wake(src))
	}
}

// carry moves the entries and regions of src. It reports whether pages among
// them are being loaded.
func (s *Space) carry(from, to mem.Addr, src mem.Range) (waited bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	var parts, guards []region
	s.guards.within(src, func(g region) { guards = append(guards, g) })
	s.guards.remove(src)
	s.guards.remove(mem.Range{Start: to, End: to + src.End - src.Start})
	for _, g := range guards {
		s.guards.add(region{Range: mem.Range{Start: g.Start - from + to, End: g.End - from + to}})
	}
	s.regions.within(src, func(p region) { parts = append(parts, p) })
	for _, p := range parts {
		p.Start, p.End = p.Start-from+to, p.End-from+to
		s.regions.add(p)
	}
	type moved struct {
		page mem.Page
		entry
	}
	var all []moved
	s.table.each(src, noLimit, func(pg mem.Page, e *entry) {
		all = append(all, moved{pg, *e})
		if e.state == resident && !e.is(picked) {
			// The queue knows it by its old address.
			s.p.queue.Removed(e.stamp)
		}
		s.table.set(pg, entry{})
	})
	for _, m := range all {
		pg := m.page - from.Page() + to.Page()
		switch m.state {
		case resident:
			m.stamp = s.p.queue.Insert(evict.Key{Space: s.id, Page: pg}, 0, evict.Fresh)
			m.clear(picked)
		case loading:
			waited = true
			if j := s.inflight[m.page]; j != nil {
				delete(s.inflight, m.page)
				s.inflight[pg] = j
				j.page = pg
			}
		case evicting:
			s.batch.move(m.page, pg)
		}
		s.table.set(pg, m.entry)
	}
	return waited
}

// ranges remembers the latest REMOVE events. The event is queued before the
// pages go, so a page that is installed in between goes with them although
// the table says that it is resident. Protected by Pager.mu.
type ranges struct {
	ring []removed
	next int
}

type removed struct {
	mem.Range
	at time.Time
}

const (
	// maxRemoves bounds the memory of REMOVE events.
	maxRemoves = 1024
	// removeDelay is longer than a thread is held up between its event and
	// the removal, which is some microseconds unless it is preempted.
	removeDelay = 10 * time.Second
)

func (rs *ranges) add(r mem.Range) {
	e := removed{r, time.Now()}
	if len(rs.ring) < maxRemoves {
		rs.ring = append(rs.ring, e)
		return
	}
	rs.ring[rs.next] = e
	rs.next = (rs.next + 1) % maxRemoves
}

// overlap reports whether pages that are installed in r now may yet go.
func (rs *ranges) overlap(r mem.Range) bool {
	if len(rs.ring) == 0 {
		return false
	}
	since := time.Now().Add(-removeDelay)
	for i := range rs.ring {
		if e := &rs.ring[i]; e.Overlaps(r) && e.at.After(since) {
			return true
		}
	}
	return false
}
