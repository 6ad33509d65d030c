// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"errors"
	"fmt"
	"math"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/vkernel"
)

// resize follows calls that take pages from a file: a hole, or another size. They
// go from all memory that maps them. They are taken from the mirror before the
// call, so that nobody finds zeros there, and nobody is served until it has been
// made: a thread that faulted in between would be given the old page, and keep it
// as one of zeros.
func (t *task) resize(c tracee.Call) {
	off, n, ok := taken(c)
	if !ok {
		t.resume(0)
		return
	}
	o, ok := t.object(int(int32(c.Args[0])))
	if !ok {
		t.resume(0)
		return
	}
	truncate := c.Nr == unix.SYS_FTRUNCATE
	t.p.k.Punch(o, off, n)
	t.p.k.Sharers(o, off, n, applyOutside)
	ret, ok := t.here(c)
	if !ok {
		return
	}
	if ret == 0 && truncate {
		t.p.k.Truncate(o, off)
		t.p.k.Sharers(o, off, n, applyOutside)
	}
	t.skip(ret)
}

// taken returns what a call would take from a file, and false if it takes nothing
// or is refused whatever the file is: what has gone from the mirror by then does
// not come back.
func taken(c tracee.Call) (off, n uint64, ok bool) {
	if c.Nr == unix.SYS_FTRUNCATE {
		size := uint64(c.Args[1])
		return size, ^uint64(0) - size, size <= math.MaxInt64
	}
	off, n = uint64(c.Args[2]), uint64(c.Args[3])
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	ok = int32(c.Args[1]) == punch && off <= math.MaxInt64 && n != 0 && n <= math.MaxInt64 && off+n <= math.MaxInt64
	return off, n, ok
}

// here has the thread make its call at once, while nothing else happens, and returns
// what that returns. It reports false if the thread has died.
func (t *task) here(c tracee.Call) (ret int64, ok bool) {
	ok = t.session("make a call", func(s *inject.Session) error {
		v, err := s.Syscall(c.Nr, c.Args[:]...)
		var errno syscall.Errno
		if errors.As(err, &errno) {
			ret = negated(errno)
			return nil
		}
		ret = int64(v)
		return err
	})
	return ret, ok
}

// object returns the name of the file that fd is, and false if it has no mirror or
// fd is not open for writing.
func (t *task) object(fd int) (vkernel.Object, bool) {
	var st unix.Stat_t
	name := fmt.Sprintf("/proc/%d/fd/%d", t.th.Tid(), fd)
	if unix.Lstat(name, &st) != nil || st.Mode&unix.S_IWUSR == 0 || unix.Stat(name, &st) != nil {
		return vkernel.Object{}, false
	}
	dev := uint64(unix.Major(uint64(st.Dev)))<<32 | uint64(unix.Minor(uint64(st.Dev)))
	o := vkernel.Object{Dev: dev, Ino: st.Ino}
	return o, t.p.k.Reflects(o)
}
