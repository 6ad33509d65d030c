// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/vkernel"
)

// resize follows calls that take pages from a file: a hole, or another size. They
// go from all memory that maps them. They are taken from the mirror before the
// call, so that nobody finds zeros there, and once more after it: a thread that
// faults in between is given the old page.
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
	t.p.applyAll()
	if !t.run() {
		return
	}
	if t.call.Errno == 0 {
		if t.p.k.Punch(o, off, n); truncate {
			t.p.k.Truncate(o, off)
		}
		t.p.applyAll()
	}
	t.resume(0)
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
