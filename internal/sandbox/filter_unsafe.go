// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sandbox

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func setFilter(filter []unix.SockFilter) error {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: unsafe.SliceData(filter)}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}
