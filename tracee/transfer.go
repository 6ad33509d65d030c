// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/procmem"
)

// transfers are the calls that may end with a part of what they were to move when
// their thread is stopped. All others that wait are made again by the kernel, or
// have nothing to show for it.
var transfers = map[uintptr]bool{
	unix.SYS_READ: true, unix.SYS_READV: true, unix.SYS_PREAD64: true, unix.SYS_PREADV: true, unix.SYS_PREADV2: true,
	unix.SYS_WRITE: true, unix.SYS_WRITEV: true, unix.SYS_PWRITE64: true, unix.SYS_PWRITEV: true, unix.SYS_PWRITEV2: true,
	unix.SYS_RECVFROM: true, unix.SYS_RECVMSG: true, unix.SYS_RECVMMSG: true,
	unix.SYS_SENDTO: true, unix.SYS_SENDMSG: true, unix.SYS_SENDMMSG: true,
	unix.SYS_SPLICE: true, unix.SYS_VMSPLICE: true, unix.SYS_TEE: true,
	unix.SYS_SENDFILE: true, unix.SYS_COPY_FILE_RANGE: true, unix.SYS_GETRANDOM: true,
}

// reluctance is how late a thread is chosen to be stopped: after those of a lower one.
type reluctance uint8

const (
	unseen    reluctance = iota // it goes on as if nothing had been
	cutShort                    // it may be in the middle of a transfer
	notBefore                   // it is in vfork(2), and stops only when its child is gone its way
	reluctances
)

// reluctance tells where a thread is, as well as it is known. Of a thread that runs
// it is not.
func (th *Thread) reluctance() reluctance {
	if th.vforking {
		return notBefore
	}
	if nr, ok := procmem.Call(th.proc.pid, th.tid); ok && transfers[nr] {
		return cutShort
	}
	return unseen
}
