// SPDX-License-Identifier: Apache-2.0

//go:build linux

package inject

import "golang.org/x/sys/unix"

const (
	nativeArch = unix.AUDIT_ARCH_X86_64
	compatArch = unix.AUDIT_ARCH_I386
)

// x32 marks the calls of programs with 32-bit pointers, which have the native
// architecture and this bit in the number.
const x32 uint32 = 1 << 30

var (
	// x32Calls are mmap, brk and madvise.
	x32Calls = []uint32{unix.SYS_MMAP, unix.SYS_BRK, unix.SYS_MADVISE}
	// compatCalls are the i386 brk, the old mmap with its arguments in
	// memory, mmap2 and madvise.
	compatCalls = []uint32{45, 90, 192, 219}
)
