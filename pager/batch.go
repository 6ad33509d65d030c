// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"errors"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager/internal/evict"
	"github.com/faultline-go/faultline/store"
)

// evictSpace takes pages of one space out, and returns how many are resident
// no more. Of those that did not, busy lists the ones that may be shared with a
// forked process: they can leave when they have been unshared. With later set none
// could be tried at this moment.
func (p *Pager) evictSpace(s *Space, b *batch) (left int, busy []victim, later bool) {
	mover := s.moverFor()
	if mover == nil {
		p.giveUp(s, b.victims, false)
		return 0, nil, false
	}
	s.batchMu.Lock()
	defer s.batchMu.Unlock()
	if s.closing.Load() || s.gone.Load() {
		return 0, nil, false // Close forgets the pages
	}
	if n := mover.Slots(); len(b.victims) > n {
		p.giveUp(s, b.victims[n:], false)
		b.victims = b.victims[:n]
	}
	b.fit()
	s.clearLimbo()
	s.begin(b)
	if len(b.victims) == 0 {
		return 0, nil, false
	}
	moveErr := s.moveOut(mover, b)
	b.unsure = s.unsettled(b)
	left, vanished, busy := s.sortOut(b)
	later = !slices.ContainsFunc(b.runs, func(r Run) bool { return r.Moved > 0 || r.Errno != syscall.EAGAIN })
	p.stat.pagesOut.Add(int64(left))
	err := mover.Read(b.runs, b.buf)
	if err != nil {
		s.loseBatch(b, err)
	} else {
		b.buffered.Store(true)
		if b.wanted.Load() {
			s.fd.Interrupt()
		}
		s.put(b)
		s.finish(b)
		if b.unsure {
			s.settleLimbo()
		}
	}
	if moveErr != nil && !s.gone.Load() && !s.closing.Load() {
		p.log.Warn("eviction helper failed, starting another", "space", s.cfg.Name, "err", moveErr)
	}
	if moveErr != nil || err != nil {
		mover.Close()
		s.mover = nil
	} else {
		mover.Drop()
	}
	p.addResident(-left - vanished)
	return left + vanished, busy, later
}

// moveOut has the mover take the pages of b. Where all is done on one thread, it
// takes them only if they still are where they were when the batch began: an
// mremap(2) may have been told of, and applied, while the evictor waited for that
// thread, and what is at the old addresses is another's then.
func (s *Space) moveOut(mover Mover, b *batch) (err error) {
	if s.cfg.On == nil {
		return mover.Move(b.runs)
	}
	for i := range b.runs {
		b.runs[i].Moved, b.runs[i].Errno = 0, syscall.EAGAIN
	}
	ok := s.cfg.On(func() {
		s.mu.Lock()
		same := s.changes == b.changes
		s.mu.Unlock()
		if same && !s.applying.Load() {
			err = mover.Move(b.runs)
		}
	})
	if !ok {
		return ErrGone
	}
	return err
}

// moverFor returns the mover of s, or nil if there is none yet. Making one
// may take long, since it may have to wait for threads that wait for pages:
// it is done on the side, while the evictor goes on with other spaces.
func (s *Space) moverFor() Mover {
	s.batchMu.Lock()
	defer s.batchMu.Unlock()
	if s.mover != nil || s.cfg.Mover == nil || s.closing.Load() || s.gone.Load() {
		return s.mover
	}
	if s.making == nil {
		if time.Now().Before(s.makeAfter) {
			return nil
		}
		made := make(chan made, 1)
		s.making = made
		go s.makeMover(made)
	}
	select {
	case m := <-s.making:
		s.making = nil
		if s.mover = m.mover; m.err == nil {
			return s.mover
		}
		s.makeAfter = time.Now().Add(backoff)
		if !s.told && !errors.Is(m.err, ErrGone) {
			s.told = true
			s.p.log.Warn("cannot evict, trying again", "space", s.cfg.Name, "err", m.err)
		}
	case <-time.After(makeWait):
	}
	return nil
}

func (s *Space) moverPending() bool {
	s.batchMu.Lock()
	defer s.batchMu.Unlock()
	return s.making != nil
}

// makeWait is how long the evictor waits for a mover before it turns to other
// spaces.
const makeWait = 2 * time.Millisecond

// made is a mover that makeMover has made, or why it could not.
type made struct {
	mover Mover
	err   error
}

func (s *Space) makeMover(result chan<- made) {
	m, err := s.cfg.Mover()
	result <- made{m, err}
	s.p.kickEvictor()
}

