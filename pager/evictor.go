// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/faultline-go/faultline/internal/place"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/store"
)

const (
	// settle is how long the evictor sleeps before it empties the windows,
	// and compares with the kernel what a REMOVE may have left.
	settle = 10 * time.Millisecond
	// backoff is the time between two tries while nothing can leave.
	backoff    = 100 * time.Millisecond
	maxBackoff = 2 * time.Second
	// patientFor is how long the bound holds while a mover is being made, or a
	// fork is under way.
	patientFor = 2 * time.Second
)

// evictor is the state of the one evicting thread.
type evictor struct {
	p *Pager
	// victims of the round by space, and the batch of the space whose turn it is.
	// There is one: were its buffers made anew for each of many spaces, the collector
	// would do nothing else.
	victims map[*Space][]victim
	batch   batch
	busy    map[*Space][]victim // to be tried again, having been unshared
	failed  time.Duration       // present backoff
	until   time.Time           // its end
	probe   []byte              // a page that does not compress
	tried   int                 // victims in a row that could not leave
	size    int                 // pages of the next batch
	since   time.Time           // movers are waited for since then; zero if not
	// scattered says that the latest round's pages were.
	scattered bool
	turns     int  // processor of a server that takes turns, if others keep off it, or -1
	apart     bool // they do, and so do we
}

// evictLoop keeps the resident set below the limit.
func (p *Pager) evictLoop() {
	// On a thread of its own, so that it can be kept off the processor on
	// which a server takes turns with a faulting thread.
	runtime.LockOSThread()
	th := place.Self()
	defer func() {
		place.Clear(-1)
		th.Close()
		runtime.UnlockOSThread()
	}()
	ev := &evictor{p: p, size: p.batch, turns: -1, victims: make(map[*Space][]victim), busy: make(map[*Space][]victim)}
	var due time.Time // of the next look if nobody kicks; zero for never
	for {
		d := time.Duration(-1)
		if !due.IsZero() {
			d = max(0, time.Until(due))
		}
		kicked := ev.watch() || p.kick.Wait(d)
		switch {
		case p.ended.Load():
			return
		case kicked:
			// Nothing could leave a moment ago. Every fault kicks, and a
			// try may go through all that is resident.
			if time.Now().Before(ev.until) && p.room() > 0 {
				continue
			}
		case time.Now().Before(due):
			continue // a signal
		default:
			due = time.Time{}
			ev.tidy()
			if p.over() <= 0 {
				continue
			}
		}
		d = settle
		for p.over() > 0 {
			ev.makeWay(th)
			var again bool
			if again, d = ev.round(); !again {
				break
			}
			if p.ended.Load() {
				return
			}
		}
		due = time.Now().Add(d)
	}
}

// makeWay keeps us off the processor where a server takes turns with a thread.
// If the faults are scattered, each for one page, it keeps others off as well,
// and us awake; for the sake of a few faults for many pages that would not pay.
func (ev *evictor) makeWay(th *place.Thread) {
	cpu := ev.p.busiest()
	ev.apart = th.Avoid(cpu) && cpu >= 0 && ev.scattered
	if !ev.apart {
		cpu = -1
	}
	if cpu != ev.turns {
		ev.turns = cpu
		place.Clear(cpu)
	}
}

// watchTime is longer than the time between two batches of a fault stream.
const watchTime = 500 * time.Microsecond

// watch looks out for a kick while a server takes turns with a thread on
// another processor, instead of going to sleep at once. A processor without
// work looks for some on others, and what it finds is the thread that the
// server has just woken and that is to run next: the two are separated, and
// the next faults cost ten times as much. It yields to whoever wants to run.
func (ev *evictor) watch() (kicked bool) {
	if !ev.apart || ev.p.busiest() < 0 {
		return false
	}
	for end := time.Now().Add(watchTime); time.Now().Before(end); place.Yield() {
		for range looks {
			if ev.p.kick.Wait(0) {
				return true
			}
		}
	}
	return false
}

