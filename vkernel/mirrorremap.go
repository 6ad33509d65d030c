// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
)

// Remappable returns the error of an mremap(2) with these arguments that the
// mirror can know, and changes nothing.
func (p *Process) Remappable(a mem.Addr, oldLen, newLen uint64, flags int, to mem.Addr) syscall.Errno {
	const mask = mem.PageSize - 1
	m := remapping{as: p.as.Load(), flags: flags, to: to,
		addr: a, oldLen: (oldLen + mask) &^ mask, newLen: (newLen + mask) &^ mask}
	if errno := m.check(); errno != 0 {
		return errno
	}
	m.as.mu.RLock()
	defer m.as.mu.RUnlock()
	v := m.as.vmas.find(a)
	switch {
	case v == nil || v.start > a:
		return EFAULT
	case m.oldLen == 0 && !v.shared() && v.flags&vmMayShare == 0:
		return EINVAL
	case flags&(MremapFixed|MremapDontUnmap) == 0 && m.oldLen >= m.newLen:
		if m.oldLen > m.newLen && !m.tailFits() {
			return EINVAL
		}
		return 0 // it shrinks, over as many as there are
	case m.spans(v):
		return EFAULT
	}
	return 0
}
