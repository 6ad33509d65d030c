// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
)

// Mprotect changes the permissions of a range. It stops at a hole, with
// ENOMEM and what lies before changed.
func (th *Thread) Mprotect(addr mem.Addr, length uint64, prot int) syscall.Errno {
	th.enter()
	defer th.leave()
	const mask = mem.PageSize - 1
	n := (length + mask) &^ mask
	if addr&mask != 0 {
		return EINVAL
	}
	if length == 0 {
		return 0 // whatever the protection
	}
	if uint64(addr)+n <= uint64(addr) {
		return ENOMEM
	}
	if prot&^(ProtRead|ProtWrite|ProtExec|ProtSem) != 0 {
		return EINVAL
	}
	prot &^= ProtSem
	as := th.p.as.Load()
	as.mu.Lock()
	var locked []mem.Range // private locked memory that becomes writable
	errno := as.alterAll(mem.MakeRange(addr, n), func(v *vma, part mem.Range) (vmaFlags, syscall.Errno) {
		want := vmaFlags(prot)
		if v.flags&(vmWrite|vmShared|vmLockedMask) == vmLocked && want&vmWrite != 0 {
			locked = append(locked, part)
		}
		if v.flags/vmMayRead&want != want {
			return 0, EACCES
		}
		if v.flags&vmAccess == want {
			return v.flags, 0 // nor is what it counts for looked at again
		}
		flags := v.flags&^vmAccess | want
		if !v.shared() && want&vmWrite != 0 && v.flags&(vmNoReserve|vmHugetlb) == 0 {
			flags |= vmAccount
		} else if want&vmWrite == 0 && v.anon() && v.line == nil {
			flags &^= vmAccount // it has no page that would count
		}
		return flags, 0
	}, as.applyAccess)
	as.mu.Unlock()
	for _, r := range locked {
		th.populateNow(r)
	}
	return errno
}

// populateNow makes pages of the process's own in locked memory, as far as
// that can be done without waiting for anybody. Nobody hears of a failure.
func (th *Thread) populateNow(r mem.Range) {
	as := th.p.as.Load()
	at := attempt{as: as, write: true, mode: ptraceMode}
	for a := r.Start; a < r.End; a += mem.PageSize {
		for at.tries = 0; !as.accessible(a, true); {
			if as.fault(th, a, &at) != retry {
				return
			}
		}
	}
}

// alterAll changes the flags of every VMA in r to what flags says, splitting
// and merging, and calls after for each that has changed. Preconditions: as.mu
// is held for writing.
func (as *space) alterAll(r mem.Range, flags func(v *vma, part mem.Range) (vmaFlags, syscall.Errno), after func(v *vma, part mem.Range)) syscall.Errno {
	for at := r.Start; at < r.End; {
		v := as.vmas.find(at)
		if v == nil || v.start > at {
			return ENOMEM
		}
		part := r.Intersect(v.rng())
		want, errno := flags(v, part)
		if errno != 0 {
			return errno
		}
		changed := want != v.flags
		if v, errno = as.change(v, part, want, v.uffd); errno != 0 {
			return errno
		}
		if changed && after != nil {
			after(v, part)
		}
		at = part.End
	}
	return 0
}

// applyAccess gives present pages the permissions of their VMA. A page is made
// writable by the fault that needs it, with one exception.
func (as *space) applyAccess(v *vma, part mem.Range) {
	fit := func(_ mem.Addr, e pte) pte {
		if !e.present() {
			return e
		}
		if e &^= pteNoAccess; !v.is(vmAccess) {
			e |= pteNoAccess
		}
		switch {
		case !v.is(vmWrite):
			e &^= pteWrite
		case e&pteWP != 0 && !v.is(vmWP) && (v.shared() || !v.hugetlb() && as.k.mem.has(e.frame(), frameExclusive)):
			// One that no fault has to touch is made writable at once, which
			// shows if its protection is nobody's now and is asked for again.
			e |= pteWrite
		}
		return e
	}
	if v.hugetlb() {
		as.pt.updateHuge(part, fit)
	} else {
		as.pt.update(part, fit)
	}
}

// populate brings in the pages of r, and returns up to where. It ends early
// when it has slept: the memory may be another then.
func (th *Thread) populate(r mem.Range, write bool) (mem.Addr, syscall.Errno) {
	as := th.p.as.Load()
	at := attempt{as: as, write: write, mode: pinMode}
	for a := r.Start; a < r.End; a += mem.PageSize {
		for !as.accessible(a, write) {
			switch as.fault(th, a, &at) {
			case retry:
				if at.tries > 0 {
					return a, 0
				}
			case killed:
				return a, EINTR
			case segvMap:
				return a, ENOMEM
			case segvAcc:
				return a, EINVAL
			default:
				if as.poisoned(a) {
					return a, EHWPOISON
				}
				return a, EFAULT
			}
		}
	}
	return r.End, 0
}

// poisoned reports whether a poison marker is where a's page would be.
func (as *space) poisoned(a mem.Addr) bool {
	s := as.pt.slot(a, false)
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return (s.huge|s.get(index(a)))&ptePoison != 0
}

// accessible reports whether an access needs no fault.
func (as *space) accessible(a mem.Addr, write bool) bool {
	s := as.pt.slot(a, false)
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.huge
	if e == 0 {
		e = s.get(index(a))
	}
	return e.readable() && (!write || e.writable())
}
