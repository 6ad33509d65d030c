// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"errors"
	"fmt"
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
	o, ok := t.object(int(int32(c.Args[0])))
	if !ok {
		t.resume(0)
		return
	}
	off, n := uint64(c.Args[1]), ^uint64(0)-uint64(c.Args[1])
	truncate := c.Nr == unix.SYS_FTRUNCATE
	if !truncate {
		if c.Args[1]&unix.FALLOC_FL_PUNCH_HOLE == 0 {
			t.resume(0)
			return
		}
		off, n = uint64(c.Args[2]), uint64(c.Args[3])
	}
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

// object returns the name of the file that fd is.
func (t *task) object(fd int) (vkernel.Object, bool) {
	var st unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", t.th.Tid(), fd), &st) != nil {
		return vkernel.Object{}, false
	}
	dev := uint64(unix.Major(uint64(st.Dev)))<<32 | uint64(unix.Minor(uint64(st.Dev)))
	o := vkernel.Object{Dev: dev, Ino: st.Ino}
	return o, t.p.k.Reflects(o)
}
