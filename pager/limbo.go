// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"github.com/faultline-go/faultline/internal/place"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/store"
)

// The kernel moves pages to another address before it tells of it. A mover that takes
// a page at that moment takes by its address what belongs to another page: the one
// that mremap(2) has just brought there. The events that follow tell first that what
// was there is unmapped, and then what is there now, and by then the content may be in
// the store under the name of the former.
//
// So what a batch has moved while the layout was changing stays in limbo: under the
// address from which it was taken, with a reference of its own, until all events of
// that time are applied. A page that is thought resident by then, and is not there, has
// its content in limbo.

// unsettled reports whether the layout may have changed since the batch began. It is
// called when its pages have been moved.
func (s *Space) unsettled(b *batch) bool {
	if s.cfg.On != nil {
		return false // moveOut has seen to it
	}
	if s.fd.Changing() {
		return true
	}
	// Whatever changed before has been read. The serving thread applies it before it
	// goes on to anything that takes long, but for a fork, which waits for us.
	for i := 0; s.applying.Load(); i++ {
		if i == yields {
			return true
		}
		place.Yield()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changes != b.changes
}

// yields is how often unsettled lets the serving thread go on: it reads and applies
// messages in some microseconds.
const yields = 20

// keep adds what was taken from pg to the limbo. It returns what was there before, to
// be freed. Preconditions: s.mu is held.
func (s *Space) keep(pg mem.Page, ref store.Ref) (old store.Ref) {
	if s.limbo == nil {
		s.limbo = make(map[mem.Page]store.Ref)
	}
	old = s.limbo[pg]
	s.limbo[pg] = ref
	return old
}

// inLimbo reports whether the content of a page that is thought resident may be in limbo, or
// about to be. Preconditions: s.mu is held.
func (s *Space) inLimbo(pg mem.Page) bool {
	if _, in := s.limbo[pg]; in {
		return true
	}
	return s.batch.takes(pg)
}

// settleLimbo gives pages that are thought resident, and are not there, their content
// from the limbo. It reports whether it has found any.
func (s *Space) settleLimbo() (found bool) {
	type missing struct {
		page mem.Page
		entry
	}
	var list []missing
	s.mu.Lock()
	for pg := range s.limbo {
		if e := s.table.peek(pg); e != nil && e.state == resident {
			list = append(list, missing{pg, *e})
		}
	}
	s.mu.Unlock()
	for _, m := range list {
		if s.present(m.page) {
			continue
		}
		var hint store.Ref
		s.mu.Lock()
		e := s.table.peek(m.page)
		ref, in := s.limbo[m.page]
		// The evictor may have taken it while we looked.
		if in && e != nil && e.state == resident && e.stamp == m.stamp {
			s.vanish(e)
			if e.inStore {
				hint = e.ref
			}
			delete(s.limbo, m.page)
			s.table.set(m.page, entry{ref: ref, state: outside, inStore: true})
			found = true
		}
		s.mu.Unlock()
		if !hint.IsZero() {
			s.p.free(hint)
		}
	}
	return found
}

// clearLimbo settles and empties the limbo if all events are applied that were
// outstanding when its pages were moved. If not it only settles.
//
// Preconditions: s.batchMu is held, so that nothing is added.
func (s *Space) clearLimbo() {
	s.mu.Lock()
	n := len(s.limbo)
	s.mu.Unlock()
	if n == 0 {
		return
	}
	quiet := !s.fd.Changing() && !s.applying.Load()
	s.settleLimbo()
	if quiet || s.closing.Load() {
		s.emptyLimbo()
	}
}

func (s *Space) emptyLimbo() {
	s.mu.Lock()
	old := s.limbo
	s.limbo = nil
	s.mu.Unlock()
	for _, ref := range old {
		s.p.free(ref)
	}
}
