// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package watch

import (
	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/bpf"
)

// traced is what the filters answer. Which filter it was does not matter.
const traced = unix.SECCOMP_RET_TRACE

// uffdioType is the type in the requests of userfaultfd, bits 8 to 15.
const uffdioType = 0xaa

// kind says which calls a filter reports.
type kind uint8

const (
	// kindBase: those that make a descriptor, and userfaultfd's requests.
	kindBase kind = iota
	// kindBlock: those that are made on descriptors of a block of numbers.
	kindBlock
	// kindHolder: those by which who has a descriptor may pass it on, or lose
	// it together with others.
	kindHolder
	// kindReceiver: those by which descriptors of others come.
	kindReceiver
)

// filter is one that is in force in a process. It is immutable.
type filter struct {
	kind kind
	// first and size are of a kindBlock: a power of two of numbers, at a
	// multiple of it.
	first, size uint32
}

// covers reports whether the filter reports what is done with a descriptor.
func (f *filter) covers(fd int) bool {
	return f.kind == kindBlock && uint32(fd)&^(f.size-1) == f.first
}

// block returns a filter for a descriptor where there are n for others. Each is
// for twice as many numbers as the one before, so that a few are enough for a
// process that makes new descriptors again and again.
func block(fd, n int) filter {
	size := uint32(1) << min(n, 30)
	return filter{kind: kindBlock, first: uint32(fd) &^ (size - 1), size: size}
}

// program returns what the kernel runs.
func (f *filter) program() []unix.SockFilter {
	var p bpf.Program
	p.Load(bpf.OffArch)
	p.JumpUnless(nativeArch, "allow")
	p.Load(bpf.OffNR)
	if x32 != 0 {
		p.JumpAtLeast(x32, "allow")
	}
	switch f.kind {
	case kindBase:
		p.RetIf(unix.SYS_USERFAULTFD, traced)
		p.RetIf(unix.SYS_PIDFD_GETFD, traced)
		p.JumpUnless(unix.SYS_IOCTL, "allow")
		p.Load(bpf.OffArg(1))
		p.And(0xff00)
		p.RetIf(uffdioType<<8, traced)
	case kindBlock:
		f.blockProgram(&p)
	case kindHolder:
		p.RetIf(unix.SYS_SENDMSG, traced)
		p.RetIf(unix.SYS_SENDMMSG, traced)
		p.RetIf(unix.SYS_CLOSE_RANGE, traced)
	case kindReceiver:
		p.RetIf(unix.SYS_RECVMSG, traced)
		p.RetIf(unix.SYS_RECVMMSG, traced)
	}
	p.Label("allow")
	p.Ret(unix.SECCOMP_RET_ALLOW)
	return p.Link()
}

// blockProgram reports calls whose first argument is in the block, or for those
// that put a descriptor in the place of another, whose second is.
func (f *filter) blockProgram(p *bpf.Program) {
	for _, nr := range onDescriptor {
		p.JumpIf(nr, "first")
	}
	for _, nr := range overDescriptor {
		p.JumpIf(nr, "either")
	}
	p.Ret(unix.SECCOMP_RET_ALLOW)
	p.Label("either")
	p.Load(bpf.OffArg(1))
	p.And(^(f.size - 1))
	p.RetIf(f.first, traced)
	p.Label("first")
	p.Load(bpf.OffArg(0))
	p.And(^(f.size - 1))
	p.RetIf(f.first, traced)
}

// onDescriptor are the calls on a descriptor. A userfaultfd cannot be written,
// and poll(2) and its like tell nothing that a read does not.
var onDescriptor = []uint32{
	unix.SYS_READ, unix.SYS_READV, unix.SYS_PREAD64, unix.SYS_PREADV, unix.SYS_PREADV2,
	unix.SYS_IOCTL, unix.SYS_CLOSE, unix.SYS_DUP, unix.SYS_FCNTL,
}
