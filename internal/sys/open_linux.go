// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// Flags of Userfaultfd and IoctlValue.
const (
	Cloexec  = unix.O_CLOEXEC
	Nonblock = unix.O_NONBLOCK
)

// Userfaultfd is userfaultfd(2).
func Userfaultfd(flags int) (raw int, err error) {
	r, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, uintptr(flags), 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// OpenReadOnly is open(2) for reading, close-on-exec.
func OpenReadOnly(path string) (raw int, err error) {
	return retry(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
}

// IoctlValue is ioctl(2) with an argument by value and a result.
func IoctlValue(raw int, request uint32, value int) (result int, err error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(raw), uintptr(request), uintptr(value))
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// PidfdOpen is pidfd_open(2).
func PidfdOpen(pid int) (pidfd int, err error) { return unix.PidfdOpen(pid, 0) }

// PidfdGetfd is pidfd_getfd(2): a duplicate, close-on-exec, of descriptor fd
// of the process.
func PidfdGetfd(pidfd, fd int) (raw int, err error) { return unix.PidfdGetfd(pidfd, fd, 0) }

func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != syscall.EINTR {
			return n, err
		}
	}
}
