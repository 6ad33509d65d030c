// SPDX-License-Identifier: Apache-2.0

//go:build linux

package provider

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// callLen is the length of the instruction that makes a call, in bytes.
const callLen = 4

// openCall is a call that opens a file, with the argument that has its flags.
type openCall struct {
	nr    uintptr
	path  int
	flags int
}

// sysVfork is a call that there is not.
const sysVfork = ^uintptr(0)

// sysPoll is a call that there is not.
const sysPoll = ^uintptr(0)

var (
	openCalls = []openCall{{unix.SYS_OPENAT, 1, 2}}
	pollCalls = []uintptr{unix.SYS_PPOLL, unix.SYS_PSELECT6}
	// epollWaits are the calls of epoll_wait(2).
	epollWaits = []uintptr{unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2}
	readlinks  []uintptr
	dup2       []uintptr
	forkCalls  = []uintptr{unix.SYS_CLONE, unix.SYS_CLONE3}
)

// userEnd is where the memory that a program can have ends, as far as the kernel
// looks before it looks for memory.
const userEnd = 1 << 48

// epollEventSize is the length of struct epoll_event.
const epollEventSize = 16

// ucontext is where the context of a signal is from the stack pointer on when its
// handler has ended: behind a siginfo_t.
const ucontext = 128

// archRareCalls are those of rareCalls that not every architecture has.
var archRareCalls []uintptr
