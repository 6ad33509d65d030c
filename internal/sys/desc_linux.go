// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Desc owns a descriptor that several threads use while any of them may close
// it. The number goes back to the kernel only when the last call in flight
// has ended: it could otherwise name somebody else's file by the time that
// call uses it. It allocates nothing and takes no lock.
//
// Make one with MakeDesc. A Desc must not be copied once it is in use.
type Desc struct {
	raw int // immutable
	// state counts the calls in flight; descClosed is added by Close.
	state atomic.Uint32
}

const descClosed = 1 << 31

// MakeDesc returns a Desc that owns raw.
func MakeDesc(raw int) *Desc { return &Desc{raw: raw} }

// Acquire begins a call on the descriptor and returns its number, or false
// once it is closed. The caller ends the call with Release.
func (d *Desc) Acquire() (raw int, ok bool) {
	for {
		s := d.state.Load()
		if s&descClosed != 0 {
			return -1, false
		}
		if d.state.CompareAndSwap(s, s+1) {
			return d.raw, true
		}
	}
}

// Release ends a call. The last one to end after Close closes the descriptor.
func (d *Desc) Release() {
	if d.state.Add(^uint32(0)) == descClosed {
		// Nobody is left to hear of an error, and close(2) has freed the
		// number even if it reports one.
		_ = unix.Close(d.raw)
	}
}

// Close lets no further call begin, and closes the descriptor as soon as
// none is in flight, perhaps after Close has returned. Calls but the first do
// nothing.
func (d *Desc) Close() error {
	switch d.state.Or(descClosed) {
	case 0:
		return unix.Close(d.raw)
	default: // closed before, or left to Release
		return nil
	}
}

// Closed reports whether Close was called.
func (d *Desc) Closed() bool { return d.state.Load()&descClosed != 0 }

// Raw returns the number, which is meaningless once Close was called.
func (d *Desc) Raw() int { return d.raw }

// Nonblocking reports whether descriptor raw is O_NONBLOCK.
func Nonblocking(raw int) (bool, error) {
	flags, err := unix.FcntlInt(uintptr(raw), unix.F_GETFL, 0)
	return flags&unix.O_NONBLOCK != 0, err
}

// SetNonblock makes the file behind raw O_NONBLOCK, for all who share it.
func SetNonblock(raw int) error { return unix.SetNonblock(raw, true) }

// SetCloexec keeps raw from being inherited through execve(2).
func SetCloexec(raw int) error {
	_, err := unix.FcntlInt(uintptr(raw), unix.F_SETFD, unix.FD_CLOEXEC)
	return err
}

// CloseRaw closes a descriptor that nobody shares.
func CloseRaw(raw int) error { return unix.Close(raw) }

// Errno returns the errno in err, zero for nil. Errors of this package that
// come from the kernel always are one.
func Errno(err error) syscall.Errno {
	errno, _ := err.(syscall.Errno)
	return errno
}
