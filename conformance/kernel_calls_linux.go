// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package conformance

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/conformance/internal/puppet"
)

// callNumbers has the calls that are system calls with the same arguments.
var callNumbers = map[Call]uint64{
	Mmap: unix.SYS_MMAP, Munmap: unix.SYS_MUNMAP, Mprotect: unix.SYS_MPROTECT, Mremap: unix.SYS_MREMAP,
	Madvise: unix.SYS_MADVISE, Mincore: unix.SYS_MINCORE, Brk: unix.SYS_BRK,
	Mlock: unix.SYS_MLOCK, Mlock2: unix.SYS_MLOCK2, Mlockall: unix.SYS_MLOCKALL, Munlock: unix.SYS_MUNLOCK, Munlockall: unix.SYS_MUNLOCKALL,
	Ftruncate: unix.SYS_FTRUNCATE, Fallocate: unix.SYS_FALLOCATE,
	Userfaultfd: unix.SYS_USERFAULTFD, Ioctl: unix.SYS_IOCTL,
	Read: unix.SYS_READ, Pread: unix.SYS_PREAD64, Readv: unix.SYS_READV, Write: unix.SYS_WRITE, Pwrite: unix.SYS_PWRITE64, Lseek: unix.SYS_LSEEK,
	EpollCreate: unix.SYS_EPOLL_CREATE1, EpollCtl: unix.SYS_EPOLL_CTL,
	Close: unix.SYS_CLOSE, Dup: unix.SYS_DUP, Fcntl: unix.SYS_FCNTL,
	Pipe: unix.SYS_PIPE2,
}

func (t *kernelTask) Start(call Call, a [6]uint64) {
	if call.Access() {
		ops := [...]puppet.Op{puppet.Load8, puppet.Load64, puppet.Store8, puppet.Store64, puppet.CAS64, puppet.Copy}
		t.Thread.Start(ops[call], 0, a)
		return
	}
	nr, args := t.translate(call, a)
	t.Thread.Start(puppet.Syscall, nr, args)
}

// translate makes the system call of a call. Structs that it takes and the
// caller does not give go to memory of the thread's own.
func (t *kernelTask) translate(call Call, a [6]uint64) (nr uint64, args [6]uint64) {
	const atFDCWD = 1<<64 - 100 // AT_FDCWD
	open := func(path string, flags uint64) (uint64, [6]uint64) {
		return unix.SYS_OPENAT, [6]uint64{atFDCWD, t.Text(append([]byte(path), 0)), flags}
	}
	switch call {
	case MemfdCreate:
		return unix.SYS_MEMFD_CREATE, [6]uint64{t.Text([]byte("case\x00")), a[0]}
	case OpenDevice:
		return open("/dev/userfaultfd", a[0])
	case OpenPagemap:
		return open("/proc/self/pagemap", 0)
	case OpenSelfMem:
		return open("/proc/self/mem", a[0])
	case OpenFile:
		return open(t.disk, unix.O_TMPFILE|unix.O_RDWR)
	case Reopen:
		return open(fmt.Sprintf("/proc/self/fd/%d", a[0]), a[1])
	case Poll:
		return unix.SYS_PPOLL, [6]uint64{a[0], a[1], t.timeout(int64(a[2]))}
	case Select:
		return unix.SYS_PSELECT6, [6]uint64{a[0], a[1], a[2], a[3], t.timeout(0)}
	case Preadv2:
		// The offset is two words to the system call.
		return unix.SYS_PREADV2, [6]uint64{a[0], a[1], a[2], a[3], 0, a[4]}
	case EpollWait:
		return unix.SYS_EPOLL_PWAIT, [6]uint64{a[0], a[1], a[2], a[3]}
	case SetNofile:
		return t.setLimit(unix.RLIMIT_NOFILE, a[0])
	case SetStack:
		return t.setLimit(unix.RLIMIT_STACK, a[0])
	case ProcessVMRead:
		iov := t.Text(words(a[1], a[3], a[2], a[3]))
		return unix.SYS_PROCESS_VM_READV, [6]uint64{a[0], iov, 1, iov + 16, 1}
	}
	return callNumbers[call], a
}

// setLimit sets a resource's limit. The hard one stays as it is, which is as ours.
func (t *kernelTask) setLimit(resource int, n uint64) (nr uint64, args [6]uint64) {
	lim := unix.Rlimit{Max: n}
	_ = unix.Getrlimit(resource, &lim)
	return unix.SYS_PRLIMIT64, [6]uint64{0, uint64(resource), t.Text(words(n, lim.Max))}
}

// timeout returns the address of a timespec, or zero for no timeout.
func (t *kernelTask) timeout(millis int64) uint64 {
	if millis < 0 {
		return 0
	}
	return t.Text(words(uint64(millis/1000), uint64(millis%1000)*1e6))
}