// begin marks the victims that are still what the queue took them for, and
// makes runs of them. Preconditions: s.batchMu is held.
func (s *Space) begin(b *batch) {
	slices.SortFunc(b.victims, func(x, y victim) int { return int(int64(x.page) - int64(y.page)) })
	b.buffered.Store(false)
	b.wanted.Store(false)
	b.runs = b.runs[:0]
	s.mu.Lock()
	defer s.mu.Unlock()
	b.changes, b.retried = s.changes, 0
	keep := b.victims[:0]
	alone := false // the latest page must move by itself
	for _, v := range b.victims {
		e := s.table.peek(v.page)
		if e == nil || e.state != resident || e.stamp != v.stamp {
			continue
		}
		if _, held := s.holds[v.page]; held || s.pins[v.page] > 0 {
			e.clear(picked)
			e.stamp = s.p.queue.Return(evict.Key{Space: s.id, Page: v.page}, v.stamp)
			continue
		}
		i := len(keep)
		keep = append(keep, v)
		e.state = evicting
		e.clear(picked)
		// A page that has failed before does not hold up its neighbours.
		if i > 0 && keep[i-1].page+1 == v.page && !alone && e.stuck == 0 {
			b.runs[len(b.runs)-1].Pages++
		} else {
			b.runs = append(b.runs, Run{Src: v.page.Addr(), Pages: 1, Slot: i})
		}
		if alone = e.stuck > 0; alone {
			b.retried++
		}
	}
	b.victims, b.sorted = keep, false
	b.moved = b.moved[:len(keep)]
	clear(b.moved)
	if len(keep) > 0 {
		s.batch = b
	}
}

// sortOut gives the pages that did not move back to the table. It returns how
// many did move, how many had been forgotten before they could, and those
// that may only have to be unshared.
//
// Preconditions: s.batchMu is held, b.runs have been moved.
func (s *Space) sortOut(b *batch) (left, vanished int, busy []victim) {
	var hints []store.Ref
	s.mu.Lock()
	b.sorted = true
	for _, r := range b.runs {
		for i := range r.Pages {
			at := r.Slot + i
			v := b.victims[at]
			if i < r.Moved {
				if b.retried > 0 {
					if e := s.table.peek(v.page); e != nil && e.stuck > 0 {
						b.freed++
					}
				}
				b.moved[at] = true
				left++
				continue
			}
			e := s.table.peek(v.page)
			if e == nil || e.state != evicting {
				// Removed or unmapped meanwhile: forget left the account
				// of it to us, who know whether it had left before.
				vanished++
				continue
			}
			e.state = resident
			e.mark(picked)
			switch {
			case r.Errno == syscall.EAGAIN, i > r.Moved && r.Errno != syscall.EBUSY:
				// It was not tried: the errno is that of a page before it, or of none.
				e.clear(picked)
				e.stamp = s.p.queue.Return(evict.Key{Space: s.id, Page: v.page}, v.stamp)
			case r.Errno == syscall.EBUSY && e.stuck%unshareEvery == 0:
				// Fork shares neighbours alike, so all of them are unshared,
				// but only the first is known to be in the way.
				if i == r.Moved {
					e.stuck++
				}
				busy = append(busy, v)
			case r.Errno == syscall.ENOENT && e.is(lazy) && s.limbo[v.page].IsZero():
				s.vanish(e)
				if e.inStore {
					hints = append(hints, e.ref)
				}
				s.table.set(v.page, entry{})
			default:
				s.p.stat.unmovable.Add(1)
				key := evict.Key{Space: s.id, Page: v.page}
				if e.stuck++; e.stuck > 1 { // one of 256, when it wraps, is tried as if new
					s.p.aside.put(key, v.stamp, e.stuck)
					break
				}
				e.clear(picked)
				e.stamp = s.p.queue.Return(key, v.stamp)
			}
		}
	}
	s.mu.Unlock()
	for _, ref := range hints {
		s.p.free(ref)
	}
	return left, vanished, busy
}

// unshareEvery is how often in a row a page may be busy before it is unshared
// again: what was pinned may have been shared by a fork since.
const unshareEvery = 8

// put stores the pages of b that are still wanted, except for those of which
// the store still has the present content. What the store does not take is
// held in our own memory.
func (s *Space) put(b *batch) {
	b.index, b.pages, b.fresh = b.index[:0], b.pages[:0], b.fresh[:0]
	s.mu.Lock()
	for i, v := range b.victims {
		if !b.moved[i] {
			continue
		}
		if e := s.table.peek(v.page); e != nil && (e.state == evicting || e.is(rescued)) {
			// The hint is ours from here on: nobody may free it while it is
			// read.
			b.refs[len(b.index)] = e.ref
			b.index = append(b.index, i)
			e.ref, e.inStore = store.Ref{}, false
		} else if b.unsure {
			b.refs[len(b.index)] = store.Ref{}
			b.index = append(b.index, i)
		}
	}
	s.mu.Unlock()
	for k, i := range b.index {
		page := b.buf[i*mem.PageSize : (i+1)*mem.PageSize]
		if hint := b.refs[k]; !hint.IsZero() {
			if !isHeld(hint) && s.p.cfg.Store.Same(hint, page) {
				s.p.stat.clean.Add(1)
				continue
			}
			s.p.free(hint)
		}
		b.pages = append(b.pages, page)
		b.fresh = append(b.fresh, k)
	}
	if len(b.pages) == 0 {
		return // which tells nothing about the store
	}
	refs := b.stored[:len(b.pages)]
	n, err := s.p.cfg.Store.Put(b.pages, refs)
	if n < len(b.pages) && errors.Is(err, store.ErrFull) && s.p.dropHints() {
		var more int
		more, err = s.p.cfg.Store.Put(b.pages[n:], refs[n:])
		n += more
	}
	if n == len(b.pages) {
		s.p.storeWorks()
	} else {
		for i := n; i < len(b.pages); i++ {
			refs[i] = s.p.overflow.hold(b.pages[i])
		}
		s.p.storeFails(err)
	}
	for j, k := range b.fresh {
		b.refs[k] = refs[j]
	}
}

