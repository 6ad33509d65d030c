// SPDX-License-Identifier: Apache-2.0

//go:build linux

package inject

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// insnLen is the length of the system call instruction.
	insnLen = 4
	// hidesRestart says that the kernel rewinds an interrupted system call
	// before it reports the stop, so that the registers do not tell: pc is
	// at the instruction, x0 holds the first argument again, and whether the
	// call is to be restarted, continued through restart_syscall(2) or
	// ended with EINTR is known to the kernel alone.
	hidesRestart = true

	modeMask = 0x1f // of pstate: the execution mode, 0 for 64-bit user code
	stepFlag = 1 << 21
	noCall   = -1
)

// insn is the system call instruction, svc #0.
var insn = [insnLen]byte{0x01, 0x00, 0x00, 0xd4}

func foreign(r *regs) bool { return r.Pstate&modeMask != 0 }

func pc(r *regs) uintptr { return uintptr(r.Pc) }

// inCall is never known on arm64 from the registers; see hidesRestart.
func inCall(*regs) bool { return false }

// prepare makes r those of a thread about to execute the system call
// instruction at pc.
func prepare(r *regs, pc, nr uintptr, args *[6]uintptr) {
	r.Pc = uint64(pc)
	r.Regs[8] = uint64(nr)
	r.Pstate &^= stepFlag
	for i, a := range args {
		r.Regs[i] = uint64(a)
	}
}

// prepareBlob makes r those of a thread about to run the agent's code.
func prepareBlob(r *regs, code, area uintptr) {
	*r = regs{Pc: uint64(code)}
	r.Regs[19] = uint64(area)
}

// result returns what the last system call left.
func result(r *regs) uintptr { return uintptr(r.Regs[0]) }

func setResult(r *regs, v uintptr) { r.Regs[0] = uint64(v) }

// rolledBack reports whether the result is what a call cancelled by a
// filter's RET_TRAP leaves: the register as before the instruction.
func rolledBack(r *regs, _ uintptr, args *[6]uintptr) bool { return r.Regs[0] == uint64(args[0]) }

// callAt returns the number and arguments of the call that the thread is
// about to perform, from the registers of a system-call-entry or seccomp
// stop. The kernel keeps the number apart from x8.
func callAt(tid int, r *regs) (nr uintptr, args [6]uintptr, err error) {
	var n int32
	if err := regset32(unix.PTRACE_GETREGSET, tid, unix.NT_ARM_SYSTEM_CALL, &n); err != nil {
		return 0, args, fmt.Errorf("read system call number of thread %d: %w", tid, err)
	}
	for i := range args {
		args[i] = uintptr(r.Regs[i])
	}
	return uintptr(n), args, nil
}

// cancelCall makes the kernel skip the call that the thread is about to
// perform.
func cancelCall(tid int, _ *regs) error {
	n := int32(noCall)
	if err := regset32(unix.PTRACE_SETREGSET, tid, unix.NT_ARM_SYSTEM_CALL, &n); err != nil {
		return fmt.Errorf("cancel system call of thread %d: %w", tid, err)
	}
	return nil
}

// atEntry makes r, taken after cancelCall, those of the entry stop again.
// x7 is taken from after the cancelled call too: at a system call stop the
// kernel shows the direction in it.
func atEntry(r *regs, nr uintptr, args *[6]uintptr) {
	r.Regs[8] = uint64(nr)
	for i, a := range args {
		r.Regs[i] = uint64(a)
	}
}

// writeEntry sets number and arguments of the call at an entry stop.
func writeEntry(tid int, r *regs, nr uintptr) error {
	if err := setRegs(tid, r); err != nil {
		return err
	}
	n := int32(nr)
	if err := regset32(unix.PTRACE_SETREGSET, tid, unix.NT_ARM_SYSTEM_CALL, &n); err != nil {
		return fmt.Errorf("write system call number of thread %d: %w", tid, err)
	}
	return nil
}

// forgetCall keeps the kernel from restarting the call that just ended.
func forgetCall(tid int, _ *regs) error {
	n := int32(noCall)
	if err := regset32(unix.PTRACE_SETREGSET, tid, unix.NT_ARM_SYSTEM_CALL, &n); err != nil {
		return fmt.Errorf("end system call of thread %d: %w", tid, err)
	}
	return nil
}

// keepWaiting has nothing to work on: see inCall. A call that ends with
// EINTR after a stop ends so here too, as it does after SIGSTOP and SIGCONT.
func keepWaiting(*regs) {}

// advance goes past the instruction of a call.
func advance(r *regs) { r.Pc += insnLen }

// restoreCall makes r those of the end of another call.
func restoreCall(r *regs, nr uintptr, args *[6]uintptr, ret uintptr) {
	atEntry(r, nr, args)
	r.Regs[0] = uint64(ret)
}

func registers(r *regs) Registers {
	return Registers{PC: uintptr(r.Pc), SP: uintptr(r.Sp)}
}

// refusedCall reads a call that was rolled back: all is as before it.
func refusedCall(r *regs) (nr uintptr, args [6]uintptr) {
	for i := range args {
		args[i] = uintptr(r.Regs[i])
	}
	return uintptr(r.Regs[8]), args
}

// skipCall ends the call that a thread is about to make with a result.
func skipCall(tid int, r *regs, ret uintptr) error {
	if err := cancelCall(tid, r); err != nil {
		return err
	}
	setResult(r, ret)
	return setRegs(tid, r)
}
