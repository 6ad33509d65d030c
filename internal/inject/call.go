// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
)

// What follows changes the call of a stopped thread in place, without a
// session: one or two requests each. All errors match ErrGone if the thread is
// dead. For the tracer's thread only.

// Skip lets a thread at a seccomp stop go on as if its call had returned ret.
func Skip(tid int, ret uintptr) error {
	var r regs
	if err := getRegs(tid, &r); err != nil {
		return err
	}
	if err := cancelCall(tid, &r); err != nil {
		return err
	}
	setResult(&r, ret)
	return setRegs(tid, &r)
}

// Return changes what a call returns, at its exit stop, or at the stop of the
// signal that a filter answered it with (SECCOMP_RET_TRAP).
func Return(tid int, ret uintptr) error {
	var r regs
	if err := getRegs(tid, &r); err != nil {
		return err
	}
	if err := forgetCall(tid, &r); err != nil {
		return err
	}
	setResult(&r, ret)
	return setRegs(tid, &r)
}

// Rewrite changes the call that a thread at a seccomp stop is about to make.
func Rewrite(tid int, nr uintptr, args [6]uintptr) error {
	var r regs
	if err := getRegs(tid, &r); err != nil {
		return err
	}
	atEntry(&r, nr, &args)
	return writeEntry(tid, &r, nr)
}

// Restore makes a thread at the exit stop of a call that was rewritten appear to
// have made the original one, with the result that it has, or ret if that is
// set.
func Restore(tid int, nr uintptr, args [6]uintptr, ret *uintptr) error {
	var r regs
	if err := getRegs(tid, &r); err != nil {
		return err
	}
	got := result(&r)
	if ret != nil {
		got = *ret
	}
	restoreCall(&r, nr, &args, got)
	return setRegs(tid, &r)
}

// Again makes a thread at the exit stop of a call make it once more, which it
// had made with nr and args.
func Again(tid int, nr uintptr, args [6]uintptr) error {
	var r regs
	if err := getRegs(tid, &r); err != nil {
		return err
	}
	if err := forgetCall(tid, &r); err != nil {
		return err
	}
	prepare(&r, pc(&r)-insnLen, nr, &args)
	return setRegs(tid, &r)
}

// Registers are those that tell what an instruction does to memory.
type Registers struct {
	PC uintptr
	SP uintptr
	// SI and DI are the string registers of amd64, 0 elsewhere.
	SI, DI uintptr
	// Call is the number of the call that RET_TRAP has refused.
	Call uintptr
}

// ReadRegisters reads them.
func ReadRegisters(tid int) (Registers, error) {
	var r regs
	if err := getRegs(tid, &r); err != nil {
		return Registers{}, err
	}
	return registers(&r), nil
}

// RefusedCall returns the call that a filter has answered by RET_TRAP, at the
// stop of the signal.
func RefusedCall(tid int) (nr uintptr, args [6]uintptr, err error) {
	var r regs
	if err := getRegs(tid, &r); err != nil {
		return 0, args, err
	}
	nr, args = refusedCall(&r)
	return nr, args, nil
}

// Signal is what is known of a signal that is about to be delivered.
type Signal struct {
	Signo unix.Signal
	Code  int      // positive if the kernel made it
	Addr  mem.Addr // of a fault
	Arch  uint32   // of a call that was refused
}

// Kernel signal codes, sigaction(2).
const (
	SegvMapErr = 1
	SegvAccErr = 2
	BusAdrErr  = 2
	SysSeccomp = 1
)

// ReadSignal reads the signal of a thread at its delivery stop.
func ReadSignal(tid int) (Signal, error) {
	si, err := getSiginfo(tid)
	if err != nil {
		return Signal{}, err
	}
	sig := Signal{Signo: unix.Signal(si.signo), Code: int(si.code), Addr: mem.Addr(uint64(uint32(si.pid)) | uint64(uint32(si.uid))<<32)}
	if sig.Signo == unix.SIGSYS {
		sig.Arch = si.arch()
	}
	return sig, nil
}

// WriteSignal changes it.
func WriteSignal(tid int, s Signal) error {
	si := siginfo{signo: int32(s.Signo), code: int32(s.Code)}
	si.pid, si.uid = int32(uint32(s.Addr)), int32(uint32(s.Addr>>32))
	return setSiginfo(tid, &si)
}

// Blocked reports whether a thread that is stopped blocks sig.
func Blocked(tid int, sig unix.Signal) (bool, error) {
	m, err := getMask(tid)
	return m&bit(sig) != 0, err
}

// Unblock takes sig out of the signal mask of a thread that is stopped.
func Unblock(tid int, sig unix.Signal) error {
	m, err := getMask(tid)
	if err != nil {
		return err
	}
	return setMask(tid, m&^bit(sig))
}

// Deliverable reports whether a thread has a signal waiting that it does not
// block.
func Deliverable(tid int) (bool, error) {
	st, err := readStatus(tid)
	if err != nil {
		return false, err
	}
	m, err := getMask(tid)
	if err != nil {
		return false, fmt.Errorf("signals of thread %d: %w", tid, err)
	}
	return st.pending&^m != 0, nil
}

// Block adds sig to the signal mask of a thread that is stopped.
func Block(tid int, sig unix.Signal) error {
	m, err := getMask(tid)
	if err != nil {
		return err
	}
	return setMask(tid, m|bit(sig))
}
