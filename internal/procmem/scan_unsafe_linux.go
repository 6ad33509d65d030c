// SPDX-License-Identifier: Apache-2.0

package procmem

import (
	"runtime"
	"syscall"
	"unsafe"
)

func addressOf(v []scanRegion) uint64 { return uint64(uintptr(unsafe.Pointer(&v[0]))) }

// scanIoctl returns the number of regions found. The slice behind arg.vec is
// on the heap, which does not move, and its owner is in use by the caller.
func scanIoctl(fd uintptr, arg *scanArg) (int, error) {
	n, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, pagemapScan, uintptr(unsafe.Pointer(arg)))
	runtime.KeepAlive(arg)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
