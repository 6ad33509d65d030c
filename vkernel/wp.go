// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// writeProtectLinux618 is UFFDIO_WRITEPROTECT.
func writeProtectLinux618(u *uffd, th *Thread, arg mem.Addr) syscall.Errno {
	if u.changing.Load() > 0 {
		return EAGAIN
	}
	w, errno := th.readArg(arg, 3)
	if errno != 0 {
		return errno
	}
	const wp, dontwake = uapi.UFFDIO_WRITEPROTECT_MODE_WP, uapi.UFFDIO_WRITEPROTECT_MODE_DONTWAKE
	mode := uapi.WriteProtectMode(w[2])
	if !u.k.profile.checkRange(w[0], w[1]) || mode&^(wp|dontwake) != 0 || mode == wp|dontwake {
		return EINVAL
	}
	r := mem.MakeRange(mem.Addr(w[0]), w[1])
	if errno := u.writeProtect(r, mode&wp != 0); errno != 0 {
		return errno
	}
	if mode == 0 {
		u.wakeRange(r)
	}
	return 0
}

// writeProtect changes r up to the first VMA that is not registered for it.
func (u *uffd) writeProtect(r mem.Range, on bool) syscall.Errno {
	as := u.as
	as.mu.RLock()
	defer as.mu.RUnlock()
	if as.dead {
		return ESRCH
	}
	if u.changing.Load() > 0 {
		return EAGAIN
	}
	errno := ENOENT
	as.vmas.all(r, func(v *vma) bool {
		errno = 0
		switch {
		case !v.is(vmWP):
			errno = ENOENT
		case v.hugetlb() && (r.Start|r.End)&v.pageMask() != 0:
			errno = EINVAL
		default:
			as.learn(v, r.Intersect(v.rng()))
			as.protectPages(v, r.Intersect(v.rng()), on)
		}
		return errno == 0
	})
	return errno
}

// protectPages sets or lifts the protection of the pages of r, a part of v.
// What has no page is marked if memory can tell a marker from a page that
// was never there: shared memory always, other where it was asked for.
func (as *space) protectPages(v *vma, r mem.Range, on bool) {
	if !on {
		// Poison keeps the mark that a scan has given it.
		lift := func(_ mem.Addr, e pte) pte {
			if e&ptePoison != 0 {
				return e
			}
			return e &^ pteWP
		}
		if v.hugetlb() {
			as.pt.updateHuge(r, lift)
		} else {
			as.pt.update(r, lift)
		}
		return
	}
	mark := !v.anon() || v.uffd.has(uapi.UFFD_FEATURE_WP_UNPOPULATED)
	protect := func(e pte) pte {
		if e.present() || e == 0 && mark {
			e = e.protect()
		}
		return e
	}
	if !mark {
		as.pt.update(r, func(_ mem.Addr, e pte) pte { return protect(e) })
		return
	}
	for a := r.Start; a < r.End; a = (a>>slotShift + 1) << slotShift {
		part := mem.Range{Start: a, End: min((a>>slotShift+1)<<slotShift, r.End)}
		as.protectSlot(v, part, protect)
	}
}

func (as *space) protectSlot(v *vma, part mem.Range, protect func(pte) pte) {
	s := as.pt.slot(part.Start, true)
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.hugetlb() {
		s.huge = protect(s.huge)
		return
	}
	for i, n := index(part.Start), part.Pages(); n > 0; i, n = i+1, n-1 {
		s.set(i, protect(s.get(i)))
	}
}
