// SPDX-License-Identifier: Apache-2.0

//go:build linux

package disk

import (
	"errors"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
)

// Scratch is room for one blob on its way in. It is on the heap, for the
// kernel writes to it through an integer, and stacks move.
type Scratch struct {
	Buf [mem.PageSize]byte
	iov unix.Iovec
}

// noTry remembers that the file system knows no reading without waiting.
type noTry struct{ off atomic.Bool }

// TryPread implements File by preadv2(2) with RWF_NOWAIT, since Linux 4.14.
//
// The system call is a raw one: a thread that serves faults must not hand its
// processor to another goroutine for a copy from the page cache.
func (f *osFile) TryPread(s *Scratch, n int, off int64) (b []byte, ok bool, err error) {
	if f.noTry.off.Load() {
		return nil, false, nil
	}
	s.iov.Base = &s.Buf[0]
	s.iov.SetLen(n)
	got, _, errno := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(f.fd),
		uintptr(unsafe.Pointer(&s.iov)), 1, uintptr(off), 0, unix.RWF_NOWAIT)
	switch {
	case errno == 0:
		// Less than all may be the end of the file or the end of what is
		// in the page cache: Pread tells.
		return s.Buf[:n], int(got) == n, nil
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return nil, false, nil
	case errors.Is(errno, unix.EOPNOTSUPP) || errno == unix.ENOSYS || errno == unix.EINVAL:
		f.noTry.off.Store(true)
		return nil, false, nil
	}
	return nil, false, errno
}
