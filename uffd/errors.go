// SPDX-License-Identifier: Apache-2.0

package uffd

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/faultline-go/faultline/mem"
)

var (
	// ErrNotSupported is matched by errors for what the kernel lacks.
	ErrNotSupported = errors.New("not supported")

	// ErrAgain is matched when the address space is changing, or when an
	// operation stopped half way. Read the queued messages, then go on from
	// where it stopped.
	ErrAgain = errors.New("the address space is changing")
)

// OpError records a failed operation on a range of the monitored process.
type OpError struct {
	Op    string    // the kernel's name, such as "UFFDIO_COPY"
	Range mem.Range // what was asked for
	Done  int       // bytes that were done before it failed
	Err   error     // a syscall.Errno
}

func (e *OpError) Error() string {
	s := fmt.Sprintf("%s %v: %v", e.Op, e.Range, e.Err)
	if e.Done > 0 {
		s += fmt.Sprintf(" after %d bytes", e.Done)
	}
	if errno, ok := e.Err.(syscall.Errno); ok {
		if hint := explain(e.Op, errno); hint != "" {
			s += " (" + hint + ")"
		}
	}
	return s
}

// Unwrap returns the errno.
func (e *OpError) Unwrap() error { return e.Err }

// Is makes EAGAIN match [ErrAgain].
func (e *OpError) Is(target error) bool { return target == ErrAgain && e.Err == syscall.EAGAIN }

// Check returns the error of an operation on r, an *OpError, or nil if errno
// is zero. It takes the results of an ioctl method as they come.
func Check(op string, r mem.Range, done int, errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return &OpError{Op: op, Range: r, Done: done, Err: errno}
}

// explain says what errno means for op in the words of ioctl_userfaultfd(2),
// where the errno's own text misleads.
func explain(op string, errno syscall.Errno) string {
	switch errno {
	case syscall.EAGAIN:
		return "the address space is changing: read the queued messages, then go on from there"
	case syscall.EEXIST:
		return "the page is there already; its waiters are not woken"
	case syscall.ESRCH:
		return "the process has exited or executed another program"
	case syscall.EBADF:
		return "the descriptor is closed"
	case syscall.ENOENT:
		if op == "UFFDIO_MOVE" {
			return "a source page is absent, or no mapping is there"
		}
		return "the range is not inside one registered mapping"
	case syscall.EBUSY:
		if op == "UFFDIO_MOVE" {
			return "the page is pinned or shared after fork"
		}
		return "the range is registered with another userfaultfd"
	case syscall.EPERM:
		return "the mapping can never be written"
	case syscall.EFAULT:
		return "the source is not readable"
	case syscall.EINVAL:
		return "misaligned or empty range, unsuitable memory, or no handshake yet"
	case syscall.ENOMEM:
		return "out of memory, or the process is gone"
	}
	return ""
}

// FeatureError says that this kernel lacks a feature. It matches
// [ErrNotSupported].
type FeatureError struct {
	Name  string // as in [uapi.Feature], or in hexadecimal if it is unknown
	Since string // the first kernel that has it, empty if unknown
}

func (e *FeatureError) Error() string {
	if e.Since == "" {
		return fmt.Sprintf("userfaultfd feature %s is not supported by this kernel", e.Name)
	}
	return fmt.Sprintf("userfaultfd feature %s is not supported by this kernel: it needs Linux %s or newer, "+
		"built with support for it", e.Name, e.Since)
}

// Is makes the error match [ErrNotSupported].
func (e *FeatureError) Is(target error) bool { return target == ErrNotSupported }

// Outcome says what the errno of a resolving ioctl means for the fault.
type Outcome uint8

// Outcomes of COPY, ZEROPAGE, CONTINUE, POISON, MOVE and WRITEPROTECT. All
// but Failed belong to normal service.
const (
	// Done: the range is resolved and its waiters are awake.
	Done Outcome = iota
	// Raced: the page was there already (EEXIST). Its waiters may still sleep:
	// wake the range.
	Raced
	// Deferred: the address space is changing, or the operation stopped half
	// way (EAGAIN). Read the queued messages, then go on.
	Deferred
	// Gone: the process has exited or executed another program (ESRCH).
	Gone
	// Changed: the range is no longer one registered mapping (ENOENT).
	Changed
	// Failed: anything else. The waiters still sleep.
	Failed
)

// OutcomeOf returns the meaning of errno.
func OutcomeOf(errno syscall.Errno) Outcome {
	switch errno {
	case 0:
		return Done
	case syscall.EEXIST:
		return Raced
	case syscall.EAGAIN:
		return Deferred
	case syscall.ESRCH:
		return Gone
	case syscall.ENOENT:
		return Changed
	}
	return Failed
}

// String returns the name of o in lower case.
func (o Outcome) String() string {
	switch o {
	case Done:
		return "done"
	case Raced:
		return "raced"
	case Deferred:
		return "deferred"
	case Gone:
		return "gone"
	case Changed:
		return "changed"
	}
	return "failed"
}
