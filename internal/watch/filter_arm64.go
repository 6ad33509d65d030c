// SPDX-License-Identifier: Apache-2.0

//go:build linux

package watch

import "golang.org/x/sys/unix"

const nativeArch = unix.AUDIT_ARCH_AARCH64

// x32 is zero: there is nothing of the kind.
var x32 uint32

// overDescriptor are the calls that put a descriptor in the place of another.
var overDescriptor = []uint32{unix.SYS_DUP3}
