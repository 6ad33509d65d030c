// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/uffd/uapi"
)

// seccompAction asks whether the kernel knows what a filter may return
// (seccomp(2), since Linux 4.14). It needs no privilege and installs nothing.
func seccompAction(action uint32) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0,
		uintptr(unsafe.Pointer(&action)))
	return errno
}

// scanArg is the argument of PAGEMAP_SCAN.
type scanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages uint64
	inverted, mask, anyOf, result                           uint64
}

const (
	pagemapScan = 0xc0606610 // _IOWR('f', 16, 96 bytes)
	pagePresent = 1 << 3     // PAGE_IS_PRESENT
)

// scanPagemap asks for nothing but a walk over one page of ours, so that an
// errno can only mean that the ioctl is missing (since Linux 6.7).
func scanPagemap() error {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer f.Close()
	page := uint64(os.Getpagesize())
	var here byte
	arg := scanArg{size: uint64(unsafe.Sizeof(scanArg{})), mask: pagePresent, result: pagePresent}
	arg.start = uint64(uintptr(unsafe.Pointer(&here))) &^ (page - 1)
	arg.end = arg.start + page
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return errno
	}
	return nil
}

// ioctl makes a request of a userfaultfd.
func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// handshake makes UFFDIO_API on a fresh descriptor and returns the features
// that the kernel has, which is more than those asked for.
func handshake(fd int, want uapi.Features) (uapi.Features, error) {
	arg := uapi.API{API: uapi.UFFD_API, Features: want}
	err := ioctl(fd, uapi.UFFDIO_API, unsafe.Pointer(&arg))
	return arg.Features, err
}

// register registers b, which must be mapped memory of whole pages that the
// collector knows nothing of, and returns what may be done with it.
func register(fd int, b []byte, mode uapi.RegisterMode) (uapi.Ioctls, error) {
	arg := uapi.Register{Range: rangeOf(b), Mode: mode}
	err := ioctl(fd, uapi.UFFDIO_REGISTER, unsafe.Pointer(&arg))
	return arg.Ioctls, err
}

// move moves the pages of src, which must be mapped memory too, to dst.
func move(fd int, dst, src []byte) error {
	arg := uapi.Move{Dst: rangeOf(dst).Start, Src: rangeOf(src).Start, Len: uint64(len(src))}
	return ioctl(fd, uapi.UFFDIO_MOVE, unsafe.Pointer(&arg))
}

func rangeOf(b []byte) uapi.Range {
	return uapi.Range{Start: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), Len: uint64(len(b))}
}
