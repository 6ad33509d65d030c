// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"runtime"
	"sync/atomic"
)

// cacheLine is how far apart words are kept that different processors write.
const cacheLine = 64

// spinLock is a lock for what takes some hundred nanoseconds and blocks
// nowhere.
//
// It is not a sync.Mutex because that parks who meets it taken as soon as
// another goroutine could run, which with a hundred faulting threads is
// always. Two such threads are then passed the lock one by one, each by way of
// the scheduler, at ten times the cost of what the lock is for.
type spinLock struct{ held atomic.Uint32 }

// spinsBeforeYield is how often a taken lock is looked at before its holder,
// which may have lost its processor, is given one.
const spinsBeforeYield = 200

func (l *spinLock) Lock() {
	if !l.held.CompareAndSwap(0, 1) {
		l.lockSlow()
	}
}

func (l *spinLock) lockSlow() {
	for {
		for range spinsBeforeYield {
			if l.held.Load() == 0 && l.held.CompareAndSwap(0, 1) {
				return
			}
		}
		runtime.Gosched()
	}
}

func (l *spinLock) Unlock() { l.held.Store(0) }

// patience decides how often somebody who waits gives way to others before it
// sleeps. To sleep and be woken costs twice as much, and its waker has to do
// half of that. But where answers take long, giving way is for nothing: it ends
// when it has not helped some times in a row, and is tried now and then.
//
// It does not spin, looking for what another processor does: that pays only
// where each of two threads has a processor to itself, and then less than what
// it costs for their caches to talk.
type patience struct{ failed atomic.Uint32 }

const (
	yieldsBeforeSleep = 6
	patienceEnds      = 4  // after how many failures in a row
	patienceTried     = 32 // once in how many times
)

// wait returns true once done, and false when it is time to sleep.
func (p *patience) wait(done func() bool) bool {
	n := p.failed.Load()
	if n < patienceEnds || n%patienceTried == 0 {
		for range yieldsBeforeSleep {
			runtime.Gosched()
			if done() {
				if n != 0 {
					p.failed.Store(0)
				}
				return true
			}
		}
	}
	p.failed.Store(n + 1)
	return false
}
