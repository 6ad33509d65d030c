// SPDX-License-Identifier: Apache-2.0

//go:build linux

package provider

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// callLen is the length of the instruction that makes a call, in bytes.
const callLen = 2

// openCall is a call that opens a file, with the argument that has its flags.
type openCall struct {
	nr    uintptr
	path  int
	flags int
}

// sysVfork is vfork(2).
const sysVfork = unix.SYS_VFORK

// sysPoll is poll(2).
const sysPoll = unix.SYS_POLL

var (
	openCalls = []openCall{{unix.SYS_OPENAT, 1, 2}, {unix.SYS_OPEN, 0, 1}}
	pollCalls = []uintptr{unix.SYS_POLL, unix.SYS_PPOLL, unix.SYS_SELECT, unix.SYS_PSELECT6}
	// epollWaits are the calls of epoll_wait(2).
	epollWaits = []uintptr{unix.SYS_EPOLL_WAIT, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2}
	readlinks  = []uintptr{unix.SYS_READLINK}
	dup2       = []uintptr{unix.SYS_DUP2}
	forkCalls  = []uintptr{unix.SYS_CLONE, unix.SYS_CLONE3, unix.SYS_FORK}
)

// userEnd is where the memory that a program can have ends, as far as the kernel
// looks before it looks for memory.
const userEnd = 1<<47 - 4096

// epollEventSize is the length of struct epoll_event, which is packed here.
const epollEventSize = 12

// ucontext is where the context of a signal is from the stack pointer on when its
// handler has ended: the address of the handler's return, which stands before it, is gone by then.
const ucontext = 0

// archRareCalls are those of rareCalls that not every architecture has.
var archRareCalls = []uintptr{unix.SYS_MODIFY_LDT, unix.SYS_USTAT}
