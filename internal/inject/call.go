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

// Stop is a thread that is stopped, with its registers as they were read.
type Stop struct {
	tid int
	r   regs
}

// Read reads the registers of a stopped thread. The error matches ErrForeign
// for a thread in 32-bit mode.
func (s *Stop) Read(tid int) error {
	s.tid = tid
	return getRegs(tid, &s.r)
}

// Call returns the call that the thread is about to make, at a seccomp stop. ok
// is false for one that has another ABI's number.
func (s *Stop) Call() (nr uintptr, args [6]uintptr, ok bool) {
	nr, args, err := callAt(s.tid, &s.r)
	return nr, args, err == nil && (x32 == 0 || nr&uintptr(x32) == 0)
}

// Refused returns the call that a filter has answered by RET_TRAP, at the stop
// of the signal.
func (s *Stop) Refused() (nr uintptr, args [6]uintptr) { return refusedCall(&s.r) }

// Registers returns those that tell what an instruction does to memory.
func (s *Stop) Registers() Registers { return registers(&s.r) }

// Skip lets a thread at a seccomp stop go on as if its call had returned ret.
func (s *Stop) Skip(ret uintptr) error { return skipCall(s.tid, &s.r, ret) }

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
// have made the original one, which returned ret.
func Restore(tid int, nr uintptr, args [6]uintptr, ret uintptr) error {
	var r regs
	if err := getRegs(tid, &r); err != nil {
		return err
	}
	restoreCall(&r, nr, &args, ret)
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

// Finish makes a thread that is about to make its call anew, by Again, go on as if
// the call had returned ret. The thread is at the stop of a signal.
func Finish(tid int, ret uintptr) error {
	var r regs
	if err := getRegs(tid, &r); err != nil {
		return err
	}
	advance(&r)
	setResult(&r, ret)
	return setRegs(tid, &r)
}

// Registers are those that tell what an instruction does to memory.
type Registers struct {
	PC uintptr
	SP uintptr
	// SI and DI are the string registers of amd64, 0 elsewhere.
	SI, DI uintptr
}

// Signal is what is known of a signal that is about to be delivered.
type Signal struct {
	Signo unix.Signal
	Code  int      // positive if the kernel made it
	Addr  mem.Addr // of a fault
}

// SysSeccomp is the code of a SIGSYS that a filter has sent; sigaction(2).
const SysSeccomp = 1

// ReadSignal reads the signal of a thread at its delivery stop.
func ReadSignal(tid int) (Signal, error) {
	si, err := getSiginfo(tid)
	if err != nil {
		return Signal{}, err
	}
	return Signal{Signo: unix.Signal(si.signo), Code: int(si.code), Addr: mem.Addr(uint64(uint32(si.pid)) | uint64(uint32(si.uid))<<32)}, nil
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

// What signals do that nobody catches, if it is not to end the process; see
// signal(7).
const (
	doNothing = sigset(1)<<(unix.SIGCHLD-1) | 1<<(unix.SIGCONT-1) | 1<<(unix.SIGURG-1) | 1<<(unix.SIGWINCH-1)
	doStop    = sigset(1)<<(unix.SIGSTOP-1) | 1<<(unix.SIGTSTP-1) | 1<<(unix.SIGTTIN-1) | 1<<(unix.SIGTTOU-1)
)

// Deliverable reports whether a thread has a signal waiting that it does not
// block, and that does something; fatal says that one of those ends the process.
// One that does nothing waits all the same for a thread that is traced.
func Deliverable(tid int) (any, fatal bool, err error) {
	st, err := readStatus(tid)
	if err != nil {
		return false, false, err
	}
	m, err := getMask(tid)
	if err != nil {
		return false, false, fmt.Errorf("signals of thread %d: %w", tid, err)
	}
	act := st.pending &^ (m | st.ignored | doNothing&^st.caught)
	// The first process of a namespace is not ended so.
	first := len(st.nspid) > 0 && st.nspid[len(st.nspid)-1] == "1"
	return act != 0, act&^(st.caught|doStop) != 0 && !first, nil
}

// Block adds sig to the signal mask of a thread that is stopped.
func Block(tid int, sig unix.Signal) error {
	m, err := getMask(tid)
	if err != nil {
		return err
	}
	return setMask(tid, m|bit(sig))
}
