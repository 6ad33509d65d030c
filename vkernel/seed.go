// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"fmt"
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// Seed is the first version of the subsystem, as it was proposed in 2015: the
// README says what it did differently, and which of its defects are kept.
var Seed = &Profile{
	name:     "seed",
	create:   createSeed,
	openMode: ORdwr,
	minAddr:  mmapMin,
	deny:     denySeed,
	closed:   bus,
	lifo:     true,

	register:   registerRangeSeed,
	unregister: unregisterRangeSeed,
	wake:       wakeRangeSeed,

	recordSize:   8,
	encode:       encodeSeed,
	pollBlocking: true,
	fdinfo:       fdinfoSeed,
	ioctls: map[uint32]ioctlFunc{
		uapi.UFFDIO_API:        apiSeed,
		uapi.UFFDIO_REGISTER:   registerSeed,
		uapi.UFFDIO_UNREGISTER: unregisterSeed,
		uapi.UFFDIO_WAKE:       wakeSeed,
	},
}

const (
	seedBits        = 1 // faults say whether they are writes
	seedRangeIoctls = uapi.UFFDIO_BIT_WAKE
)

// createSeed reserves a number before it looks at the flags.
func createSeed(th *Thread, flags int) (int, syscall.Errno) {
	if th.p.full() {
		return -1, EMFILE
	}
	if flags&^(OCloexec|ONonblock) != 0 {
		return -1, EINVAL
	}
	return th.p.installUffd(th.p.k.newUffd(th.p.as.Load(), flags), false)
}

// denySeed refuses an access that cannot wait, and one that has waited once:
// the fault handlers of that time let an access retry a single time.
func denySeed(f *faulting) (verdict, bool) {
	switch {
	case f.th.killed():
		return killed, true
	case f.at.mode == ptraceMode || f.at.tries > 0:
		return bus, true
	}
	return 0, false
}

// apiSeed is UFFDIO_API: its first word alone is read.
func apiSeed(u *uffd, th *Thread, arg mem.Addr) syscall.Errno {
	if u.ready() {
		return EINVAL
	}
	w, errno := th.readArg(arg, 1)
	if errno != 0 {
		return errno
	}
	if w[0] != uapi.UFFD_API {
		if errno := th.writeWords(arg, 0, 0, 0); errno != 0 {
			return errno
		}
		return EINVAL
	}
	if errno := th.writeWords(arg, uapi.UFFD_API, seedBits, uint64(uapi.UFFD_API_IOCTLS)); errno != 0 {
		return errno
	}
	u.state.Store(initialized)
	return 0
}

// registerSeed is UFFDIO_REGISTER. The result is stored before anything is
// registered; a mode adds to what a VMA has.
func registerSeed(u *uffd, th *Thread, arg mem.Addr) syscall.Errno {
	w, errno := th.readArg(arg, 3)
	if errno != 0 {
		return errno
	}
	if uapi.RegisterMode(w[2]) != uapi.UFFDIO_REGISTER_MODE_MISSING || !u.k.profile.checkRange(w[0], w[1]) {
		return EINVAL
	}
	r := mem.MakeRange(mem.Addr(w[0]), w[1])
	as := u.as
	as.mu.Lock()
	errno = u.checkSeed(r, true)
	as.mu.Unlock()
	if errno != 0 {
		return errno
	}
	// The patch stored the result with the lock held, and would have hung on
	// a fault of its own making.
	if errno := th.writeWord(arg, 3, uint64(seedRangeIoctls)); errno != 0 {
		return errno
	}
	_, errno = registerRangeSeed(u, r, uapi.UFFDIO_REGISTER_MODE_MISSING)
	return errno
}

func registerRangeSeed(u *uffd, r mem.Range, mode uapi.RegisterMode) (huge bool, errno syscall.Errno) {
	if mode != uapi.UFFDIO_REGISTER_MODE_MISSING || !u.k.profile.checkRange(uint64(r.Start), r.Len()) {
		return false, EINVAL
	}
	as := u.as
	as.mu.Lock()
	defer as.mu.Unlock()
	if u.released.Load() {
		return false, EBADF // see register
	}
	if errno := u.checkSeed(r, true); errno != 0 {
		return false, errno
	}
	for v := as.vmas.find(r.Start); v != nil && v.start < r.End; v = as.vmas.next(v) {
		if v.uffd == u && v.is(vmMissing) {
			continue
		}
		next, errno := as.change(v, r, v.flags|vmMissing, u)
		if errno != 0 {
			return false, errno
		}
		v = next
	}
	return false, 0
}

// checkSeed finds out whether r can be registered, or with own false be given
// back. Preconditions: the lock of the address space is held for writing.
func (u *uffd) checkSeed(r mem.Range, own bool) (errno syscall.Errno) {
	as := u.as
	first := as.vmas.find(r.Start)
	switch {
	case first == nil:
		return ENOMEM
	case first.start >= r.End:
		return EINVAL
	}
	as.vmas.all(r, func(v *vma) bool {
		switch {
		case v.obj != nil:
			errno = EINVAL
		case own && v.uffd != nil && v.uffd != u:
			errno = EBUSY
		}
		return errno == 0
	})
	return errno
}

// unregisterSeed is UFFDIO_UNREGISTER: of whoever's memory, and nobody is
// woken.
func unregisterSeed(u *uffd, th *Thread, arg mem.Addr) syscall.Errno {
	w, errno := th.readArg(arg, 2)
	if errno != 0 {
		return errno
	}
	return unregisterRangeSeed(u, mem.MakeRange(mem.Addr(w[0]), w[1]))
}

func unregisterRangeSeed(u *uffd, r mem.Range) syscall.Errno {
	if !u.k.profile.checkRange(uint64(r.Start), r.Len()) {
		return EINVAL
	}
	as := u.as
	as.mu.Lock()
	defer as.mu.Unlock()
	if errno := u.checkSeed(r, false); errno != 0 {
		return errno
	}
	for v := as.vmas.find(r.Start); v != nil && v.start < r.End; v = as.vmas.next(v) {
		if v.uffd == nil {
			continue
		}
		next, errno := as.change(v, r, v.flags&^vmUffd, nil)
		if errno != 0 {
			return errno
		}
		v = next
	}
	return 0
}

// wakeSeed is UFFDIO_WAKE: for faults that were read, and ENOENT if there is
// none.
func wakeSeed(u *uffd, th *Thread, arg mem.Addr) syscall.Errno {
	w, errno := th.readArg(arg, 2)
	if errno != 0 {
		return errno
	}
	return wakeRangeSeed(u, mem.MakeRange(mem.Addr(w[0]), w[1]))
}

func wakeRangeSeed(u *uffd, r mem.Range) syscall.Errno {
	if !u.k.profile.checkRange(uint64(r.Start), r.Len()) {
		return EINVAL
	}
	if u.wakeRange(r) == 0 {
		return ENOENT
	}
	return 0
}

func fdinfoSeed(u *uffd) string {
	unread, total := u.counts()
	ioctls := uapi.UFFD_API_IOCTLS | seedRangeIoctls
	return fmt.Sprintf("pending:\t%d\ntotal:\t%d\nAPI:\t%x:%x:%x\n", unread, total, uapi.UFFD_API, seedBits, uint64(ioctls))
}
