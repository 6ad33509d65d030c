// SPDX-License-Identifier: Apache-2.0

package uffdtrace

import "strconv"

// Errno is an error number of Linux on amd64 and arm64, whatever the system
// that this package runs on. Zero is success.
type Errno uint16

const eagain Errno = 11

// What a call ends with that a signal interrupts and that the kernel begins
// again, or not, without the program's seeing it.
const (
	erestartsys          Errno = 512
	erestartnointr       Errno = 513
	erestartnohand       Errno = 514
	erestartRestartblock Errno = 516
)

var errnoNames = map[Errno]string{
	1: "EPERM", 2: "ENOENT", 3: "ESRCH", 4: "EINTR", 5: "EIO", 6: "ENXIO", 9: "EBADF",
	11: "EAGAIN", 12: "ENOMEM", 13: "EACCES", 14: "EFAULT", 16: "EBUSY", 17: "EEXIST",
	19: "ENODEV", 22: "EINVAL", 23: "ENFILE", 24: "EMFILE", 25: "ENOTTY", 28: "ENOSPC",
	29: "ESPIPE", 32: "EPIPE", 38: "ENOSYS", 75: "EOVERFLOW", 88: "ENOTSOCK", 89: "EDESTADDRREQ",
	90: "EMSGSIZE", 95: "EOPNOTSUPP", 104: "ECONNRESET", 105: "ENOBUFS", 106: "EISCONN",
	107: "ENOTCONN", 109: "ETOOMANYREFS", 110: "ETIMEDOUT", 111: "ECONNREFUSED", 133: "EHWPOISON",
	erestartsys: "ERESTARTSYS", erestartnointr: "ERESTARTNOINTR",
	erestartnohand: "ERESTARTNOHAND", erestartRestartblock: "ERESTART_RESTARTBLOCK",
}

// String returns the C name, or the number.
func (e Errno) String() string {
	if s, ok := errnoNames[e]; ok {
		return s
	}
	return "errno " + strconv.Itoa(int(e))
}

func (e Errno) restarts() bool { return e >= erestartsys && e <= erestartRestartblock }
