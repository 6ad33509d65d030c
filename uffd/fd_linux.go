// SPDX-License-Identifier: Apache-2.0

package uffd

import (
	"sync/atomic"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/internal/sys"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// FD is a userfaultfd descriptor. All its methods may be called at any time
// by several goroutines; after Close they fail with EBADF.
//
// The methods that return a syscall.Errno allocate nothing and, except for
// Wait, do not tell the scheduler that they enter the kernel.
type FD struct {
	desc     *sys.Desc   // immutable
	nonblock atomic.Bool // the file is known to be O_NONBLOCK
}

// Take returns an FD that owns descriptor raw, for instance that of a
// [uapi.Fork]. It is made close-on-exec.
func Take(raw int) *FD {
	f := &FD{desc: sys.MakeDesc(raw)}
	// Whether raw is a descriptor at all shows at its first use.
	nonblock, _ := sys.Nonblocking(raw)
	f.nonblock.Store(nonblock)
	_ = sys.SetCloexec(raw)
	return f
}

// Raw returns the descriptor's number. It must not be closed, nor used after
// Close was called.
func (f *FD) Raw() int { return f.desc.Raw() }

// Close closes the descriptor as soon as no call on it is in flight, and lets
// no further one begin. A Wait in flight is not ended: use its wake
// descriptor. Calls but the first do nothing.
//
// If this is the last descriptor of its file anywhere, all ranges are
// unregistered and waiting threads go on with pages of zeros.
func (f *FD) Close() error { return f.desc.Close() }

// SetNonblock makes the file O_NONBLOCK, for all who share it. Wait needs
// that: poll(2) on a blocking userfaultfd always reports an error.
func (f *FD) SetNonblock() error {
	raw, ok := f.desc.Acquire()
	if !ok {
		return Check("F_SETFL", noRange, 0, syscall.EBADF)
	}
	defer f.desc.Release()
	if err := sys.SetNonblock(raw); err != nil {
		return Check("F_SETFL", noRange, 0, sys.Errno(err))
	}
	f.nonblock.Store(true)
	return nil
}

// Read fills msgs with queued messages, faults before events, and never
// blocks. It fails with EAGAIN when none is queued, with EINVAL if msgs is
// empty or before the handshake, and with EMFILE if a FORK is due and its
// descriptor cannot be installed.
//
// Reading a FORK installs a descriptor, which the caller owns.
func (f *FD) Read(msgs []uapi.Msg) (n int, errno syscall.Errno) {
	raw, ok := f.desc.Acquire()
	if !ok {
		return 0, syscall.EBADF
	}
	if f.nonblock.Load() {
		n, errno = sys.RawRead(raw, msgs)
	} else {
		n, errno = sys.RawReadNowait(raw, msgs)
	}
	f.desc.Release()
	return n, errno
}

// Wait blocks until a message is queued, wake (the number of an eventfd, or
// -1) is readable, or timeout has passed; a negative timeout is for ever. It
// reports whether a message is queued. Its thread gives up its place in the
// scheduler meanwhile.
//
// It fails with EINVAL before the handshake and on a descriptor that is not
// O_NONBLOCK.
func (f *FD) Wait(wake int, timeout time.Duration) (ready bool, errno syscall.Errno) {
	raw, ok := f.desc.Acquire()
	if !ok {
		return false, syscall.EBADF
	}
	revents, errno := sys.Poll(raw, wake, timeout)
	f.desc.Release()
	switch {
	case errno != 0:
		return false, errno
	case revents&sys.PollErr != 0:
		return false, syscall.EINVAL
	}
	return revents&sys.PollIn != 0, 0
}

// ioctl performs one request on f.
func ioctl[T any](f *FD, request uint32, arg *T) syscall.Errno {
	raw, ok := f.desc.Acquire()
	if !ok {
		return syscall.EBADF
	}
	errno := sys.RawIoctl(raw, request, arg)
	f.desc.Release()
	return errno
}
