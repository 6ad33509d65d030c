// SPDX-License-Identifier: Apache-2.0

// Package uapi is the userfaultfd(2) ABI of Linux 6.18 in Go: numbers,
// argument structs, messages. It makes no system call and builds everywhere,
// so that a software model and a decoder of recorded traffic can share it
// with the code that talks to the kernel.
//
// Constants keep their C spelling, so that they can be looked up in
// ioctl_userfaultfd(2). Numbers and layouts are those of amd64 and arm64,
// which are the same except for the number of the system call; both are
// little-endian.
//
// The kernel gains features. A bit or an event that this package does not
// know is kept and printed in hexadecimal, never refused.
package uapi
