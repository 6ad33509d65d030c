// SPDX-License-Identifier: Apache-2.0

package uffd

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

func rangeArg(r mem.Range) uapi.Range {
	return uapi.Range{Start: uint64(r.Start), Len: r.Len()}
}

// Register makes faults of r messages, and returns the ioctls that resolve
// them. Holes in r are skipped. It changes all of r or, but for ENOMEM,
// nothing: EBUSY if a part belongs to another descriptor, EINVAL if a part is
// unsuitable, EPERM if a part can never be written, ENOMEM if the process is
// gone.
func (f *FD) Register(r mem.Range, mode uapi.RegisterMode) (uapi.Ioctls, syscall.Errno) {
	arg := uapi.Register{Range: rangeArg(r), Mode: mode}
	errno := ioctl(f, uapi.UFFDIO_REGISTER, &arg)
	if errno != 0 {
		return 0, errno
	}
	return arg.Ioctls, 0
}

// Unregister undoes Register for the mappings in r; it is no error if they
// are not registered. It wakes threads that wait for missing pages, but not
// those that wait for a write protection: wake r too if there may be any.
func (f *FD) Unregister(r mem.Range) syscall.Errno {
	arg := rangeArg(r)
	return ioctl(f, uapi.UFFDIO_UNREGISTER, &arg)
}

// Wake lets the threads that wait in r try again. Nothing needs to be mapped
// there. With huge pages r must cover them whole.
func (f *FD) Wake(r mem.Range) syscall.Errno {
	arg := rangeArg(r)
	return ioctl(f, uapi.UFFDIO_WAKE, &arg)
}
