// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"cmp"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager/internal/evict"
)

// FindResident asks [SpaceConfig.Present] for the pages of r that are present
// though the pager did not install them: they were there before it came, or
// the kernel populated them. Pages of which more is known are left alone. It
// returns what Present does, or [ErrGone]. The threads of the space may run
// meanwhile.
//
// What is found is entered by the serving thread while no event is
// outstanding. Otherwise pages that mremap(2) has brought here could leave,
// and be forgotten with what was here before when the event is applied; or
// pages be entered that an event has already told to be gone.
//
// With freed set there may be pages among them that MADV_FREE has marked before: the
// kernel takes those when it is short of memory, and they are zero then.
func (s *Space) FindResident(r mem.Range, freed bool) error {
	if freed {
		return s.findResident(r, lazy)
	}
	return s.findResident(r, 0)
}

func (s *Space) findResident(r mem.Range, f flags) error {
	steps, err := stepsOf(r, s.cfg.Present)
	if err != nil {
		return err
	}
	for _, step := range steps {
		gone := s.drained(func() {
			s.setNews(&regions{})
			err = s.cfg.Present(step, func(p mem.Range) { s.markResident(p, f) })
			s.setNews(nil)
		})
		if err = cmp.Or(gone, err); err != nil {
			break
		}
	}
	return err
}

// stepsOf asks look what there is in r, and returns ranges in which all of that is, each
// no larger than what the serving thread may look at while faults wait. Mostly there is
// nothing, and that thread need not be asked; or little, in reservations of a TiB.
func stepsOf(r mem.Range, look func(mem.Range, func(mem.Range)) error) (steps []mem.Range, err error) {
	err = look(r, func(p mem.Range) {
		for !p.Empty() {
			n := len(steps) - 1
			if n < 0 || p.Start < steps[n].Start || p.Start >= steps[n].Start+findStep {
				steps = append(steps, mem.Range{Start: p.Start, End: p.Start})
				n++
			}
			end := min(p.End, steps[n].Start+findStep)
			steps[n].End = max(steps[n].End, end)
			p.Start = end
		}
	})
	return steps, err
}

// findStep is the number of bytes in which the serving thread looks for
// pages at a time.
const findStep = 64 << 20

func (s *Space) setNews(to *regions) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.news = to
}

func (s *Space) markResident(r mem.Range, f flags) {
	for !r.Empty() {
		// In steps, so that the evictor does not wait long for the lock.
		step := r
		step.End = min(r.End, r.Start+forgetStep*mem.PageSize)
		s.markSome(step, f)
		r.Start = step.End
	}
}

func (s *Space) markSome(r mem.Range, f flags) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.p.spaces[s.id] != s {
		return // Close has settled the account
	}
	if s.removes.overlap(r) {
		f |= lazy
	}
	n := 0
	s.regions.within(r, func(part region) {
		for pg := part.Start.Page(); pg < part.End.Page(); pg++ {
			if s.table.stateOf(pg) != fresh || s.news.find(pg.Addr()) != nil {
				continue
			}
			stamp := s.p.queue.Insert(evict.Key{Space: s.id, Page: pg}, 0, evict.Fresh)
			s.table.set(pg, entry{state: resident, stamp: stamp, flags: f})
			n++
		}
	})
	s.p.addResident(n)
}

// FindGuards is Guard for what [SpaceConfig.Guards] says of r. One that is set meanwhile
// has to be told by Guard.
func (s *Space) FindGuards(r mem.Range) error {
	steps, err := stepsOf(r, s.cfg.Guards)
	if err != nil {
		return err
	}
	for _, step := range steps {
		gone := s.drained(func() {
			// Here, where nothing can be brought in meanwhile: what is a guard now
			// has no content.
			err = s.cfg.Guards(step, s.guard)
		})
		if err = cmp.Or(gone, err); err != nil {
			break
		}
	}
	return err
}
