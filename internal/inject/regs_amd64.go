// SPDX-License-Identifier: Apache-2.0

//go:build linux

package inject

import "golang.org/x/sys/unix"

const (
	// insnLen is the length of the system call instruction.
	insnLen = 2
	// hidesRestart says that the kernel rewinds an interrupted system call
	// before it reports the stop, so that the registers do not tell.
	hidesRestart = false

	userCS64  = 0x33   // the code segment of 64-bit programs
	trapFlag  = 1 << 8 // of the flags register: single step
	enosysRet = ^uint64(unix.ENOSYS - 1)
)

// insn is the system call instruction.
var insn = [insnLen]byte{0x0f, 0x05}

func foreign(r *regs) bool { return r.Cs != userCS64 }

func pc(r *regs) uintptr { return uintptr(r.Rip) }

// inCall reports whether r was taken inside a system call, between its
// instruction and the return to the program.
func inCall(r *regs) bool { return int64(r.Orig_rax) >= 0 }

// prepare makes r those of a thread about to execute the system call
// instruction at pc. Without orig_rax = -1 the kernel would take a result
// that looks like a restart code for an interrupted call and move rip back.
func prepare(r *regs, pc, nr uintptr, args *[6]uintptr) {
	r.Rip = uint64(pc)
	r.Rax = uint64(nr)
	r.Orig_rax = ^uint64(0)
	r.Eflags &^= trapFlag
	r.Rdi, r.Rsi, r.Rdx = uint64(args[0]), uint64(args[1]), uint64(args[2])
	r.R10, r.R8, r.R9 = uint64(args[3]), uint64(args[4]), uint64(args[5])
}

// prepareBlob makes r those of a thread about to run the agent's code.
func prepareBlob(r *regs, code, area uintptr) {
	*r = regs{
		Rip: uint64(code), Rbx: uint64(area), Orig_rax: ^uint64(0),
		Cs: r.Cs, Ss: r.Ss, Eflags: 0x202,
	}
}

// result returns what the last system call left.
func result(r *regs) uintptr { return uintptr(r.Rax) }

func setResult(r *regs, v uintptr) {
	r.Rax = uint64(v)
	r.Orig_rax = ^uint64(0)
}

// rolledBack reports whether the result is what a call cancelled by a
// filter's RET_TRAP leaves: the register as before the instruction.
func rolledBack(r *regs, nr uintptr, _ *[6]uintptr) bool { return r.Rax == uint64(nr) }

// callAt returns the number and arguments of the call that the thread is
// about to perform, from the registers of a system-call-entry or seccomp
// stop.
func callAt(_ int, r *regs) (nr uintptr, args [6]uintptr, err error) {
	return uintptr(r.Orig_rax), [6]uintptr{uintptr(r.Rdi), uintptr(r.Rsi), uintptr(r.Rdx),
		uintptr(r.R10), uintptr(r.R8), uintptr(r.R9)}, nil
}

// cancelCall makes the kernel skip the call that the thread is about to
// perform.
func cancelCall(tid int, r *regs) error {
	c := *r
	c.Orig_rax = ^uint64(0)
	return setRegs(tid, &c)
}

// atEntry makes r, taken after cancelCall, those of the entry stop again.
func atEntry(r *regs, nr uintptr, args *[6]uintptr) {
	r.Orig_rax, r.Rax = uint64(nr), enosysRet
	r.Rdi, r.Rsi, r.Rdx = uint64(args[0]), uint64(args[1]), uint64(args[2])
	r.R10, r.R8, r.R9 = uint64(args[3]), uint64(args[4]), uint64(args[5])
}

// writeEntry sets number and arguments of the call at an entry stop.
func writeEntry(tid int, r *regs, _ uintptr) error { return setRegs(tid, r) }

// forgetCall keeps the kernel from restarting the call that just ended.
func forgetCall(tid int, r *regs) error {
	r.Orig_rax = ^uint64(0)
	return setRegs(tid, r)
}

// keepWaiting turns the EINTR of a call that the kernel never restarts by
// itself, but that ended only because we stopped the thread, into "restart
// unless a handler runs". The program then sees what it would have seen
// without the stop. A relative timeout starts anew: the kernel does not say
// how much of it was left.
func keepWaiting(r *regs) {
	const erestartnohand = 514
	if inCall(r) && r.Rax == ^uint64(unix.EINTR-1) && waits[uintptr(r.Orig_rax)] {
		r.Rax = ^uint64(erestartnohand - 1)
	}
}

// waits lists calls that end with EINTR after a stop (signal(7), "Interruption
// of system calls and library functions by stop signals", and sockets with
// a timeout) and that have done nothing by then, so that they may be begun
// again.
var waits = map[uintptr]bool{
	unix.SYS_EPOLL_WAIT: true, unix.SYS_EPOLL_PWAIT: true, unix.SYS_EPOLL_PWAIT2: true,
	unix.SYS_SEMOP: true, unix.SYS_SEMTIMEDOP: true, unix.SYS_RT_SIGTIMEDWAIT: true,
	unix.SYS_IO_GETEVENTS: true, unix.SYS_IO_PGETEVENTS: true, unix.SYS_IO_URING_ENTER: true,
	unix.SYS_MSGRCV: true, unix.SYS_MSGSND: true,
	unix.SYS_ACCEPT: true, unix.SYS_ACCEPT4: true, unix.SYS_CONNECT: true,
	unix.SYS_RECVFROM: true, unix.SYS_RECVMSG: true, unix.SYS_RECVMMSG: true,
	unix.SYS_SENDTO: true, unix.SYS_SENDMSG: true, unix.SYS_SENDMMSG: true,
	unix.SYS_READ: true, unix.SYS_READV: true, unix.SYS_WRITE: true, unix.SYS_WRITEV: true,
}

// advance goes past the instruction of a call.
func advance(r *regs) { r.Rip += insnLen }

// restoreCall makes r those of the end of another call.
func restoreCall(r *regs, nr uintptr, args *[6]uintptr, ret uintptr) {
	atEntry(r, nr, args)
	r.Rax = uint64(ret)
}

func registers(r *regs) Registers {
	return Registers{PC: uintptr(r.Rip), SP: uintptr(r.Rsp), SI: uintptr(r.Rsi), DI: uintptr(r.Rdi)}
}

// refusedCall reads a call that was rolled back: all is as before it.
func refusedCall(r *regs) (nr uintptr, args [6]uintptr) {
	return uintptr(r.Rax), [6]uintptr{uintptr(r.Rdi), uintptr(r.Rsi), uintptr(r.Rdx),
		uintptr(r.R10), uintptr(r.R8), uintptr(r.R9)}
}

// skipCall ends the call that a thread is about to make with a result.
func skipCall(tid int, r *regs, ret uintptr) error {
	setResult(r, ret)
	return setRegs(tid, r)
}
