// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"context"
	"sync"
	"sync/atomic"
)

// State says what a thread is doing.
type State uint32

// States of a thread.
const (
	Running State = iota // in user mode or between calls
	InFault              // asleep on a page
	InEvent              // asleep until somebody reads an event
	InRead               // asleep until there is something to read
	InPoll               // asleep in poll
)

// String returns the name of s.
func (s State) String() string {
	return [...]string{"running", "fault", "event", "read", "poll"}[s]
}

// Thread is a task: it makes one call or access at a time. Its methods named
// after system calls return Linux's errno, zero for success.
type Thread struct {
	p   *Process
	tid int

	// wake has a token for a thread that is to look again at what it waits
	// for. A stale token does no harm.
	wake chan struct{}
	// park and unpark take the place of wake for a thread of a mirror.
	park, unpark func()
	ended        atomic.Bool // set by End
	// at and path are the access that the thread is making and the fault
	// that it is in: here, so that neither needs an allocation.
	at   attempt
	path faulting
	// inside is set while the thread cannot handle a signal.
	inside   atomic.Bool
	handled  atomic.Int32
	patience patience

	_ [cacheLine]byte // the above is for the thread alone, most often

	// fault is the record by which the thread is queued while it sleeps on
	// a page. A thread has one fault at a time.
	fault waiter
	// state is a State, tokenBit if the thread is to look again before it
	// sleeps, and parkedBit if it has gone beyond giving way to others.
	// Whoever wakes a sleeping thread sets it to Running before the waking
	// call returns: a thread that is seen asleep has been woken by nobody.
	state atomic.Uint32
	// signals counts those that were delivered and not handled yet.
	signals atomic.Int32

	watched atomic.Bool // somebody is in WaitState
	mu      sync.Mutex
	watch   chan struct{} // closed at the next change of state; protected by mu
}

// TID returns the number of the thread.
func (th *Thread) TID() int { return th.tid }

// Process returns the process of the thread.
func (th *Thread) Process() *Process { return th.p }

// State returns what the thread is doing now.
func (th *Thread) State() State { return stateOf(th.state.Load()) }

const (
	// tokenBit is set in Thread.state by who would wake a thread that does
	// not sleep.
	tokenBit = 1 << 8
	// parkedBit is set by a thread that waits for its channel, or for unpark.
	parkedBit = 1 << 9
)

func stateOf(state uint32) State { return State(state &^ (tokenBit | parkedBit)) }

// Handled returns how many signals the thread has handled.
func (th *Thread) Handled() int { return int(th.handled.Load()) }

// poke makes a thread that sleeps look again, or one that is about to sleep
// look once more.
func (th *Thread) poke() {
	for {
		old := th.state.Load()
		if stateOf(old) == Running {
			if th.state.CompareAndSwap(old, old|tokenBit) {
				return
			}
		} else if th.state.CompareAndSwap(old, uint32(Running)) {
			// Only the one who has set it Running does this.
			switch {
			case old&parkedBit == 0:
			case th.unpark != nil:
				th.unpark()
			default:
				th.wake <- struct{}{}
			}
			return
		}
	}
}

// sleep waits in state s for a poke, unless there was one since the last.
func (th *Thread) sleep(s State) {
	if th.park != nil {
		if th.fallAsleep(uint32(s) | parkedBit) {
			th.park()
		}
		return
	}
	if !th.fallAsleep(uint32(s)) {
		return
	}
	woken := func() bool { return th.state.Load() != uint32(s) }
	if !th.patience.wait(woken) && th.state.CompareAndSwap(uint32(s), uint32(s)|parkedBit) {
		<-th.wake
	}
}

// fallAsleep puts the thread to sleep with the state given, unless it was
// poked, and reports whether it did. With parkedBit it has to receive from wake.
func (th *Thread) fallAsleep(state uint32) bool {
	for {
		old := th.state.Load()
		if old&tokenBit != 0 {
			if th.state.CompareAndSwap(old, old&^tokenBit) {
				return false
			}
		} else if th.state.CompareAndSwap(old, state) {
			th.tellWatchers()
			return true
		}
	}
}

// forget drops a poke from before.
func (th *Thread) forget() {
	if th.state.Load()&tokenBit != 0 {
		th.state.And(^uint32(tokenBit))
	}
}

func (th *Thread) tellWatchers() {
	if th.watched.Load() {
		th.mu.Lock()
		if th.watch != nil {
			close(th.watch)
			th.watch = nil
		}
		th.mu.Unlock()
	}
}

// WaitState returns when the thread is in state s, or with the error of ctx.
// The thread may have left it again.
func (th *Thread) WaitState(ctx context.Context, s State) error {
	for {
		th.watched.Store(true)
		th.mu.Lock()
		if th.watch == nil {
			th.watch = make(chan struct{})
		}
		changed := th.watch
		th.mu.Unlock()
		if th.State() == s {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Signal delivers a signal for which the process has a handler. A thread in
// user mode handles it at once, one that sleeps on a page in user mode
// returns for it and tries its access again, and one in a system call when
// that ends: read and poll end for it. SIGKILL kills the process.
func (th *Thread) Signal(sig int) {
	if sig == SIGKILL {
		th.p.Kill()
		return
	}
	th.p.mu.Lock()
	ignored := th.p.ignored[sig]
	th.p.mu.Unlock()
	if ignored {
		return
	}
	th.signals.Add(1)
	if !th.inside.Load() {
		th.handle()
		return
	}
	th.poke()
}

// handle runs the handlers of what was delivered.
func (th *Thread) handle() {
	if th.interrupted() {
		th.handled.Add(th.signals.Swap(0))
	}
}

// enter and leave bracket what a thread does outside of user mode.
func (th *Thread) enter() { th.inside.Store(true) }

func (th *Thread) leave() {
	th.inside.Store(false)
	th.handle()
}

// interrupted reports whether a signal waits to be handled.
func (th *Thread) interrupted() bool { return th.signals.Load() > 0 }

// killed reports whether the thread must end.
func (th *Thread) killed() bool { return th.p.dead.Load() || th.ended.Load() }