// dropHints gives back what the store keeps of resident pages. It reports
// whether there was anything.
func (p *Pager) dropHints() (any bool) {
	for _, s := range p.snapshot() {
		var refs []store.Ref
		s.mu.Lock()
		s.table.each(allPages(), noLimit, func(_ mem.Page, e *entry) {
			if e.inStore && e.state == resident {
				refs = append(refs, e.ref)
				e.ref, e.inStore = store.Ref{}, false
			}
		})
		s.mu.Unlock()
		for _, ref := range refs {
			p.free(ref)
		}
		any = any || len(refs) > 0
	}
	return any
}

// finish enters where the pages of b are, and if it is not sure what they are puts them
// in limbo as well. Preconditions: s.batchMu is held.
func (s *Space) finish(b *batch) {
	unused := b.refs[:0:0]
	s.mu.Lock()
	for k, i := range b.index {
		v := b.victims[i]
		e := s.table.peek(v.page)
		if b.unsure {
			s.p.share(b.refs[k])
			if old := s.keep(b.source(i), b.refs[k]); !old.IsZero() {
				unused = append(unused, old)
			}
		}
		switch {
		case e != nil && e.state == evicting:
			ghost := s.p.queue.Evicted(v.stamp)
			s.table.set(v.page, entry{ref: b.refs[k], stamp: ghost, state: outside, inStore: true})
		case e != nil && e.state == loading && e.is(rescued):
			// The serving thread is installing it, and may have to take
			// that back.
			s.p.queue.Evicted(v.stamp)
			e.ref, e.inStore = b.refs[k], true
			e.clear(rescued)
		default:
			unused = append(unused, b.refs[k])
		}
	}
	s.batch = nil
	s.mu.Unlock()
	for _, ref := range unused {
		s.p.free(ref)
	}
}

// loseBatch deals with a window that cannot be read. Unless the space has
// ended, which is the usual reason, its pages are lost.
func (s *Space) loseBatch(b *batch, cause error) {
	var gone []mem.Page
	var hints []store.Ref
	s.mu.Lock()
	for i, v := range b.victims {
		e := s.table.peek(v.page)
		if b.moved[i] && e != nil && e.state == evicting {
			if e.inStore {
				hints = append(hints, e.ref)
			}
			s.table.set(v.page, entry{state: poisoned})
			gone = append(gone, v.page)
		}
	}
	s.batch = nil
	s.mu.Unlock()
	for _, ref := range hints {
		s.p.free(ref)
	}
	if s.gone.Load() || s.closing.Load() {
		return
	}
	s.p.stat.lost.Add(int64(len(gone)))
	s.p.log.Error("pages are lost on their way out", "space", s.cfg.Name, "pages", describePages(gone), "err", cause)
	for _, pg := range gone {
		_, errno := s.fd.Poison(mem.MakeRange(pg.Addr(), mem.PageSize), 0)
		if errno != syscall.EAGAIN { // else the fault on it poisons it
			s.must("UFFDIO_POISON", mem.MakeRange(pg.Addr(), mem.PageSize), errno)
		}
	}
}

// describePages names pages, which are in order of address but for a REMAP,
// as ranges.
func describePages(pages []mem.Page) string {
	var out strings.Builder
	for i := 0; i < len(pages); {
		j := i + 1
		for j < len(pages) && pages[j] == pages[j-1]+1 {
			j++
		}
		if i > 0 {
			out.WriteString(" ")
		}
		out.WriteString(mem.Range{Start: pages[i].Addr(), End: (pages[j-1] + 1).Addr()}.String())
		i = j
	}
	return out.String()
}

// giveUp puts victims back into the queue.
func (p *Pager) giveUp(s *Space, victims []victim, stuck bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range victims {
		e := s.table.peek(v.page)
		if e == nil || e.state != resident || e.stamp != v.stamp {
			continue
		}
		e.clear(picked)
		e.stamp = p.queue.Return(evict.Key{Space: s.id, Page: v.page}, v.stamp)
		if stuck {
			p.stat.unmovable.Add(1)
		} else {
			e.stuck = 0 // it was not its fault
		}
	}
}
