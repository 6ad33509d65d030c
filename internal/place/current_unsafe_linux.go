// SPDX-License-Identifier: Apache-2.0

package place

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Current returns the processor on which the calling thread runs now, or -1.
func Current() int {
	var cpu uint32
	if _, _, errno := syscall.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0); errno != 0 {
		return -1
	}
	return int(cpu)
}
