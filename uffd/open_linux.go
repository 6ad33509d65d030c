// SPDX-License-Identifier: Apache-2.0

package uffd

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/faultline-go/faultline/internal/sys"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// Device is the node from which a descriptor can be had without privilege
// other than to open it (since Linux 6.1).
const Device = "/dev/userfaultfd"

// Options of a new descriptor. It is close-on-exec in any case.
type Options struct {
	// NonBlock makes the file O_NONBLOCK, which Wait needs.
	NonBlock bool
	// UserModeOnly gives up faults inside system calls, which then fail with
	// EFAULT. In return the system call needs no privilege (since Linux 5.11).
	UserModeOnly bool
}

func (o Options) flags() int {
	flags := sys.Cloexec
	if o.NonBlock {
		flags |= sys.Nonblock
	}
	if o.UserModeOnly {
		flags |= uapi.UFFD_USER_MODE_ONLY
	}
	return flags
}

// Open makes a descriptor for the memory of this process, through Device or,
// if that fails, through the system call. If both do, the error is an
// *[OpenError] that says what would open each way.
func Open(o Options) (*FD, error) {
	f, device := OpenDevice(o)
	if device == nil {
		return f, nil
	}
	f, call := OpenSyscall(o)
	if call == nil {
		return f, nil
	}
	return nil, &OpenError{Device: device, Syscall: call}
}

// OpenDevice is Open through Device alone. The error is a *[GateError].
func OpenDevice(o Options) (*FD, error) {
	dev, err := sys.OpenReadOnly(Device)
	if err != nil {
		return nil, &GateError{Gate: Device, Err: err, Remedy: deviceRemedy(sys.Errno(err))}
	}
	defer sys.CloseRaw(dev)
	raw, err := sys.IoctlValue(dev, uapi.USERFAULTFD_IOC_NEW, o.flags())
	if err != nil {
		return nil, &GateError{Gate: Device, Err: fmt.Errorf("USERFAULTFD_IOC_NEW: %w", err),
			Remedy: commonRemedy(sys.Errno(err))}
	}
	return Take(raw), nil
}

// OpenSyscall is Open through the system call alone. The error is a
// *[GateError].
func OpenSyscall(o Options) (*FD, error) {
	raw, err := sys.Userfaultfd(o.flags())
	if err != nil {
		return nil, &GateError{Gate: "userfaultfd(2)", Err: err, Remedy: syscallRemedy(sys.Errno(err))}
	}
	return Take(raw), nil
}

// OpenError says why neither way to a descriptor is open.
type OpenError struct {
	Device, Syscall error // each a *GateError
}

func (e *OpenError) Error() string {
	return fmt.Sprintf("no userfaultfd to be had: %v; %v", e.Device, e.Syscall)
}

// Unwrap returns both reasons.
func (e *OpenError) Unwrap() []error { return []error{e.Device, e.Syscall} }

// GateError says why one way to a descriptor is closed.
type GateError struct {
	Gate   string // "/dev/userfaultfd" or "userfaultfd(2)"
	Err    error
	Remedy string // what the user can do
}

func (e *GateError) Error() string { return fmt.Sprintf("%s: %v (%s)", e.Gate, e.Err, e.Remedy) }

// Unwrap returns the kernel's error.
func (e *GateError) Unwrap() error { return e.Err }

// Is makes an absent device or system call match [ErrNotSupported].
func (e *GateError) Is(target error) bool {
	return target == ErrNotSupported && (errors.Is(e.Err, syscall.ENOSYS) || errors.Is(e.Err, syscall.ENOENT))
}

func deviceRemedy(errno syscall.Errno) string {
	switch errno {
	case syscall.EACCES:
		return "run as root, or let this user's group open it: chgrp GROUP " + Device + " && chmod 0660 " + Device
	case syscall.EPERM:
		return "the container's device rules forbid it: start the container with --device " + Device
	case syscall.ENOENT, syscall.ENXIO, syscall.ENODEV:
		return "needs Linux 6.1 or newer built with CONFIG_USERFAULTFD, and in a container --device " + Device
	}
	return commonRemedy(errno)
}

func syscallRemedy(errno syscall.Errno) string {
	switch errno {
	case syscall.EPERM:
		return "run as root, grant CAP_SYS_PTRACE, or set sysctl vm.unprivileged_userfaultfd=1; " +
			"if that is so already, a seccomp profile (of docker or systemd) refuses the call: allow userfaultfd in it"
	case syscall.ENOSYS:
		return "the kernel is built without CONFIG_USERFAULTFD, or a sandbox hides the system call"
	}
	return commonRemedy(errno)
}

func commonRemedy(errno syscall.Errno) string {
	switch errno {
	case syscall.EMFILE, syscall.ENFILE:
		return "raise the limit of open files: ulimit -n"
	case syscall.ENOMEM:
		return "the kernel is out of memory"
	case syscall.EINVAL:
		return "user-mode-only descriptors need Linux 5.11 or newer"
	}
	return "see userfaultfd(2)"
}
