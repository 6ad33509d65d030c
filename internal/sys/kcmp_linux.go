// SPDX-License-Identifier: Apache-2.0

package sys

import "golang.org/x/sys/unix"

// Kinds of kcmp(2).
const (
	kcmpFile  = 0
	kcmpFiles = 2
)

// SameFile reports whether two descriptors, of any two processes, stand for one
// open file. It fails where the kernel was built without kcmp(2) and for
// processes that we may not inspect.
func SameFile(pidA, fdA, pidB, fdB int) (bool, error) {
	return kcmp(pidA, pidB, kcmpFile, uintptr(fdA), uintptr(fdB))
}

// SameFiles reports whether two tasks share their table of descriptors. It
// fails as SameFile does.
func SameFiles(tidA, tidB int) (bool, error) { return kcmp(tidA, tidB, kcmpFiles, 0, 0) }

func kcmp(a, b int, kind, x, y uintptr) (bool, error) {
	r, _, errno := unix.RawSyscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), kind, x, y, 0)
	if errno != 0 {
		return false, errno
	}
	return r == 0, nil
}
