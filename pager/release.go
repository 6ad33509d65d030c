// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"fmt"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/store"
)

// releaseStep is the number of bytes that are given up at a time: faults wait for it,
// and the store may be slow.
const releaseStep = 1 << 20

// Release gives up r, which the program wants to serve by a descriptor of its own:
// what is outside is brought in, whatever room there is, and nothing of r is known
// thereafter. unregister is called for one part after the other; it has to end the
// registration, and to wake who waits for a page there.
//
// What readahead has made of fresh pages stays as well, as if the program had
// touched them.
//
// An error means that r is not given up from some page on.
func (s *Space) Release(r mem.Range, unregister func(mem.Range) syscall.Errno) error {
	for deadline := time.Now().Add(s.p.cfg.Patience); !r.Empty(); {
		step := r
		step.End = min(r.End, r.Start+releaseStep)
		done := false
		if err := s.drained(func() { done = s.release(step, unregister) }); err != nil {
			return err
		}
		switch {
		case done:
			r.Start = step.End
			deadline = time.Now().Add(s.p.cfg.Patience)
		case time.Now().After(deadline):
			return fmt.Errorf("release %v of %s: for %v %v, or a page could not be brought in", r, s.cfg.Name, s.p.cfg.Patience, changing)
		default:
			time.Sleep(firstPause)
		}
	}
	return nil
}

// release is Release on the serving thread, if the layout stays as it is for that
// long.
func (s *Space) release(r mem.Range, unregister func(mem.Range) syscall.Errno) bool {
	// As in fork: what is on its way out is not ours until it is there.
	if s.cfg.On == nil {
		s.batchMu.Lock()
	} else if !s.batchMu.TryLock() {
		return false
	}
	defer s.batchMu.Unlock()
	s.clearLimbo() // nothing else knows of what is there
	if !s.bringIn(r) {
		return false
	}
	s.must("UFFDIO_UNREGISTER", r, unregister(r))
	s.forget(r)
	s.mu.Lock()
	s.unhold(r)
	s.regions.remove(r)
	s.guards.remove(r)
	s.mu.Unlock()
	s.dismiss(r) // those who waited are awake, and find out by themselves
	return true
}

// bringIn installs what the store has of r, and poisons what is lost. It reports
// false if the layout changes meanwhile, or if a page cannot be installed.
// Preconditions: s.batchMu is held, by the serving thread.
func (s *Space) bringIn(r mem.Range) bool {
	type stored struct {
		page mem.Page
		ref  store.Ref
		lost bool
	}
	var all []stored
	s.mu.Lock()
	s.table.each(r, noLimit, func(pg mem.Page, e *entry) {
		switch {
		case e.state == poisoned:
			all = append(all, stored{page: pg, lost: true})
		case e.inStore && (e.state == outside || e.state == loading):
			all = append(all, stored{page: pg, ref: e.ref})
		}
	})
	s.mu.Unlock()
	page := make([]byte, mem.PageSize)
	for _, w := range all {
		if !w.lost {
			if err := s.p.fetchAny(w.ref, page); err != nil {
				s.lost(w.page, err)
				w.lost = true
			}
		}
		at := mem.MakeRange(w.page.Addr(), mem.PageSize)
		op, errno := "UFFDIO_COPY", syscall.Errno(0)
		if w.lost {
			op = "UFFDIO_POISON"
			_, errno = s.fd.Poison(at, 0)
		} else {
			_, errno = s.fd.Copy(at.Start, page, 0)
		}
		switch errno {
		case 0, syscall.EEXIST, syscall.ENOENT: // it is there already, or unmapped by now
		case syscall.EAGAIN:
			return false
		default:
			if !s.noteGone(errno) {
				s.must(op, at, errno)
				return false // it would be missing where it is not
			}
		}
	}
	return true
}
