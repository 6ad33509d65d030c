// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import "golang.org/x/sys/unix"

const nativeArch = unix.AUDIT_ARCH_X86_64

// x32 marks the calls of programs with 32-bit pointers, which have the native
// architecture and this bit in the number.
const x32 uint32 = 1 << 30

// overDescriptor are the calls that put a descriptor in the place of another.
var overDescriptor = []uint32{unix.SYS_DUP2, unix.SYS_DUP3}
