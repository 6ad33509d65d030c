// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faultline-go/faultline/internal/place"
)

const (
	// storm is the number of faults in quick succession after which a
	// serving thread enters the idle class.
	storm = 24
	// quick is the longest time between two faults of a storm.
	quick = time.Millisecond
	// calm is the time without a fault after which it leaves the class.
	calm = 20 * time.Millisecond
	// tick is how often the guard looks: the longest time, about, for which
	// a thread in the idle class can starve.
	tick = 2 * time.Millisecond
	// firstPenalty is how long the guard keeps a thread that starved out of
	// the class. It doubles with every time, up to maxPenalty.
	firstPenalty = 50 * time.Millisecond
	maxPenalty   = 5 * time.Second
)

// pace decides where and in which class a serving thread runs. It is owned by
// that thread, except for the atomic fields.
type pace struct {
	idle     bool // in the idle class, as far as the thread knows
	row      int  // faults in quick succession
	misses   int  // faults for which the thread had to be woken, in a row
	latest   time.Time
	penalty  time.Duration
	notUntil atomic.Int64 // Unix nanoseconds: no idle class before
	idleFlag atomic.Bool  // what the guard sees of idle
	demoted  atomic.Bool  // set by the guard when it took the class away
	cpu      atomic.Int32 // where the thread is pinned, plus one; 0 for nowhere
}

// faulted notes a fault of thread tid that is about to be served, and places
// the server for it.
func (pc *pace) faulted(th *place.Thread, pid int, tid uint32, now time.Time) {
	if now.Sub(pc.latest) < quick {
		pc.row++
	} else {
		pc.row = 0
	}
	pc.latest = now
	if pid == 0 || pc.row < storm {
		return
	}
	if pc.demoted.Swap(false) {
		pc.idle = false
		pc.idleFlag.Store(false)
		pc.penalty = min(max(2*pc.penalty, firstPenalty), maxPenalty)
		pc.notUntil.Store(now.Add(pc.penalty).UnixNano())
		th.Normal()
		pc.pin(th, -1)
		return
	}
	if !pc.idle {
		if now.UnixNano() < pc.notUntil.Load() {
			return
		}
		// Pinned first: an idle-class thread that sits on the wrong, busy
		// processor would not get to run the call that moves it.
		pc.pin(th, th.CPUOf(pid, int(tid)))
		pc.idle = th.Idle()
		pc.idleFlag.Store(pc.idle)
		if !pc.idle {
			pc.notUntil.Store(1<<63 - 1) // not permitted: never try again
			pc.pin(th, -1)
		}
		pc.misses = 0
		return
	}
	// A thread that had to be woken for the fault may be on the wrong
	// processor. Looking costs about as much as half a fault, so only a row
	// of such faults makes it look.
	if pc.misses >= 4 {
		pc.misses = 0
		if cpu := th.CPUOf(pid, int(tid)); cpu >= 0 {
			pc.pin(th, cpu)
		}
	}
}

func (pc *pace) pin(th *place.Thread, cpu int) {
	th.Pin(cpu)
	pc.cpu.Store(int32(th.CPU() + 1))
}

// waited notes that the thread has been asleep.
func (pc *pace) waited(th *place.Thread, ready bool) {
	pc.misses++
	if pc.idle && !ready && time.Since(pc.latest) > calm {
		pc.leave(th)
	}
}

func (pc *pace) leave(th *place.Thread) {
	pc.idle = false
	pc.idleFlag.Store(false)
	pc.demoted.Store(false)
	pc.penalty = 0
	th.Normal()
	pc.pin(th, -1)
}

// guard takes serving threads out of the idle class that have messages to
// read and make no progress.
type guard struct {
	p      *Pager
	alarm  bell // rung to end it
	mu     sync.Mutex
	spaces map[*Space]uint64 // the turns seen at the latest tick; protected by mu
}

func newGuard(p *Pager) *guard {
	return &guard{p: p, alarm: newBell(), spaces: make(map[*Space]uint64)}
}

func (g *guard) watch(s *Space) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.spaces[s] = 0
}

func (g *guard) unwatch(s *Space) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.spaces, s)
}

// run looks at every tick until stop. While no thread is in the idle class
// it looks less often, which is soon enough: starving begins only there.
//
// It has a thread of its own, and keeps that from where threads take turns
// with a server: a tick of the runtime's timers wakes any thread anywhere.
func (g *guard) run() {
	runtime.LockOSThread()
	th := place.Self()
	defer func() {
		th.Close()
		runtime.UnlockOSThread()
	}()
	for d := tick; !g.alarm.Wait(d); {
		d = 10 * tick
		if g.look() {
			d = tick
		}
		th.Avoid(g.p.busiest())
	}
}

func (g *guard) stop() { g.alarm.Ring() }

// raise gives all threads in the idle class a normal priority, because one of
// them may hold a lock that others wait for.
func (g *guard) raise() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for s := range g.spaces {
		g.demote(s)
	}
}

func (g *guard) demote(s *Space) {
	if s.server.pace.idleFlag.Load() && !s.server.pace.demoted.Swap(true) {
		s.server.thread.Normal()
		s.p.stat.starved.Add(1)
	}
}

// look demotes what starves, and reports whether any thread is in the class.
func (g *guard) look() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	any := false
	for s, seen := range g.spaces {
		if !s.server.pace.idleFlag.Load() {
			continue
		}
		any = true
		turns := s.server.turns.Load()
		g.spaces[s] = turns
		if turns != seen {
			continue
		}
		// No turn since the latest tick. It may just be asleep, with
		// nothing to do: only a thread that has work starves.
		if s.fd.Pending() {
			g.demote(s)
		}
	}
	return any
}
