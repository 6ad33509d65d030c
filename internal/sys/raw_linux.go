// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// RawIoctl is ioctl(2) with a pointer to arg, which the kernel may write to.
// The conversion to uintptr stands in the call itself, so that arg may live
// on the stack and is not moved before the kernel has answered.
func RawIoctl[T any](fd int, request uint32, arg *T) syscall.Errno {
	_, _, errno := syscall.RawSyscall(syscall.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(arg)))
	return errno
}

// RawRead is read(2) into the memory of items. It returns the number of whole
// items read.
func RawRead[T any](fd int, items []T) (n int, errno syscall.Errno) {
	size := unsafe.Sizeof(*new(T))
	r, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(items))), uintptr(len(items))*size)
	if errno != 0 {
		return 0, errno
	}
	return int(r / size), 0
}

// RawReadNowait is RawRead that fails with EAGAIN instead of blocking, on a
// descriptor that is not O_NONBLOCK. Kernels that cannot answer EOPNOTSUPP.
func RawReadNowait[T any](fd int, items []T) (n int, errno syscall.Errno) {
	size := unsafe.Sizeof(*new(T))
	iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(unsafe.SliceData(items)))}
	iov.SetLen(len(items) * int(size))
	// An offset of -1 means the current position, as in read(2).
	r, _, errno := syscall.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1,
		^uintptr(0), ^uintptr(0), unix.RWF_NOWAIT)
	runtime.KeepAlive(items)
	if errno != 0 {
		return 0, errno
	}
	return int(r / size), 0
}

// escaped is never true. The compiler does not know.
var (
	escaped bool
	sink    atomic.Pointer[byte]
)

// Address returns the address of b's first byte, to be passed to the kernel
// inside a struct, where the collector does not see it. The memory stays put:
// having b here moves it from the caller's stack to the heap, whose objects
// do not move. The caller keeps it reachable with runtime.KeepAlive.
func Address(b []byte) uint64 {
	p := unsafe.SliceData(b)
	if escaped {
		sink.Store(p)
	}
	return uint64(uintptr(unsafe.Pointer(p)))
}
