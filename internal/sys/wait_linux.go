// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Events of poll(2).
const (
	PollIn  = unix.POLLIN
	PollErr = unix.POLLERR | unix.POLLNVAL
)

// Poll waits with ppoll(2) until fd or wake is readable (either is ignored if
// negative) or timeout has passed; a negative timeout is for ever. It returns
// what is pending on fd. Signals do not end the wait.
//
// The calling thread gives its processor to the scheduler meanwhile.
func Poll(fd, wake int, timeout time.Duration) (revents int16, errno syscall.Errno) {
	fds := [2]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
	var (
		ts  unix.Timespec
		tsp *unix.Timespec
	)
	if timeout >= 0 {
		ts = unix.NsecToTimespec(int64(timeout))
		tsp = &ts
	}
	for {
		_, _, errno = syscall.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)),
			uintptr(unsafe.Pointer(tsp)), 0, 0, 0)
		// The system call has left in ts the time that remains, so that the
		// wait goes on where a signal (the Go runtime sends many) cut it.
		if errno != unix.EINTR {
			return fds[0].Revents, errno
		}
	}
}

// Event is an eventfd(2): a wake-up that a thread in Poll sees, and that is
// not lost if it comes before. All methods may be called at any time by
// anyone; after Close they do nothing.
type Event struct {
	desc *Desc
}

// NewEvent returns an event that is not signalled.
func NewEvent() (*Event, error) {
	raw, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return &Event{desc: MakeDesc(raw)}, nil
}

// FD returns the number to pass to Poll. It must not be used after Close.
func (e *Event) FD() int { return e.desc.Raw() }

// Signal makes the event readable until it is drained.
func (e *Event) Signal() {
	raw, ok := e.desc.Acquire()
	if !ok {
		return
	}
	defer e.desc.Release()
	one := uint64(1)
	// The only error of a live eventfd is EAGAIN at 2^64-1 signals: it is
	// readable then, which is what was asked for.
	_, _, _ = syscall.RawSyscall(syscall.SYS_WRITE, uintptr(raw), uintptr(unsafe.Pointer(&one)), 8)
}

// Drain takes the signals given so far and reports whether there was any.
func (e *Event) Drain() bool {
	raw, ok := e.desc.Acquire()
	if !ok {
		return false
	}
	defer e.desc.Release()
	var count [1]uint64
	n, errno := RawRead(raw, count[:])
	return errno == 0 && n == 1
}

// Close releases the event.
func (e *Event) Close() error { return e.desc.Close() }
