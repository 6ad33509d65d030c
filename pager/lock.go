// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"sync/atomic"
	"time"
)

// lock is a spin lock for critical sections of a few hundred nanoseconds
// between the serving threads and the evictor.
//
// It is not a sync.Mutex because a serving thread that had to wait for one
// would park its goroutine, and give up its place on the processor to the
// scheduler in the middle of a fault. It is not a bare spin either: a holder
// can be preempted, and in the idle scheduling class (see [place]) for long.
// A waiter therefore sleeps after a short spin, and asks for the holder's
// priority to be raised if that lasts.
type lock struct {
	held atomic.Uint32
	// boost, when set, is called by a waiter that has slept for about a
	// millisecond. It raises whoever may hold the lock to a normal priority.
	// Immutable once the lock is shared.
	boost func()
}

const (
	// A critical section takes 30 µs at the most, a sleep of any length more
	// than that: spinning is given up only when the holder cannot be running.
	spinsBeforeSleep  = 40_000
	sleepsBeforeBoost = 20
	lockSleep         = 50 * time.Microsecond
)

// lockPause is [time.Sleep], except in tests with a clock that stands still
// while anyone waits for a mutex.
var lockPause = time.Sleep

func (l *lock) Lock() {
	if l.held.CompareAndSwap(0, 1) {
		return
	}
	l.lockSlow()
}

func (l *lock) lockSlow() {
	for sleeps := 0; ; sleeps++ {
		for range spinsBeforeSleep {
			if l.held.Load() == 0 && l.held.CompareAndSwap(0, 1) {
				return
			}
		}
		lockPause(lockSleep)
		if sleeps == sleepsBeforeBoost && l.boost != nil {
			l.boost()
		}
	}
}

func (l *lock) Unlock() {
	if l.held.Swap(0) != 1 {
		panic("pager: unlock of a free lock")
	}
}
