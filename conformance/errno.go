// SPDX-License-Identifier: Apache-2.0

package conformance

import "strconv"

// Errno is an error number of Linux on amd64 and arm64, whatever the system
// that this package runs on. Zero is success.
type Errno uint16

// Error numbers that cases speak of.
const (
	OK         Errno = 0
	EPERM      Errno = 1
	ENOENT     Errno = 2
	ESRCH      Errno = 3
	EINTR      Errno = 4
	EIO        Errno = 5
	EBADF      Errno = 9
	EAGAIN     Errno = 11
	ENOMEM     Errno = 12
	EACCES     Errno = 13
	EFAULT     Errno = 14
	EBUSY      Errno = 16
	EEXIST     Errno = 17
	EINVAL     Errno = 22
	EMFILE     Errno = 24
	ENOTTY     Errno = 25
	EFBIG      Errno = 27
	ESPIPE     Errno = 29
	ENOSYS     Errno = 38
	EOVERFLOW  Errno = 75
	EOPNOTSUPP Errno = 95
	EHWPOISON  Errno = 133
)

var errnoNames = map[Errno]string{
	OK: "ok", EPERM: "EPERM", ENOENT: "ENOENT", ESRCH: "ESRCH", EINTR: "EINTR", EIO: "EIO",
	EBADF: "EBADF", EAGAIN: "EAGAIN", ENOMEM: "ENOMEM", EACCES: "EACCES", EFAULT: "EFAULT",
	EBUSY: "EBUSY", EEXIST: "EEXIST", EINVAL: "EINVAL", EMFILE: "EMFILE", ENOTTY: "ENOTTY",
	EFBIG: "EFBIG", ESPIPE: "ESPIPE", ENOSYS: "ENOSYS", EOVERFLOW: "EOVERFLOW", EOPNOTSUPP: "EOPNOTSUPP", EHWPOISON: "EHWPOISON",
}

// String returns the C name, or the number.
func (e Errno) String() string {
	if s, ok := errnoNames[e]; ok {
		return s
	}
	return "errno " + strconv.Itoa(int(e))
}

// Signals that cases speak of, with the codes that siginfo has of them.
const (
	SIGBUS  = 7
	SIGUSR1 = 10
	SIGSEGV = 11

	SegvMapErr = 1 // nothing is mapped
	SegvAccErr = 2 // not with this protection
	BusAdrErr  = 2
	BusMceErr  = 4 // BUS_MCEERR_AR, with CONFIG_MEMORY_FAILURE
)
