// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Close puts the thread back to where Open took it: registers, signal mask,
// restartable sequence, and the call that it was in or about to make. It
// leaves the thread stopped; Status says how. The tracer resumes it as it
// would from that stop: with the signal where one is being delivered (the
// kernel may report the same signal once more, if it came in a call that
// unblocks it), by PTRACE_LISTEN in a group stop, with signal 0 otherwise.
//
// It returns an error matching ErrGone or ErrExec if there is no state to go
// back to. A second Close does nothing.
func (s *Session) Close() error {
	if s.closed || s.dead != nil {
		s.closed = true
		return s.dead
	}
	s.closed = true
	if err := errors.Join(s.resumeFilters(), s.restore()); err != nil {
		return s.fail(fmt.Errorf("restore thread %d: %w", s.tid, err))
	}
	return nil
}

func (s *Session) restore() error {
	if !s.parked {
		// Without a call to restart the kernel leaves the registers alone.
		var r regs
		if err := getRegs(s.tid, &r); err != nil {
			return err
		}
		if s.dirty {
			if err := forgetCall(s.tid, &r); err != nil {
				return err
			}
		}
		if err := s.park(); err != nil {
			return err
		}
	}
	if s.rseq != 0 && s.dirty {
		if _, err := vmIO(unix.SYS_PROCESS_VM_WRITEV, s.tid, s.rseq, s.rseqCS[:]); err != nil {
			return fmt.Errorf("write restartable sequence: %w", err)
		}
	}
	switch {
	case s.beforeCall() && s.skip:
		setResult(&s.saved, s.skipRet)
	case s.beforeCall():
		return s.arriveAgain()
	case s.reenter:
		if err := s.beginAgain(); err != nil {
			return err
		}
		return s.deliverAgain()
	}
	if err := setRegs(s.tid, &s.saved); err != nil {
		return err
	}
	if err := setMask(s.tid, s.mask); err != nil {
		return err
	}
	return s.deliverAgain()
}

// deliverAgain makes the stop in which a signal is being delivered, if that
// is where the thread was. Another signal, unblocked alone, brings the thread
// to such a stop ahead of all that is queued, and is turned into the first.
func (s *Session) deliverAgain() error {
	if s.place != placeSignal || !s.parked {
		return nil
	}
	st, err := readStatus(s.tid)
	if err != nil {
		return err
	}
	// One that is not pending: another instance would be merged with it.
	for _, sig := range []unix.Signal{unix.SIGSTKFLT, unix.SIGPWR, unix.SIGURG, unix.SIGWINCH, unix.SIGIO} {
		if st.pending&bit(sig) == 0 {
			s.vehicle = sig
			break
		}
	}
	if err := setMask(s.tid, ^bit(s.vehicle)); err != nil {
		return err
	}
	if err := tkill(s.tid, s.vehicle); err != nil {
		return err
	}
	if err := s.advance(unix.PTRACE_CONT, 0, wantVehicle); err != nil {
		return err
	}
	s.code = int(s.info.signo)
	if err := setSiginfo(s.tid, &s.info); err != nil {
		return err
	}
	return setMask(s.tid, s.mask)
}

// arriveAgain makes the thread execute its system call instruction once more,
// up to the same stop before the call. Signals stay blocked on the way.
func (s *Session) arriveAgain() error {
	r := s.saved
	prepare(&r, pc(&r)-insnLen, s.nr, &s.args)
	if err := setRegs(s.tid, &r); err != nil {
		return err
	}
	req, want := unix.PTRACE_CONT, wantFilter
	if s.place == placeEntry {
		req, want = unix.PTRACE_SYSCALL, wantCall
	}
	if err := s.advance(req, 0, want); err != nil {
		return err
	}
	if s.changed {
		r = s.saved
		atEntry(&r, s.newNR, &s.newArgs)
		if err := writeEntry(s.tid, &r, s.newNR); err != nil {
			return err
		}
	}
	return setMask(s.tid, s.mask)
}

// beginAgain makes the thread enter the interrupted call again, with the
// program's signals deliverable and an interrupt pending: if the call would
// still block it returns at once to where Open found it, the kernel knowing
// that it is a call to be restarted or, if a handler runs, to end with EINTR.
func (s *Session) beginAgain() error {
	r := s.saved
	prepare(&r, pc(&r)-insnLen, s.nr, &s.args)
	if err := setRegs(s.tid, &r); err != nil {
		return err
	}
	if err := s.advance(unix.PTRACE_SYSCALL, 0, wantCall); err != nil {
		return err
	}
	if err := setMask(s.tid, s.mask); err != nil {
		return err
	}
	if err := ptrace(unix.PTRACE_INTERRUPT, s.tid, 0, 0); err != nil {
		return err
	}
	return s.advance(unix.PTRACE_CONT, 0, wantAny)
}
