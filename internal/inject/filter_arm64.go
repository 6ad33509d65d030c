// SPDX-License-Identifier: Apache-2.0

//go:build linux

package inject

import "golang.org/x/sys/unix"

const (
	nativeArch = unix.AUDIT_ARCH_AARCH64
	compatArch = unix.AUDIT_ARCH_ARM
)

// x32 is zero: there is nothing of the kind.
var x32 uint32

var (
	x32Calls []uint32
	// compatCalls are the 32-bit brk, mmap2 and madvise.
	compatCalls = []uint32{45, 192, 220}
)
