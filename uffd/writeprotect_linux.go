// SPDX-License-Identifier: Apache-2.0

package uffd

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// WriteProtect sets or lifts the write protection of r; lifting wakes (since
// Linux 5.7, on arm64 since 6.10). It stops with ENOENT at the first mapping
// that is not registered for it, having changed those before, and tells no
// count. Absent anonymous pages are skipped without WP_UNPOPULATED.
func (f *FD) WriteProtect(r mem.Range, mode uapi.WriteProtectMode) syscall.Errno {
	arg := uapi.WriteProtect{Range: rangeArg(r), Mode: mode}
	return ioctl(f, uapi.UFFDIO_WRITEPROTECT, &arg)
}
