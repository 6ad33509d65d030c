// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// faults are the signals that the kernel forces upon a thread for what it
// does itself. They stay as the program has them: forcing a blocked signal
// makes the kernel reset its handler for good.
const faults = sigset(1<<(unix.SIGSYS-1) | 1<<(unix.SIGSEGV-1) | 1<<(unix.SIGBUS-1) |
	1<<(unix.SIGILL-1) | 1<<(unix.SIGFPE-1) | 1<<(unix.SIGTRAP-1))

// want names the stop that advance goes on to.
type want int

const (
	wantNothing want = iota // only an error ends it
	wantPark                // on the way to user mode
	wantCall                // system call entry or exit
	wantFilter              // seccomp, before the call
	wantVehicle             // delivery of Session.vehicle
	wantAny                 // whatever comes first
)

// beforeCall reports whether the thread was stopped before a call.
func (s *Session) beforeCall() bool { return s.place == placeEntry || s.place == placeFilter }

// park brings the thread to a stop on its way to user mode.
func (s *Session) park() error {
	if s.parked {
		return nil
	}
	if err := ptrace(unix.PTRACE_INTERRUPT, s.tid, 0, 0); err != nil {
		return err
	}
	return s.advance(unix.PTRACE_CONT, 0, wantPark)
}

// advance resumes the thread with req until it reaches the wanted stop.
//
// Stops that have nothing to do with us are passed: a group stop begun by
// another thread (the thread comes back to it when it is parked), the seccomp
// stop of an injected call. A signal from outside that could not be blocked
// beforehand is blocked now and handed back to the kernel, which queues it
// again; SIGSTOP, which nothing blocks, takes its effect on the others at
// once.
func (s *Session) advance(req, sig int, w want) error {
	for {
		s.parked = false
		if err := ptrace(req, s.tid, 0, uintptr(sig)); err != nil {
			return err
		}
		code, err := waitStop(s.tid)
		if err != nil {
			return err
		}
		s.code, sig = code, 0
		switch event := code >> 8; {
		case event == unix.PTRACE_EVENT_EXEC && w != wantAny:
			return fmt.Errorf("thread %d: %w", s.tid, ErrExec)
		case event == unix.PTRACE_EVENT_CLONE:
			child, err := eventMsg(s.tid)
			if err != nil {
				return err
			}
			s.child = int(child)
		case event == unix.PTRACE_EVENT_STOP:
			s.parked = true
		case code == int(unix.SIGTRAP)|0x80, event != 0:
		case w != wantAny && !(w == wantVehicle && code == int(s.vehicle)):
			if sig, err = s.putBack(code); err != nil {
				return err
			}
		}
		if s.arrived(w, code) {
			return nil
		}
	}
}

func (s *Session) arrived(w want, code int) bool {
	switch w {
	case wantAny:
		return true
	case wantPark:
		return code>>8 == unix.PTRACE_EVENT_STOP
	case wantVehicle:
		return code == int(s.vehicle)
	case wantFilter:
		return code>>8 == unix.PTRACE_EVENT_SECCOMP
	case wantCall:
		return code == int(unix.SIGTRAP)|0x80
	}
	return false
}

// putBack decides about a signal that interrupts the injection. It returns
// the signal to resume with.
func (s *Session) putBack(sig int) (int, error) {
	si, err := getSiginfo(s.tid)
	if err != nil {
		return 0, err
	}
	if faults&bit(unix.Signal(sig)) != 0 && si.code > 0 {
		if unix.Signal(sig) == unix.SIGSYS {
			return 0, fmt.Errorf("thread %d: %w", s.tid, ErrFiltered)
		}
		return 0, fmt.Errorf("injected call in thread %d raised %v (code %d)",
			s.tid, unix.Signal(sig), si.code)
	}
	s.cur |= bit(unix.Signal(sig))
	if err := setMask(s.tid, s.cur); err != nil {
		return 0, err
	}
	return sig, nil
}

// KeepWaiting prepares a thread for being resumed that was stopped for other
// reasons than a session: calls like epoll_wait(2) end with EINTR by the mere
// stop, and the program, which has sent no signal, need not expect that. (A
// session does this by itself.) The thread must be at a PTRACE_EVENT_STOP; at
// any other stop there is nothing to do and nothing is done.
//
// On arm64 it has no effect: the kernel does not tell.
func KeepWaiting(tid int) error {
	s := Session{tid: tid}
	if err := s.classify(); err != nil || s.place != placeStop {
		return err
	}
	var r regs
	if err := getRegs(tid, &r); err != nil {
		return err
	}
	was := r
	if keepWaiting(&r); r == was {
		return nil
	}
	return setRegs(tid, &r)
}

// Rest is a thread that sleeps until it is woken, whatever signals come that
// it survives.
type Rest struct {
	tid   int
	saved regs
}

// MakeRest makes a thread that stands before its program's first instruction,
// traced but perhaps not seized, sleep as soon as it is let go, be it for good
// (PTRACE_DETACH): so that nothing of the program runs until it is traced
// again. No handler can be set yet, so that the call which it sleeps in is
// restarted after every signal and stop. The error matches ErrForeign for
// programs of another ABI.
func MakeRest(tid int) (*Rest, error) {
	s := Session{tid: tid}
	if err := getRegs(tid, &s.saved); err != nil {
		return nil, err
	}
	if err := s.findInsn(); err != nil {
		return nil, err
	}
	r := s.saved
	prepare(&r, s.insn, unix.SYS_PPOLL, &[6]uintptr{}) // no files, no timeout
	if err := setRegs(tid, &r); err != nil {
		return nil, err
	}
	return &Rest{tid, s.saved}, nil
}

// Wake puts the thread, which must be stopped, back before its first
// instruction.
func (r *Rest) Wake() error { return setRegs(r.tid, &r.saved) }
