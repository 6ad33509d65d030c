// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"

	"github.com/faultline-go/faultline/mem"
)

// Errors of calls have Linux's numbers on every system, so that a result can
// be compared with one that a kernel gave elsewhere. On other systems than
// Linux their text, which is that system's, may be wrong: print [ErrnoName].
const (
	EPERM      syscall.Errno = 1
	ENOENT     syscall.Errno = 2
	ESRCH      syscall.Errno = 3
	EINTR      syscall.Errno = 4
	EIO        syscall.Errno = 5
	EBADF      syscall.Errno = 9
	EAGAIN     syscall.Errno = 11
	ENOMEM     syscall.Errno = 12
	EACCES     syscall.Errno = 13
	EFAULT     syscall.Errno = 14
	EBUSY      syscall.Errno = 16
	EEXIST     syscall.Errno = 17
	ENODEV     syscall.Errno = 19
	EINVAL     syscall.Errno = 22
	EMFILE     syscall.Errno = 24
	ENOTTY     syscall.Errno = 25
	EFBIG      syscall.Errno = 27
	ESPIPE     syscall.Errno = 29
	EOVERFLOW  syscall.Errno = 75
	EOPNOTSUPP syscall.Errno = 95
	EHWPOISON  syscall.Errno = 133
)

// names has for each errno its name and the number that the system has for it
// on which the package runs, which is what Go code elsewhere compares with.
var names = map[syscall.Errno]struct {
	name string
	host syscall.Errno
}{
	EPERM: {"EPERM", syscall.EPERM}, ENOENT: {"ENOENT", syscall.ENOENT},
	ESRCH: {"ESRCH", syscall.ESRCH}, EINTR: {"EINTR", syscall.EINTR},
	EIO: {"EIO", syscall.EIO}, EBADF: {"EBADF", syscall.EBADF},
	EAGAIN: {"EAGAIN", syscall.EAGAIN}, ENOMEM: {"ENOMEM", syscall.ENOMEM},
	EACCES: {"EACCES", syscall.EACCES}, EFAULT: {"EFAULT", syscall.EFAULT},
	EBUSY: {"EBUSY", syscall.EBUSY}, EEXIST: {"EEXIST", syscall.EEXIST},
	ENODEV: {"ENODEV", syscall.ENODEV}, EINVAL: {"EINVAL", syscall.EINVAL},
	EMFILE: {"EMFILE", syscall.EMFILE}, ENOTTY: {"ENOTTY", syscall.ENOTTY},
	EFBIG: {"EFBIG", syscall.EFBIG}, ESPIPE: {"ESPIPE", syscall.ESPIPE}, EOVERFLOW: {"EOVERFLOW", syscall.EOVERFLOW},
	EOPNOTSUPP: {"EOPNOTSUPP", syscall.EOPNOTSUPP},
	EHWPOISON:  {"EHWPOISON", EHWPOISON}, // only Linux has it
}

// ErrnoName returns the name of a Linux errno, its number if this package
// never returns it, and "0" for none.
func ErrnoName(e syscall.Errno) string {
	if n, ok := names[e]; ok {
		return n.name
	}
	return fmt.Sprintf("%d", uint64(e))
}

// hostErrno returns e as the system numbers it on which the package runs.
func hostErrno(e syscall.Errno) syscall.Errno {
	if runtime.GOOS == "linux" || e == 0 {
		return e
	}
	if n, ok := names[e]; ok {
		return n.host
	}
	return e
}

// ErrKilled is returned by the accesses of a process that is dead.
var ErrKilled = errors.New("process is killed")

// Signal is the error of an access that a signal would end.
type Signal struct {
	Signo int // SIGBUS or SIGSEGV
	Code  int // BusAdrErr, SegvMapErr or SegvAccErr
	Addr  mem.Addr
}

func (e *Signal) Error() string {
	name, code := "SIGSEGV", "not mapped"
	switch {
	case e.Signo == SIGBUS:
		name, code = "SIGBUS", "no page can be had"
	case e.Code == SegvAccErr:
		code = "protection"
	}
	return fmt.Sprintf("%s at %v: %s", name, e.Addr, code)
}
