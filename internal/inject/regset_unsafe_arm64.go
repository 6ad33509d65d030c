// SPDX-License-Identifier: Apache-2.0

//go:build linux

package inject

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// regset32 reads or writes a register set that is one 32-bit word.
func regset32(req, tid, set int, v *int32) error {
	iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(v)), Len: 4}
	return ptracePtr(req, tid, uintptr(set), unsafe.Pointer(&iov))
}
