// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

const allModes = uapi.UFFDIO_REGISTER_MODE_MISSING | uapi.UFFDIO_REGISTER_MODE_WP | uapi.UFFDIO_REGISTER_MODE_MINOR

// registerLinux618 is UFFDIO_REGISTER. The result word is written last, and
// memory stays registered if that fails.
func registerLinux618(u *uffd, th *Thread, arg mem.Addr) syscall.Errno {
	w, errno := th.readArg(arg, 3)
	if errno != 0 {
		return errno
	}
	mode := uapi.RegisterMode(w[2])
	huge, errno := u.register(mem.MakeRange(mem.Addr(w[0]), w[1]), mode)
	if errno != 0 {
		return errno
	}
	return th.writeWord(arg, 3, uint64(rangeIoctls(mode, huge)))
}

// rangeIoctls returns what registered memory can be asked.
func rangeIoctls(mode uapi.RegisterMode, huge bool) uapi.Ioctls {
	ok := uapi.UFFDIO_BIT_WAKE | uapi.UFFDIO_BIT_COPY | uapi.UFFDIO_BIT_POISON
	if !huge {
		ok |= uapi.UFFDIO_BIT_ZEROPAGE | uapi.UFFDIO_BIT_MOVE
	}
	if mode&uapi.UFFDIO_REGISTER_MODE_WP != 0 {
		ok |= uapi.UFFDIO_BIT_WRITEPROTECT
	}
	if mode&uapi.UFFDIO_REGISTER_MODE_MINOR != 0 {
		ok |= uapi.UFFDIO_BIT_CONTINUE
	}
	return ok
}

// register checks all of r first, VMA by VMA, and changes it then. huge
// reports whether any of it is hugetlb memory.
func (u *uffd) register(r mem.Range, mode uapi.RegisterMode) (huge bool, errno syscall.Errno) {
	if mode == 0 || mode&^allModes != 0 || !u.k.profile.checkRange(uint64(r.Start), r.Len()) {
		return false, EINVAL
	}
	as := u.as
	as.mu.Lock()
	defer as.mu.Unlock()
	switch {
	case as.dead:
		return false, ENOMEM
	case u.released.Load():
		// The VMAs of a closed descriptor are nobody's, and release has looked
		// for them, or will with the lock.
		return false, EBADF
	}
	first := as.vmas.find(r.Start)
	if first == nil || first.start >= r.End {
		return false, EINVAL
	}
	if first.hugetlb() && r.Start&first.pageMask() != 0 {
		return false, EINVAL
	}
	as.vmas.all(r, func(v *vma) bool {
		switch {
		case !u.accepts(v, mode):
			errno = EINVAL
		case !v.is(vmMayWrite):
			errno = EPERM
		case v.hugetlb() && r.End < v.end && r.End&v.pageMask() != 0:
			errno = EINVAL
		case v.uffd != nil && v.uffd != u:
			errno = EBUSY
		}
		huge = huge || v.hugetlb()
		return errno == 0
	})
	if errno != 0 {
		return huge, errno
	}
	return huge, u.registerAll(r, uffdFlags(mode))
}

// registerAll changes what register has checked.
func (u *uffd) registerAll(r mem.Range, flags vmaFlags) syscall.Errno {
	as := u.as
	for v := as.vmas.find(r.Start); v != nil && v.start < r.End; v = as.vmas.next(v) {
		// A VMA that has all of the modes keeps what else it has.
		if v.uffd == u && v.flags&flags == flags {
			continue
		}
		as.learn(v, r.Intersect(v.rng()))
		next, errno := as.change(v, r, v.flags&^vmUffd|flags, u)
		if errno != 0 {
			return errno
		}
		v = next
	}
	return 0
}

// accepts reports whether memory of v's kind can be registered so.
func (u *uffd) accepts(v *vma, mode uapi.RegisterMode) bool {
	if u.has(uapi.UFFD_FEATURE_WP_ASYNC) && mode == uapi.UFFDIO_REGISTER_MODE_WP {
		return true
	}
	if v.anon() {
		return mode&uapi.UFFDIO_REGISTER_MODE_MINOR == 0
	}
	return v.obj.kind != kindRegular
}

// unregisterLinux618 is UFFDIO_UNREGISTER.
func unregisterLinux618(u *uffd, th *Thread, arg mem.Addr) syscall.Errno {
	w, errno := th.readArg(arg, 2)
	if errno != 0 {
		return errno
	}
	return u.unregister(mem.MakeRange(mem.Addr(w[0]), w[1]))
}

func (u *uffd) unregister(r mem.Range) (errno syscall.Errno) {
	if !u.k.profile.checkRange(uint64(r.Start), r.Len()) {
		return EINVAL
	}
	as := u.as
	as.mu.Lock()
	defer as.mu.Unlock()
	if as.dead {
		return ENOMEM
	}
	first := as.vmas.find(r.Start)
	if first == nil || first.start >= r.End {
		return EINVAL
	}
	if first.hugetlb() && r.Start&first.pageMask() != 0 {
		return EINVAL
	}
	as.vmas.all(r, func(v *vma) bool {
		switch {
		case v.uffd != nil && v.uffd != u:
			errno = EINVAL
		case v.uffd == nil && !u.accepts(v, uapi.UFFDIO_REGISTER_MODE_WP):
			errno = EINVAL
		}
		return errno == 0
	})
	if errno != 0 {
		return errno
	}
	for v := as.vmas.find(r.Start); v != nil && v.start < r.End; v = as.vmas.next(v) {
		if v.uffd == nil {
			continue
		}
		part := r.Intersect(v.rng())
		// Waiters of memory that was registered in other modes alone stay
		// asleep, as they do in the kernel.
		if v.is(vmMissing) {
			u.wakeRange(part)
		}
		as.unprotect(v, part)
		next, errno := as.change(v, part, v.flags&^vmUffd, nil)
		if errno != 0 {
			return errno
		}
		v = next
	}
	return 0
}

// unprotect lifts the write protection of r, a part of v that is about to be
// nobody's, and drops its markers.
func (as *space) unprotect(v *vma, r mem.Range) {
	if v.is(vmWP) {
		as.protectPages(v, r, false)
	}
}
