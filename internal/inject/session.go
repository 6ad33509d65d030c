// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// ErrGone is matched when the thread is dead or dying, or was never
	// stopped. Its exit status is left for the tracer's wait.
	ErrGone = errors.New("thread is gone")

	// ErrBusy is matched when the thread is stopped where it cannot run
	// another system call: inside vfork(2), until the child has gone its own
	// way, and in exit. Nothing has been changed; take another thread.
	ErrBusy = errors.New("thread cannot run a system call now")

	// ErrForeign is matched for a thread in 32-bit mode.
	ErrForeign = errors.New("not a 64-bit thread of this architecture")

	// ErrFiltered is matched when the program's own seccomp rules forbid an
	// injected call in a way that would harm the program.
	ErrFiltered = errors.New("forbidden by the program's own seccomp filter")

	// ErrExec is matched when the program replaced itself under the session:
	// nothing is left to restore, and Status is the exec stop.
	ErrExec = errors.New("another thread has called exec")
)

// stopPlace says where in the kernel the thread was when it was borrowed.
type stopPlace int

const (
	placeStop   stopPlace = iota // PTRACE_EVENT_STOP: on its way to user mode
	placePoint                   // inside a call that will now come to its end
	placeSignal                  // a signal is being delivered
	placeEntry                   // before a system call, at the entry stop
	placeFilter                  // before a system call, at the seccomp stop
)

// Options are what the tracer must have set on the threads of the program.
const Options = unix.PTRACE_O_EXITKILL |
	unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACECLONE |
	unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACESECCOMP

// Session is a ptrace-stopped thread whose state is saved, so that it can run
// system calls for us. It is for the tracer's OS thread only.
//
// Between Open and Close the thread runs nothing but injected calls. Other
// threads of the program keep running.
type Session struct {
	tid    int
	place  stopPlace
	saved  regs    // what Close restores
	nr     uintptr // of the call that the thread was about to make
	args   [6]uintptr
	mask   sigset // the program's
	cur    sigset // in force now: mask, and nearly everything else
	insn   uintptr
	rseq   uintptr // address of the rseq_cs word, 0 if none was set
	rseqCS [8]byte
	info   siginfo // of the signal that was being delivered

	vehicle unix.Signal // see deliverAgain

	code    int     // the stop that the thread is in
	child   int     // thread id of the last task made by an injected clone
	parked  bool    // at a PTRACE_EVENT_STOP
	dirty   bool    // has run something since Open
	reenter bool    // the interrupted call must be begun again (arm64)
	skip    bool    // the call at the stop is not to be made
	skipRet uintptr // and returns this
	changed bool    // nr or args were changed by the caller
	newNR   uintptr
	newArgs [6]uintptr
	dead    error // why the session can do no more
	closed  bool

	noNewPrivs bool // InstallFilter had to set it
	suspended  bool // the program's filters are not in force until Close
}

