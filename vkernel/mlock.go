// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
)

// Mlock locks a range, which brings its pages in. A page that cannot be had
// is ENOMEM, and the range stays locked.
func (th *Thread) Mlock(addr mem.Addr, length uint64) syscall.Errno {
	return th.Mlock2(addr, length, 0)
}

// Mlock2 is Mlock, and with MlockOnFault brings nothing in.
func (th *Thread) Mlock2(addr mem.Addr, length uint64, flags int) syscall.Errno {
	th.enter()
	defer th.leave()
	locked := vmLocked
	switch flags {
	case 0:
	case MlockOnFault:
		locked = vmLockedMask
	default:
		return EINVAL
	}
	r, errno := lockRange(addr, length)
	if errno != 0 || r.Empty() {
		return errno
	}
	if errno := th.setLocked(r, locked); errno != 0 {
		return errno
	}
	switch errno := th.populateLocked(r); errno {
	case EFAULT, EINVAL, EHWPOISON: // not to be had, or not with this protection
		return ENOMEM
	default:
		return errno
	}
}

// Munlock takes the lock off.
func (th *Thread) Munlock(addr mem.Addr, length uint64) syscall.Errno {
	th.enter()
	defer th.leave()
	r, errno := lockRange(addr, length)
	if errno != 0 || r.Empty() {
		return errno
	}
	return th.setLocked(r, 0)
}

func lockRange(addr mem.Addr, length uint64) (mem.Range, syscall.Errno) {
	r := mem.Range{Start: addr.Down(), End: (addr + mem.Addr(length)).Up()}
	if r.End < r.Start {
		return r, EINVAL
	}
	return r, 0
}

func (th *Thread) setLocked(r mem.Range, locked vmaFlags) syscall.Errno {
	as := th.p.as.Load()
	as.mu.Lock()
	defer as.mu.Unlock()
	return as.alterAll(r, func(v *vma, _ mem.Range) (vmaFlags, syscall.Errno) {
		return v.lockedAs(locked), 0
	}, nil)
}

// lockedAs returns the flags of v with another kind of lock. Huge pages are
// never locked: they do not leave anyway.
func (v *vma) lockedAs(locked vmaFlags) vmaFlags {
	if v.hugetlb() {
		return v.flags
	}
	return v.flags&^vmLockedMask | locked
}

// Mlockall locks what is mapped, with MclCurrent, and what will be, with
// MclFuture: mappings bring their pages in when they are made, unless there
// is MclOnFault too. Pages that cannot be had are passed over.
func (th *Thread) Mlockall(flags int) syscall.Errno {
	th.enter()
	defer th.leave()
	if flags == 0 || flags == MclOnFault || flags&^(MclCurrent|MclFuture|MclOnFault) != 0 {
		return EINVAL
	}
	if errno := th.lockAll(flags); errno != 0 || flags&MclCurrent == 0 {
		return errno
	}
	th.populateMapped(mem.Range{Start: 0, End: taskSize})
	return 0
}

// Munlockall takes back all of that.
func (th *Thread) Munlockall() syscall.Errno {
	th.enter()
	defer th.leave()
	return th.lockAll(0)
}

// lockAll changes the locks of what is mapped, but for MclFuture alone, and
// of what will be.
func (th *Thread) lockAll(flags int) syscall.Errno {
	as := th.p.as.Load()
	as.mu.Lock()
	defer as.mu.Unlock()
	locked := vmLocked
	if flags&MclOnFault != 0 {
		locked = vmLockedMask
	}
	as.future = 0
	if flags&MclFuture != 0 {
		if as.future = locked; flags&MclCurrent == 0 {
			return 0
		}
	}
	if flags&MclCurrent == 0 {
		locked = 0
	}
	for v := as.vmas.find(0); v != nil; v = as.vmas.next(v) {
		// The whole of a VMA is changed, which needs no split.
		v, _ = as.change(v, v.rng(), v.lockedAs(locked), v.uffd)
	}
	return 0
}

// populateLocked brings in the pages of a locked range, for writing where the
// memory is private and can be written.
func (th *Thread) populateLocked(r mem.Range) syscall.Errno {
	as := th.p.as.Load()
	for !r.Empty() {
		as.mu.RLock()
		v := as.vmas.find(r.Start)
		if v == nil || v.start >= r.End {
			as.mu.RUnlock()
			return 0 // somebody has unmapped it meanwhile
		}
		part := v.rng().Intersect(r)
		write, access, later := v.is(vmWrite) && !v.shared(), v.is(vmAccess), v.is(vmLockOnFault)
		as.mu.RUnlock()
		if later {
			r.Start = part.End
			continue
		}
		if !access {
			return EFAULT
		}
		var errno syscall.Errno
		switch r.Start, errno = th.populate(part, write); errno {
		case 0, ENOMEM, EINVAL: // the last two: unmapped or protected meanwhile
		default:
			return errno
		}
	}
	return 0
}

// populateMapped is populateLocked for memory that is locked as it comes: a
// mapping whose pages cannot be had is left as it is, and nobody hears of it.
func (th *Thread) populateMapped(r mem.Range) {
	as := th.p.as.Load()
	for r.Start < r.End && !th.killed() {
		as.mu.RLock()
		v := as.vmas.find(r.Start)
		if v == nil || v.start >= r.End {
			as.mu.RUnlock()
			return
		}
		part := v.rng().Intersect(r)
		as.mu.RUnlock()
		th.populateLocked(part)
		r.Start = part.End
	}
}
