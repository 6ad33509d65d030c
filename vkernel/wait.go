// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"sync/atomic"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// userfault asks the descriptor for the page and sleeps until somebody has
// answered. It drops the read lock of the address space, with which it is
// called.
func (f *faulting) userfault(flags uapi.FaultFlags) verdict {
	as, u, th := f.as, f.v.uffd, f.th
	if v, decided := u.k.profile.deny(f); decided {
		as.mu.RUnlock()
		return v
	}
	w := f.record(flags)
	as.k.reach(PhaseChecked, th, f.addr)
	// What is left of a fault before may not end this one's sleep.
	th.forget()
	if !u.faults.add(w, &u.released) {
		as.mu.RUnlock()
		return u.k.profile.closed
	}
	u.wakeReaders()
	as.k.reach(PhaseQueued, th, f.addr)
	// A page that came between the look at the table and the queueing has
	// woken nobody: look once more.
	stay := !u.k.profile.recheck || f.mustWait(flags)
	as.mu.RUnlock()
	as.k.reach(PhaseSleep, th, f.addr)
	v := retry
	if stay {
		v = th.sleepInFault(u, w, f.at)
	} else {
		u.faults.remove(w)
	}
	f.at.tries++
	as.k.reach(PhaseWoken, th, f.addr)
	return v
}

// record fills in the thread's record.
func (f *faulting) record(flags uapi.FaultFlags) *waiter {
	w := &f.th.fault
	w.th = f.th
	w.flags = flags
	w.addr = f.addr
	w.tid = 0
	u := f.v.uffd
	if !u.has(uapi.UFFD_FEATURE_EXACT_ADDRESS) {
		w.addr &^= f.v.pageMask()
	}
	if u.has(uapi.UFFD_FEATURE_THREAD_ID) {
		w.tid = uint32(f.th.tid)
	}
	return w
}

// sleepInFault returns when w was woken or the thread must not wait longer. A
// thread that is not woken takes itself out.
func (th *Thread) sleepInFault(u *uffd, w *waiter, at *attempt) verdict {
	for {
		// Most often nothing has come up yet, and after the sleep somebody
		// has woken the thread: neither takes the lock.
		if w.woken.Load() {
			return retry
		}
		if th.disturbed(u, at) {
			if v, leave := th.giveUp(u, w, at); leave {
				return v
			}
		}
		th.sleep(InFault)
	}
}

// disturbed reports whether anything but a wake may end the sleep.
func (th *Thread) disturbed(u *uffd, at *attempt) bool {
	return u.released.Load() || th.killed() || th.interrupted() || at.ctx != nil && at.ctx.Err() != nil
}

// giveUp takes w out if its thread must not wait longer.
func (th *Thread) giveUp(u *uffd, w *waiter, at *attempt) (v verdict, leave bool) {
	q := &u.faults
	q.enter()
	defer q.leave()
	leave = true
	switch {
	case !w.queued || u.released.Load():
	case th.killed():
		v = killed
	case at.ctx != nil && at.ctx.Err() != nil:
		v = cancelled
	case !u.k.profile.interruptible:
		leave = false
	case at.mode == userMode: // the handler runs, then the access faults again
	case at.mode == kernelMode:
		// The kernel's thread goes round: it cannot run its handler before
		// the call has ended, nor sleep while a signal waits. All that
		// others can see of it is that the fault is there again whenever
		// somebody has read it.
		leave = !w.unread
	default:
		leave = false
	}
	if leave {
		q.removeLocked(w)
	}
	return v, leave
}

// mustWait reports whether the page is still not what the access needs.
func (f *faulting) mustWait(flags uapi.FaultFlags) bool {
	s := f.as.pt.slot(f.addr, false)
	wp := flags&uapi.UFFD_PAGEFAULT_FLAG_WP != 0
	if s == nil || !wp && !f.v.hugetlb() && s.vacant(index(f.addr)) {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.huge
	if !f.v.hugetlb() {
		e = s.get(index(f.addr))
	}
	if wp {
		return e.present() && e&(pteWP|pteWrite) == pteWP
	}
	// A poisoned page is an answer too.
	return !e.present() && e&ptePoison == 0
}

// adopt gives v an origin for its own pages, that of a neighbour with which
// it could merge otherwise.
func (as *space) adopt(v *vma) {
	if atomic.LoadUint32(&v.lined) != 0 {
		return
	}
	as.lineMu.Lock()
	defer as.lineMu.Unlock()
	defer atomic.StoreUint32(&v.lined, 1)
	if v.line != nil {
		return
	}
	if next := as.vmas.next(v); next != nil && next.line != nil && !next.line.forked && next.start == v.end && v.akin(next) {
		v.line = next.line
		return
	}
	if prev := as.vmas.prev(v.start); prev != nil && prev.line != nil && !prev.line.forked && prev.end == v.start && prev.akin(v) {
		v.line = prev.line
		return
	}
	v.line = &lineage{}
}

// akin reports whether a and b, which follows, differ at most in what
// mprotect changes.
func (a *vma) akin(b *vma) bool {
	return (a.flags^b.flags)&^vmAccess == 0 && a.obj == b.obj && a.file == b.file && a.offset(a.end) == b.off
}

// wakeRange wakes the waiters of r, and returns how many there were.
func (u *uffd) wakeRange(r mem.Range) int {
	return u.faults.wake(r, u.k.profile.wakeUnread)
}
