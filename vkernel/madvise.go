// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// Madvise advises on a range. Advice that drops pages is told to who watches
// them, one VMA at a time and before the pages go. A hole is ENOMEM after all
// else is done.
func (th *Thread) Madvise(addr mem.Addr, length uint64, advice int) syscall.Errno {
	th.enter()
	defer th.leave()
	const mask = mem.PageSize - 1
	n := (length + mask) &^ mask
	if !knownAdvice(advice) || addr&mask != 0 || length != 0 && n == 0 || uint64(addr)+n < uint64(addr) {
		return EINVAL
	}
	if n == 0 {
		return 0
	}
	r := mem.MakeRange(addr, n)
	switch advice {
	case MadvPopulateRead, MadvPopulateWrite:
		return th.populateAdvice(r, advice == MadvPopulateWrite)
	case MadvDontNeed, MadvDontNeedLocked, MadvFree, MadvRemove:
		return th.discard(r, advice)
	}
	as := th.p.as.Load()
	as.mu.Lock()
	defer as.mu.Unlock()
	missing := false
	for at := r.Start; at < r.End; {
		v := as.vmas.find(at)
		if v == nil || v.start >= r.End {
			missing = true
			break
		}
		if v.start > at {
			missing, at = true, v.start
		}
		part := mem.Range{Start: at, End: min(r.End, v.end)}
		flags, errno := adviseFlags(v, advice)
		if errno == 0 {
			_, errno = as.change(v, part, flags, v.uffd)
		}
		if errno != 0 {
			return errno
		}
		at = part.End
	}
	if missing {
		return ENOMEM
	}
	return 0
}

func knownAdvice(advice int) bool {
	switch advice {
	case MadvNormal, MadvRandom, MadvSequential, MadvWillNeed, MadvDontNeed, MadvFree, MadvRemove,
		MadvDontFork, MadvDoFork, MadvHugepage, MadvNoHugepage, MadvWipeOnFork, MadvKeepOnFork,
		MadvPopulateRead, MadvPopulateWrite, MadvDontNeedLocked:
		return true
	}
	return false
}

// adviseFlags returns the flags of v after advice that only they remember.
func adviseFlags(v *vma, advice int) (vmaFlags, syscall.Errno) {
	f := v.flags
	switch advice {
	case MadvNormal:
		f &^= vmSeq | vmRand
	case MadvRandom:
		f = f&^vmSeq | vmRand
	case MadvSequential:
		f = f&^vmRand | vmSeq
	case MadvDontFork:
		f |= vmDontCopy
	case MadvDoFork:
		f &^= vmDontCopy
	case MadvWipeOnFork:
		if v.obj != nil || v.shared() {
			return f, EINVAL
		}
		f |= vmWipeOnFork
	case MadvKeepOnFork:
		f &^= vmWipeOnFork
	case MadvHugepage, MadvNoHugepage:
		if f &^= vmHugepage | vmNoHugepage; advice == MadvHugepage {
			f |= vmHugepage
		} else {
			f |= vmNoHugepage
		}
	}
	return f, 0
}

// discard drops pages, VMA by VMA.
func (th *Thread) discard(r mem.Range, advice int) syscall.Errno {
	as := th.p.as.Load()
	missing := false
	for at := r.Start; at < r.End; {
		as.mu.RLock()
		v := as.vmas.find(at)
		if v == nil || v.start >= r.End {
			missing = true
			as.mu.RUnlock()
			break
		}
		if v.start > at {
			missing, at = true, v.start
		}
		end := min(v.end, r.End)
		part, errno := discardable(v, mem.Range{Start: at, End: end}, advice)
		u := v.uffd
		var hole hole
		if errno == 0 && advice == MadvRemove {
			hole = holeOf(v, part)
		}
		as.mu.RUnlock()
		if errno != 0 {
			return errno
		}
		if part.Empty() {
			at = end // less than a huge page
			continue
		}
		at = part.End
		if u != nil && u.has(uapi.UFFD_FEATURE_EVENT_REMOVE) {
			as.mu.Lock()
			e := newEvent(u, uapi.Remove{Range: part}.Msg())
			as.mu.Unlock()
			e.deliver(th)
			if advice == MadvRemove {
				hole.punch() // whatever is mapped by now
				continue
			}
			// The memory may be another by now: what is left of the range
			// is looked up again.
			now, errno := as.stillThere(part, advice)
			if errno != 0 {
				return errno
			}
			if now.Empty() {
				at = part.Start // it has huge pages now, and this is less than one
				continue
			}
			// What the first VMA there does not have is another's turn.
			part, at = now, now.End
		}
		if advice == MadvRemove {
			hole.punch()
			continue
		}
		as.mu.RLock()
		as.vmas.all(part, func(v *vma) bool {
			switch {
			case advice != MadvFree:
				as.zapAdvised(v, part.Intersect(v.rng()))
			case !v.anon():
				errno = EINVAL
			default:
				as.pt.update(part.Intersect(v.rng()), cure)
			}
			return errno == 0
		})
		as.mu.RUnlock()
		if errno != 0 {
			return errno
		}
		if part.Len() >= worthTrimming {
			as.mu.Lock()
			as.pt.trim(part)
			as.mu.Unlock()
		}
	}
	if missing {
		return ENOMEM
	}
	return 0
}

