// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"encoding/binary"
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// words is an ioctl's argument: every field of the ABI is 64 bits wide.
type words [5]uint64

// readArg reads an argument of n words.
func (th *Thread) readArg(arg mem.Addr, n int) (w words, errno syscall.Errno) {
	var b [40]byte
	if got, errno := th.copyIn(arg, b[:8*n]); got < 8*n {
		return w, argErrno(errno)
	}
	for i := range n {
		w[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return w, 0
}

// writeWord writes one word of an argument.
func (th *Thread) writeWord(arg mem.Addr, i int, v uint64) syscall.Errno {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	at := arg + mem.Addr(8*i)
	if low := mem.PageSize - int(at&(mem.PageSize-1)); low < 8 {
		return th.writeSplit(at, b[:low], b[low:])
	}
	if n, errno := th.copyOut(at, b[:]); n < 8 {
		return argErrno(errno)
	}
	return 0
}

// writeSplit writes a word that lies in two pages. It is one store of the
// processor's, which happens wholly or not at all.
func (th *Thread) writeSplit(a mem.Addr, low, high []byte) syscall.Errno {
	next := a + mem.Addr(len(low))
	old := make([]byte, len(high))
	if n, errno := th.copyIn(next, old); n < len(old) {
		return argErrno(errno)
	}
	if n, errno := th.copyOut(next, high); n < len(high) {
		return argErrno(errno)
	}
	if n, errno := th.copyOut(a, low); n < len(low) {
		th.copyOut(next, old)
		return argErrno(errno)
	}
	return 0
}

// argErrno is what a copy of arguments fails with: never want of memory, and
// EINTR only for the dead.
func argErrno(errno syscall.Errno) syscall.Errno {
	if errno == EINTR {
		return EINTR
	}
	return EFAULT
}

// writeWords writes an argument of n words.
func (th *Thread) writeWords(arg mem.Addr, w ...uint64) syscall.Errno {
	b := make([]byte, 0, 40)
	for _, v := range w {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	if n, errno := th.copyOut(arg, b); n < len(b) {
		return argErrno(errno)
	}
	return 0
}

// apiLinux618 is UFFDIO_API. Every failure after the argument was read zeroes
// it.
func apiLinux618(u *uffd, th *Thread, arg mem.Addr) syscall.Errno {
	w, errno := th.readArg(arg, 3)
	if errno != 0 {
		return errno
	}
	asked := uapi.Features(w[1])
	errno = 0
	switch {
	case w[0] != uapi.UFFD_API:
		errno = EINVAL
	case asked.Has(uapi.UFFD_FEATURE_EVENT_FORK) && !th.p.options.Privileged:
		errno = EPERM
	case asked&^uapi.UFFD_API_FEATURES != 0:
		errno = EINVAL
	}
	if errno == 0 {
		if errno := th.writeWords(arg, uapi.UFFD_API, uint64(uapi.UFFD_API_FEATURES), uint64(uapi.UFFD_API_IOCTLS)); errno != 0 {
			return errno
		}
		if asked.Has(uapi.UFFD_FEATURE_WP_ASYNC) {
			asked |= uapi.UFFD_FEATURE_WP_UNPOPULATED
		}
		if u.state.CompareAndSwap(0, uint64(asked)|initialized) {
			return 0
		}
		errno = EINVAL
	}
	if failed := th.writeWords(arg, 0, 0, 0); failed != 0 {
		return failed
	}
	return errno
}

// checkRange validates a range that a caller names.
func (p *Profile) checkRange(start, n uint64) bool {
	const mask = mem.PageSize - 1
	return start&mask == 0 && p.checkLength(start, n)
}

// checkLength is checkRange without the alignment of the start.
func (p *Profile) checkLength(start, n uint64) bool {
	const mask = mem.PageSize - 1
	return n&mask == 0 && n != 0 && start >= p.minAddr && start < taskSize && n <= taskSize-start
}

// wakeLinux618 is UFFDIO_WAKE, which needs no memory to be there.
func wakeLinux618(u *uffd, th *Thread, arg mem.Addr) syscall.Errno {
	w, errno := th.readArg(arg, 2)
	if errno != 0 {
		return errno
	}
	return u.wake(mem.MakeRange(mem.Addr(w[0]), w[1]))
}

func (u *uffd) wake(r mem.Range) syscall.Errno {
	if !u.k.profile.checkRange(uint64(r.Start), uint64(r.End-r.Start)) {
		return EINVAL
	}
	u.wakeRange(r)
	return 0
}