// Open borrows the stopped thread tid. It accepts every ptrace stop but
// those of ErrBusy, and finds out by itself which one it is.
//
// The thread's signals are blocked until Close, so that none is delivered
// into an injected call. On failure the thread is as before, or gone.
func Open(tid int) (*Session, error) {
	s := &Session{tid: tid}
	if err := s.classify(); err != nil {
		return nil, err
	}
	if err := getRegs(tid, &s.saved); err != nil {
		return nil, err
	}
	st, err := readStatus(tid)
	if err != nil {
		return nil, err
	}
	if st.seccomp == unix.SECCOMP_MODE_STRICT {
		return nil, fmt.Errorf("thread %d is in seccomp strict mode, where any call kills: %w", tid, ErrFiltered)
	}
	if s.mask, err = getMask(tid); err != nil {
		return nil, err
	}
	if st.seccomp == unix.SECCOMP_MODE_FILTER {
		if err := s.suspendFilters(); err != nil {
			return nil, err
		}
	}
	if err := s.borrow(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.findInsn(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// suspend is the option by which the kernel suspends filters. A test sets another
// one, which is refused.
var suspend uintptr = unix.PTRACE_O_SUSPEND_SECCOMP

// suspendFilters takes the program's seccomp filters out of force for this thread
// and for the tasks that it makes meanwhile. What we do in its name is not the
// program's doing: a filter would refuse it, or kill.
//
// It needs CAP_SYS_ADMIN, and a tracer without a filter of its own. Where it is
// refused the filters apply.
func (s *Session) suspendFilters() error {
	err := ptrace(unix.PTRACE_SETOPTIONS, s.tid, 0, Options|suspend)
	switch {
	case err == nil:
		s.suspended = true
	case errors.Is(err, ErrGone):
		return err
	}
	return nil
}

// resumeFilters puts them in force again.
func (s *Session) resumeFilters() error {
	if !s.suspended {
		return nil
	}
	s.suspended = false
	return ptrace(unix.PTRACE_SETOPTIONS, s.tid, 0, Options)
}

// classify asks the kernel which stop the thread is in.
func (s *Session) classify() error {
	si, err := getSiginfo(s.tid)
	if err != nil {
		return err
	}
	s.code = int(si.code)
	switch event := s.code >> 8; {
	case si.code == int32(unix.SIGTRAP)|0x80:
		op, err := syscallOp(s.tid)
		if err != nil {
			return err
		}
		s.place = placePoint
		if op == unix.PTRACE_SYSCALL_INFO_ENTRY {
			s.place = placeEntry
		}
	case si.code <= 0 || event == 0:
		s.place, s.code, s.info = placeSignal, int(si.signo), si
	case event == unix.PTRACE_EVENT_STOP:
		s.place, s.parked = placeStop, true
	case event == unix.PTRACE_EVENT_SECCOMP:
		s.place = placeFilter
	case event == unix.PTRACE_EVENT_VFORK, event == unix.PTRACE_EVENT_EXIT:
		return fmt.Errorf("thread %d is inside vfork or exit: %w", s.tid, ErrBusy)
	default:
		s.place = placePoint
	}
	return nil
}

// borrow brings the thread to a stop on its way to user mode, the one place
// from which registers are taken over as they are and where the kernel
// decides about the restart of an interrupted call. There it saves what
// Close restores.
func (s *Session) borrow() error {
	s.cur = s.mask | ^faults
	if err := setMask(s.tid, s.cur); err != nil {
		return err
	}
	if err := s.leaveCall(); err != nil {
		return err
	}
	// A signal that was being delivered is dropped here, and made again by
	// Close. Put back into the queue it would come after others.
	if err := s.park(); err != nil {
		return err
	}
	if err := getRegs(s.tid, &s.saved); err != nil {
		return err
	}
	switch {
	case s.beforeCall():
		atEntry(&s.saved, s.nr, &s.args)
	case hidesRestart && s.isInsn(pc(&s.saved)):
		if err := s.catchRestart(); err != nil {
			return err
		}
	default:
		keepWaiting(&s.saved)
	}
	return s.saveRseq()
}

// leaveCall cancels the call that the thread is about to make. Close makes
// the thread arrive at it again.
func (s *Session) leaveCall() error {
	if !s.beforeCall() {
		return nil
	}
	var err error
	if s.nr, s.args, err = callAt(s.tid, &s.saved); err != nil {
		return err
	}
	s.newNR, s.newArgs = s.nr, s.args
	return cancelCall(s.tid, &s.saved)
}

// catchRestart lets the thread go on to the entry of the call at pc, which
// may be one that the kernel restarts. Only there the registers tell which:
// restart_syscall(2) takes the place of a call that keeps its timeout in the
// kernel.
func (s *Session) catchRestart() error {
	if err := s.advance(unix.PTRACE_SYSCALL, 0, wantCall); err != nil {
		return err
	}
	if err := getRegs(s.tid, &s.saved); err != nil {
		return err
	}
	var err error
	if s.nr, s.args, err = callAt(s.tid, &s.saved); err != nil {
		return err
	}
	s.reenter = true
	if err := cancelCall(s.tid, &s.saved); err != nil {
		return err
	}
	if err := s.park(); err != nil {
		return err
	}
	if err := getRegs(s.tid, &s.saved); err != nil {
		return err
	}
	atEntry(&s.saved, s.nr, &s.args)
	return nil
}

// saveRseq remembers the restartable sequence that the thread is in. The
// kernel forgets it as soon as the thread runs elsewhere, as an injected call
// does, and the sequence would then not be aborted although the thread has
// been away from its CPU.
func (s *Session) saveRseq() error {
	area := rseqArea(s.tid)
	if area == 0 {
		return nil
	}
	const offCS = 8 // of rseq_cs in struct rseq
	if _, err := vmIO(unix.SYS_PROCESS_VM_READV, s.tid, area+offCS, s.rseqCS[:]); err != nil {
		return fmt.Errorf("read restartable sequence of thread %d: %w", s.tid, err)
	}
	if s.rseqCS != [8]byte{} {
		s.rseq = area + offCS
	}
	return nil
}

// Tid returns the id of the borrowed thread.
func (s *Session) Tid() int { return s.tid }

// Call returns the number and the arguments of the system call that the
// thread was about to make; ok is false if it was not about to make one.
func (s *Session) Call() (nr uintptr, args [6]uintptr, ok bool) {
	return s.newNR, s.newArgs, s.beforeCall()
}

// SetCall changes the call that the thread will make after Close. It does
// nothing unless Call is ok.
func (s *Session) SetCall(nr uintptr, args [6]uintptr) {
	s.newNR, s.newArgs, s.changed, s.skip = nr, args, true, false
}

// Skip lets the thread go on after Close as if the call that it was about to
// make had returned ret, a value or a negated errno. It does nothing unless
// Call is ok.
func (s *Session) Skip(ret uintptr) { s.skip, s.skipRet = true, ret }

// Status returns the stop that the thread is in. After Close the tracer
// treats it like one that its own wait returned, with one difference: it has
// been consumed.
//
// It is the same stop as at Open where that was a PTRACE_EVENT_STOP, a signal
// being delivered, a seccomp stop or a system call entry, and a
// PTRACE_EVENT_STOP otherwise.
func (s *Session) Status() unix.WaitStatus { return unix.WaitStatus(s.code<<8 | 0x7f) }

// Syscall runs one system call in the thread. The error is the errno that it
// returned, or one matching ErrGone, ErrFiltered or ErrExec.
//
// The call must not block for long: the tracer waits for it, and with it the
// whole program's tree.
func (s *Session) Syscall(nr uintptr, args ...uintptr) (uintptr, error) {
	if s.dead != nil {
		return 0, s.dead
	}
	var a [6]uintptr
	copy(a[:], args)
	r := s.saved
	prepare(&r, s.insn, nr, &a)
	if err := setRegs(s.tid, &r); err != nil {
		return 0, s.fail(err)
	}
	s.dirty, s.child = true, 0
	for range 2 { // entry and exit
		if err := s.advance(unix.PTRACE_SYSCALL, 0, wantCall); err != nil {
			return 0, s.fail(err)
		}
	}
	if err := getRegs(s.tid, &r); err != nil {
		return 0, s.fail(err)
	}
	if rolledBack(&r, nr, &a) && queuedFromFilter(s.tid) {
		// RET_TRAP: the signal is taken out here and dropped, or the program
		// would get a SIGSYS for a call that it did not make.
		err := s.advance(unix.PTRACE_CONT, 0, wantNothing)
		return 0, s.fail(fmt.Errorf("system call %d: %w", nr, err))
	}
	return splitResult(result(&r))
}

// splitResult tells an errno from a value.
func splitResult(v uintptr) (uintptr, error) {
	if v > ^uintptr(4095) {
		return 0, unix.Errno(-v)
	}
	return v, nil
}

// fail remembers errors after which the thread cannot be used.
func (s *Session) fail(err error) error {
	if errors.Is(err, ErrGone) || errors.Is(err, ErrExec) {
		s.dead = err
	}
	return err
}
