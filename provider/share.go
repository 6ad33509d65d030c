// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import "golang.org/x/sys/unix"

// sharesFiles reports whether two processes have one table of descriptors
// (CLONE_FILES of clone(2)). Where the kernel cannot tell, they may.
func sharesFiles(pid, other int) bool {
	const kcmpFiles = 2
	order, _, errno := unix.RawSyscall6(unix.SYS_KCMP, uintptr(pid), uintptr(other), kcmpFiles, 0, 0, 0)
	return errno != 0 || order == 0
}