// looks is how often watch looks before it yields: for about a microsecond.
const looks = 200

// busiest returns the processor to which a serving thread is pinned, or -1.
func (p *Pager) busiest() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.spaces {
		if cpu := s.server.pace.cpu.Load(); cpu > 0 {
			return int(cpu - 1)
		}
	}
	return -1
}

// round evicts one batch. It reports whether to go on at once, and if not,
// after what time to look again.
func (ev *evictor) round() (again bool, pause time.Duration) {
	p := ev.p
	if p.storeDown.on.Load() && !(ev.storeAnswers() && p.flushHeld()) {
		return ev.fail("the store takes no pages")
	}
	ev.choose()
	left, freed, seen, runs := 0, 0, 0, 0
	waiting, later := false, false
	b := &ev.batch
	for s, victims := range ev.victims {
		if len(victims) == 0 {
			delete(ev.victims, s) // it had none in the latest round either
			continue
		}
		seen += len(victims)
		b.victims, b.runs, b.freed = victims, b.runs[:0], 0
		n, busy, no := p.evictSpace(s, b)
		left += n
		freed += b.freed
		runs += len(b.runs)
		if s.gone.Load() || s.closing.Load() {
			seen -= len(b.victims) // they need not leave any more
		}
		waiting = waiting || n == 0 && s.moverPending()
		if no || len(busy) > 0 && !ev.unshare(s, busy) {
			later = true // a fork is under way
		}
		ev.victims[s] = victims[:0]
	}
	ev.size, ev.scattered = p.batch, seen < scattered*runs
	if ev.scattered {
		ev.size = min(ev.size, smallBatch)
	}
	switch {
	case !waiting && !later || left > 0:
		ev.since = time.Time{}
	case ev.since.IsZero():
		ev.since = time.Now()
		fallthrough
	case time.Since(ev.since) < patientFor:
		// Pages can leave as soon as the mover is there, or the fork is over. That
		// is no reason to lift the bound.
		return !later, makeWait
	}
	aside := p.asides()
	if ev.tried += seen; seen == 0 {
		ev.tried += aside // which was tried not long ago
	}
	const stays = "what is resident is pinned, locked or not writable, or its process cannot be stopped"
	switch {
	case left > 0 && p.storeDown.on.Load():
		// They are held in our own memory. Not the next ones, too.
		return ev.fail("the store takes no pages")
	case left > 0 && freed == 0 && int64(aside) >= p.budget():
		// The bound cannot be kept, whatever else leaves. That would only be
		// missed: the program would do nothing but wait for it.
		ev.tried = 0
		return ev.fail(stays)
	case left > 0:
		ev.failed, ev.tried = 0, 0
		if p.unbounded.end() {
			p.log.Info("pages can leave memory again")
		}
		return true, settle
	case len(ev.busy) > 0:
		return true, settle // the next round takes those
	case seen == 0 && aside == 0:
		// Nothing is queued: it is all on its way, or just being entered.
		ev.tried = 0
		return false, settle
	case seen == 0 && ev.tried < int(p.resident.Load()):
		return false, settle
	case seen > 0 && ev.tried+aside < int(p.resident.Load()):
		// A batch of pinned pages is no reason to give up: others wait in
		// the queue. It is one when a whole turn of the queue came to
		// nothing. A space whose mover is still being made comes up here.
		return true, makeWait
	}
	ev.tried = 0
	return ev.fail(stays)
}

// Scattered pages take the mover long, call by call, and a thread that faults
// on one of them in the meantime has to wait. So they leave in small batches.
const (
	scattered  = 4 // pages a run, on average, below which a batch counts as scattered
	smallBatch = 64
)