// Discard drops the pages of r, of which nobody is told any more: of a mirror, where
// Madvise only says that they may go.
func (p *Process) Discard(r mem.Range) {
	as := p.as.Load()
	as.mu.RLock()
	defer as.mu.RUnlock()
	as.vmas.all(r, func(v *vma) bool {
		as.zapAdvised(v, r.Intersect(v.rng()))
		return true
	})
}

// zapAdvised drops the pages and the poison of r. Where an object is behind v
// the protection by a descriptor stays, in a marker: the page may come back.
func (as *space) zapAdvised(v *vma, r mem.Range) {
	if v.anon() {
		as.zapAll(v, r)
		return
	}
	m := &as.k.mem
	if v.hugetlb() {
		as.pt.updateHuge(r, func(_ mem.Addr, e pte) pte {
			if e.present() {
				m.huge.put(e.frame())
			}
			return e & pteWP
		})
		return
	}
	as.pt.update(r, func(_ mem.Addr, e pte) pte {
		if e.present() {
			m.put(e.frame())
			if !v.is(vmWP) {
				return 0
			}
		}
		return e & pteWP
	})
}

// cure is all that MADV_FREE does to an entry while there is no want of memory:
// the page stays, and poison goes.
func cure(_ mem.Addr, e pte) pte {
	if e&ptePoison != 0 {
		return 0
	}
	return e
}

// stillThere returns what the VMA at the start of a range has of it, in whole
// pages, and whether it can still be discarded: ENOMEM if that has been unmapped,
// and what comes after it is not looked at then.
func (as *space) stillThere(part mem.Range, advice int) (now mem.Range, errno syscall.Errno) {
	as.mu.RLock()
	defer as.mu.RUnlock()
	v := as.vmas.find(part.Start)
	if v == nil || v.start > part.Start {
		return now, ENOMEM
	}
	return discardable(v, part.Intersect(v.rng()), advice)
}

// discardable checks advice on part of v, and returns the part cut to whole
// pages.
func discardable(v *vma, part mem.Range, advice int) (mem.Range, syscall.Errno) {
	switch advice {
	case MadvRemove:
		switch {
		case v.is(vmLocked), v.obj == nil:
			return part, EINVAL
		case v.flags&(vmMayShare|vmMayWrite) != vmMayShare|vmMayWrite:
			return part, EACCES
		}
	case MadvFree:
		// That it is of no use where an object is behind is found out later,
		// when who watches has been told.
		if v.is(vmLocked) || v.hugetlb() {
			return part, EINVAL
		}
	default:
		if advice == MadvDontNeed && v.is(vmLocked) {
			return part, EINVAL
		}
		if v.hugetlb() {
			if part.Start&v.pageMask() != 0 {
				return part, EINVAL
			}
			part.End &^= v.pageMask()
		}
	}
	return part, 0
}

// hole is a part of an object whose pages are to be dropped.
type hole struct {
	obj *object // a reference of its own
	off uint64
	n   uint64
}

// holeOf returns what part of v shows of its object, which stays until punch.
// The lock of the address space is held.
func holeOf(v *vma, part mem.Range) hole {
	v.obj.get()
	return hole{obj: v.obj, off: v.offset(part.Start), n: part.Len()}
}

func (h hole) punch() {
	h.obj.punch(h.off, h.n)
	h.obj.put()
}

// populateAdvice is MADV_POPULATE_READ and MADV_POPULATE_WRITE.
func (th *Thread) populateAdvice(r mem.Range, write bool) syscall.Errno {
	as := th.p.as.Load()
	for at := r.Start; at < r.End; {
		as.mu.RLock()
		v := as.vmas.find(at)
		if v == nil || v.start > at {
			as.mu.RUnlock()
			return ENOMEM
		}
		part := mem.Range{Start: at, End: min(v.end, r.End)}
		as.mu.RUnlock()
		var errno syscall.Errno
		if at, errno = th.populate(part, write); errno != 0 {
			return errno
		}
	}
	return 0
}
