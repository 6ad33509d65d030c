// SPDX-License-Identifier: Apache-2.0

package uffd

import (
	"runtime"
	"syscall"

	"github.com/faultline-go/faultline/internal/sys"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// The methods here bring pages in, and wake those who wait for them unless
// the mode says otherwise. They stop at the first page that is there already
// and at the end of a mapping. What they have done by then is in the result:
// EAGAIN with some bytes done means to go on from there, where the next call
// shows the reason. EAGAIN with nothing done means that a change of the
// layout is outstanding: read the queued messages first.

// doneBytes returns the count in a result word, which holds a negated errno
// if nothing was done.
func doneBytes(word int64) int { return int(max(word, 0)) }

// Copy installs src at dst; done is the number of bytes installed, valid with
// any errno. The length of src is a whole number of pages; src itself need
// not be aligned.
//
// src must not be memory whose faults are served through a descriptor that
// waits for the caller: the ioctl would block in the kernel with the
// caller's place in the scheduler.
func (f *FD) Copy(dst mem.Addr, src []byte, mode uapi.CopyMode) (done int, errno syscall.Errno) {
	arg := uapi.Copy{Dst: uint64(dst), Src: sys.Address(src), Len: uint64(len(src)), Mode: mode}
	errno = ioctl(f, uapi.UFFDIO_COPY, &arg)
	runtime.KeepAlive(src)
	return doneBytes(arg.Copy), errno
}

// Zeropage installs pages of zeros. They can be written to, even where the
// range is registered for write protection. Huge pages have none (EINVAL).
func (f *FD) Zeropage(r mem.Range, mode uapi.ZeropageMode) (done int, errno syscall.Errno) {
	arg := uapi.Zeropage{Range: rangeArg(r), Mode: mode}
	errno = ioctl(f, uapi.UFFDIO_ZEROPAGE, &arg)
	return doneBytes(arg.Zeropage), errno
}

// Continue maps what the page cache holds for r (since Linux 5.13). It fails
// with EFAULT where that is nothing, and with EINVAL on anonymous memory.
func (f *FD) Continue(r mem.Range, mode uapi.ContinueMode) (done int, errno syscall.Errno) {
	arg := uapi.Continue{Range: rangeArg(r), Mode: mode}
	errno = ioctl(f, uapi.UFFDIO_CONTINUE, &arg)
	return doneBytes(arg.Mapped), errno
}

// Poison makes an access to r a SIGBUS, or EFAULT in a system call (since
// Linux 6.6). Threads that wait there are woken, and get it.
func (f *FD) Poison(r mem.Range, mode uapi.PoisonMode) (done int, errno syscall.Errno) {
	arg := uapi.Poison{Range: rangeArg(r), Mode: mode}
	errno = ioctl(f, uapi.UFFDIO_POISON, &arg)
	return doneBytes(arg.Updated), errno
}

// Move moves n bytes of anonymous pages from src to dst without copying them
// (since Linux 6.8). Only a thread of the monitored address space may do so,
// others get EINVAL. Pages that are pinned or shared after fork are refused
// with EBUSY, absent ones with ENOENT.
func (f *FD) Move(dst, src mem.Addr, n uint64, mode uapi.MoveMode) (done int, errno syscall.Errno) {
	arg := uapi.Move{Dst: uint64(dst), Src: uint64(src), Len: n, Mode: mode}
	errno = ioctl(f, uapi.UFFDIO_MOVE, &arg)
	return doneBytes(arg.Move), errno
}

// Changing reports whether a change of the layout is outstanding, because of
// which COPY and its like fail with EAGAIN. It changes nothing.
func (f *FD) Changing() bool {
	// The kernel looks for outstanding changes before it reads the argument,
	// and refuses a copy of no bytes thereafter (EINVAL).
	_, errno := f.Copy(0, nil, 0)
	return errno == syscall.EAGAIN
}