// fail notes that nothing can leave, and lifts the bound: a fault must not
// wait for room that nobody can make.
func (ev *evictor) fail(why string) (again bool, pause time.Duration) {
	p := ev.p
	ev.failed = min(max(2*ev.failed, backoff), maxBackoff)
	ev.until = time.Now().Add(ev.failed)
	if p.room() < overshoot || p.unbounded.on.Load() {
		if p.unbounded.begin() {
			p.log.Warn(fmt.Sprintf("memory grows past the limit of %d MiB: %s", p.cfg.Limit>>20, why))
		}
		for _, s := range p.snapshot() {
			s.fd.Interrupt() // parked faults need no room now
		}
	}
	return false, ev.failed
}

// choose takes one batch of victims from the queue, by space.
func (ev *evictor) choose() {
	p := ev.p
	n := 0
	for s, victims := range ev.busy {
		ev.victims[s] = append(ev.victims[s], victims...)
		n += len(victims)
		delete(ev.busy, s)
	}
	p.requeue(ev.size)
	p.mu.Lock()
	defer p.mu.Unlock()
	for n < ev.size {
		k, stamp, ok := p.queue.Victim()
		if !ok {
			return
		}
		s := p.spaces[k.Space]
		s.table.peek(k.Page).mark(picked)
		if s.closing.Load() {
			continue // Close forgets it
		}
		ev.victims[s] = append(ev.victims[s], victim{k.Page, stamp})
		n++
	}
}

// unshare makes pages the space's own which it may share with a forked
// process, so that they can be moved in the next round.
//
// If a fork is under way, the child must see them as it left them: its table
// is copied when its event is read, and until then nothing may leave. unshare then
// reports false.
func (ev *evictor) unshare(s *Space, busy []victim) bool {
	m := s.moverFor()
	forking := s.fd.Changing()
	if m == nil || forking {
		ev.p.giveUp(s, busy, false)
		return !forking
	}
	for i := 0; i < len(busy); {
		j := i + 1
		for j < len(busy) && busy[j].page == busy[j-1].page+1 {
			j++
		}
		r := mem.Range{Start: busy[i].page.Addr(), End: (busy[j-1].page + 1).Addr()}
		if err := m.Unshare(r); err != nil {
			ev.p.giveUp(s, busy[i:j], true)
		} else {
			ev.busy[s] = append(ev.busy[s], busy[i:j]...)
		}
		i = j
	}
	return true
}

// storeAnswers tries a store that has refused a page, with one of the largest
// kind: a full store takes pages of zeros, and small ones longer than others.
func (ev *evictor) storeAnswers() bool {
	if ev.probe == nil {
		ev.probe = make([]byte, mem.PageSize)
		rng := rand.New(rand.NewPCG(1, 2))
		for i := range ev.probe {
			ev.probe[i] = byte(rng.Uint32())
		}
	}
	var ref [1]store.Ref
	probe := [][]byte{ev.probe}
	_, err := ev.p.cfg.Store.Put(probe, ref[:])
	if errors.Is(err, store.ErrFull) && ev.p.dropHints() {
		_, err = ev.p.cfg.Store.Put(probe, ref[:])
	}
	if err != nil {
		ev.p.storeFails(err)
		return false
	}
	ev.p.cfg.Store.Free(ref[0])
	return true
}

// tidy empties the windows, and counts what a REMOVE has left in memory.
func (ev *evictor) tidy() {
	for _, s := range ev.p.snapshot() {
		s.batchMu.Lock()
		if s.mover != nil && !s.closing.Load() {
			s.mover.Flush()
		}
		s.batchMu.Unlock()
		s.mu.Lock()
		verify := s.verify
		s.verify = nil
		s.mu.Unlock()
		for _, r := range verify {
			// An error means that the space has ended, or that the count
			// stays a little low until these pages are next touched.
			_ = s.findResident(r, lazy)
		}
	}
}

// storeFails notes that pages cannot leave, and tells the user.
func (p *Pager) storeFails(err error) {
	p.stat.storeErrors.Add(1)
	if p.storeDown.begin() {
		p.log.Warn("the store takes no pages; they stay in memory until it does", "err", err)
	}
}

func (p *Pager) storeWorks() {
	if p.storeDown.end() {
		p.log.Info("the store takes pages again")
	}
}
