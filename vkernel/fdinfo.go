// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"fmt"

	"github.com/faultline-go/faultline/uffd/uapi"
)

// Fdinfo returns the lines that /proc/PID/fdinfo/N has for a descriptor, "" if
// fd is none.
func (p *Process) Fdinfo(fd int) string {
	f := p.file(fd)
	if f == nil {
		return ""
	}
	defer f.put()
	if f.uffd == nil {
		return ""
	}
	return p.k.profile.fdinfo(f.uffd)
}

func (u *uffd) counts() (unread, total int) {
	u.faults.enter()
	defer u.faults.leave()
	return u.faults.unread, u.faults.total
}

func fdinfoLinux618(u *uffd) string {
	unread, total := u.counts()
	ioctls := uapi.UFFD_API_IOCTLS | uapi.UFFD_API_RANGE_IOCTLS
	return fmt.Sprintf("pending:\t%d\ntotal:\t%d\nAPI:\t%x:%x:%x\n", unread, total, uapi.UFFD_API, u.state.Load(), uint64(ioctls))
}
