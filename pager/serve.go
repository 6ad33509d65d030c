// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"runtime"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/internal/place"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// fault is a page fault as it was read.
type fault struct {
	page mem.Page
	tid  uint32
	at   time.Time // when it was read
	// pause is for how long it was put off the latest time.
	pause time.Duration
}

// parked is a fault that cannot be served yet.
type parked struct {
	fault
	next time.Time // not to be tried before, unless something changes
	why  reason
}

// reason says what a parked fault waits for.
type reason uint8

const (
	changing reason = iota // EAGAIN: the layout is changing (H2)
	noRoom                 // the evictor must make room first
	moving                 // the page is on its way to the window
)

func (r reason) String() string {
	return [...]string{"the address space kept changing", "no page could be evicted to make room",
		"its eviction did not come to an end"}[r]
}

const (
	firstPause = 50 * time.Microsecond
	maxPause   = 5 * time.Millisecond
)

// serve is the serving thread: the only reader of the descriptor and the
// only one to install pages. With [SpaceConfig.On] all that happens there, and
// what is here looks after what has to be done later.
func (s *Space) serve() {
	runtime.LockOSThread()
	sv := &s.server
	sv.thread = place.Self()
	close(sv.ready)
	defer func() {
		// Whoever calls Turn from here on sees that the space is closed.
		s.on(func() {})
		sv.thread.Close()
		runtime.UnlockOSThread()
		close(s.done)
	}()
	for !s.closing.Load() {
		timeout := time.Duration(-1)
		if s.cfg.On == nil {
			timeout = s.turn()
		} else {
			s.on(func() { timeout = s.turn() })
		}
		if timeout != 0 {
			s.wait(timeout)
		}
	}
}

// on runs f where the space is served, if that is still there.
func (s *Space) on(f func()) {
	if s.cfg.On != nil {
		s.cfg.On(f)
	}
}

// Turn serves what is queued. It is for a space with [SpaceConfig.On], to be
// called there whenever there is something to read.
func (s *Space) Turn() {
	for range mostTurns {
		if d := s.turn(); d < 0 {
			return
		} else if d > 0 {
			break
		}
	}
	s.fd.Interrupt() // serve has to know when to look next
}

// mostTurns bounds how long Turn keeps others waiting.
const mostTurns = 16

// turn does all that there is to do, and returns how long it may be until there
// is something again: 0 if there is now, negative if only an event or an
// Interrupt can tell.
func (s *Space) turn() time.Duration {
	if s.closing.Load() {
		return -1
	}
	sv := &s.server
	sv.turns.Add(1)
	busy := s.drain()
	if sv.next < sv.got {
		return firstPause // a fork waits for the evictor, and what follows for the fork
	}
	busy = s.finishLoads() || busy
	busy = s.runControl() || busy
	for i := range sv.faults {
		s.serveFault(sv.faults[i])
	}
	sv.faults = sv.faults[:0]
	if s.retryParked() || busy {
		return 0
	}
	timeout := time.Duration(-1)
	for i := range sv.parked {
		if d := time.Until(sv.parked[i].next); timeout < 0 || d < timeout {
			timeout = max(d, 1)
		}
	}
	if sv.pace.idle && (timeout < 0 || timeout > calm) {
		timeout = calm
	}
	if sv.asked != nil && (timeout < 0 || timeout > firstPause) {
		timeout = firstPause
	}
	return timeout
}

// wait blocks until there may be something to do.
func (s *Space) wait(timeout time.Duration) {
	ready, errno := s.fd.Wait(timeout)
	if errno != 0 && errno != syscall.EINTR {
		s.must("poll", mem.Range{}, errno)
		s.closing.Store(true)
	}
	if s.cfg.On == nil {
		s.server.pace.waited(s.server.thread, ready)
	}
}

// drain reads all queued messages, applies the events among them, and leaves
// the faults in server.faults. It reports whether there were any. Messages from
// server.next on could not be applied yet.
//
// Faults come first in a read, though an event behind them may concern them:
// none is served before the queue is empty (H5).
func (s *Space) drain() bool {
	sv := &s.server
	any := false
	s.applying.Store(true)
	defer func() { s.applying.Store(sv.next < sv.got) }()
	for {
		if sv.next == sv.got {
			n, errno := s.fd.Read(sv.msgs)
			if n == 0 {
				if errno != syscall.EAGAIN && errno != syscall.EINTR && errno != 0 {
					s.must("read", mem.Range{}, errno)
					s.closing.Store(true)
				}
				return any
			}
			sv.next, sv.got, sv.at = 0, n, time.Now()
		}
		any = true
		for sv.next < sv.got {
			m := &sv.msgs[sv.next]
			if m.Event == uapi.UFFD_EVENT_PAGEFAULT {
				addr, _, tid := m.Fault()
				sv.faults = append(sv.faults, fault{page: addr.Page(), tid: tid, at: sv.at})
			} else if !s.apply(m) {
				return any
			}
			sv.next++
		}
		// A short read left the queue empty. A long burst is cut off: the
		// faults that were read must not wait for a flood to end (H19).
		if sv.got < len(sv.msgs) || len(sv.faults) >= cap(sv.faults) {
			return any
		}
	}
}

// runControl runs what other goroutines asked for, once no event that they
// may depend on is outstanding.
func (s *Space) runControl() bool {
	sv := &s.server
	if sv.asked == nil {
		select {
		case sv.asked = <-s.control:
		default:
			return false
		}
	}
	if s.fd.Changing() && !s.closing.Load() && !s.gone.Load() {
		// The event is queued in a moment, or the thread that waited for it
		// has not run yet. Both need a processor, perhaps this one. Faults
		// are served meanwhile: others may keep the layout changing (H19).
		return false
	}
	// What is queued behind those events may as well be applied.
	if s.drain(); sv.next < sv.got {
		return false
	}
	f := sv.asked
	sv.asked = nil
	f()
	return true
}

// park puts a fault off, each time for longer.
func (s *Space) park(f fault, why reason) {
	sv := &s.server
	f.pause = min(max(2*f.pause, firstPause), maxPause)
	for i := range sv.parked {
		if sv.parked[i].page == f.page {
			return // whatever resolves the page wakes all its waiters
		}
	}
	sv.parked = append(sv.parked, parked{fault: f, next: time.Now().Add(f.pause), why: why})
	s.p.stat.parked.Add(1)
	if why == noRoom {
		s.p.stat.stalls.Add(1)
		s.p.kickEvictor()
	}
}

// retryParked tries the parked faults that are due. It reports whether it
// tried any.
func (s *Space) retryParked() bool {
	sv := &s.server
	if len(sv.parked) == 0 {
		return false
	}
	now := time.Now()
	sv.retry = sv.retry[:0]
	keep := sv.parked[:0]
	for _, pk := range sv.parked {
		if pk.next.After(now) {
			keep = append(keep, pk)
		} else {
			sv.retry = append(sv.retry, pk)
		}
	}
	sv.parked = keep
	for _, pk := range sv.retry {
		if now.Sub(pk.at) > s.p.cfg.Patience {
			s.condemn(pk.page, pk.why.String())
			continue
		}
		s.serveFault(pk.fault)
	}
	return len(sv.retry) > 0
}
