// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/vkernel"
)

// Memory is locked by the kernel as it comes, whatever the program has asked for:
// the kernel cannot bring in what is missing. That is asked of who has registered
// it, by the mirror, and the kernel brings in the rest.

// lockRange returns the pages of a call.
func lockRange(c tracee.Call) (mem.Range, bool) {
	return pages(c.Args[0]&^(mem.PageSize-1), c.Args[1]+c.Args[0]&(mem.PageSize-1))
}

// mlock is mlock(2) and mlock2(2).
func (t *task) mlock(c tracee.Call) {
	r, ok := lockRange(c)
	flags := 0
	if c.Nr == unix.SYS_MLOCK2 {
		flags = int(int32(c.Args[2]))
	}
	if !ok || !t.sp.touches(r) || flags&^unix.MLOCK_ONFAULT != 0 {
		t.resume(0)
		return
	}
	if !t.instead(unix.SYS_MLOCK2, c.Args[0], c.Args[1], unix.MLOCK_ONFAULT) {
		return
	}
	if t.call.Errno != 0 {
		if t.call.Errno == unix.ENOMEM {
			// Up to a hole all is locked, and nothing is brought in.
			t.marked(mem.Range{Start: r.Start, End: t.sp.mappedUntil(r)})
		}
		t.restore(c, negated(t.call.Errno))
		return
	}
	errno := t.sp.parts(r, func(part mem.Range, ours bool) (errno syscall.Errno) {
		if !ours {
			_, errno = t.agentCall(unix.SYS_MLOCK2, uintptr(part.Start), uintptr(part.Len()), uintptr(flags))
			return errno
		}
		t.as(waitCall, func() { errno = t.v.Mlock2(part.Start, part.Len(), flags) })
		t.sp.apply(part)
		if flags == 0 {
			t.bringIn(part)
		}
		return errno
	})
	t.restore(c, negated(errno))
}

// marked tells the mirror of memory that is locked as it comes.
func (t *task) marked(r mem.Range) {
	for _, g := range t.sp.guarded {
		if part := g.Intersect(r); !part.Empty() {
			t.v.Mlock2(part.Start, part.Len(), vkernel.MlockOnFault)
		}
	}
}

// bringIn has the kernel, too, make the pages that the mirror has made: those of a
// private mapping no longer show what becomes of the file.
func (t *task) bringIn(r mem.Range) {
	vmas, err := procmem.Maps(t.sp.ts.Pid())
	if err != nil || t.gone {
		return // it is dying
	}
	for _, v := range vmas {
		if part := v.Intersect(r); !part.Empty() {
			// ENOMEM: what has no permissions has no page.
			t.agentCall(unix.SYS_MLOCK, uintptr(part.Start), uintptr(part.Len()))
			t.agentCall(unix.SYS_MLOCK2, uintptr(part.Start), uintptr(part.Len()), unix.MLOCK_ONFAULT)
		}
	}
}

// instead has the thread make another call than its own, and waits for the end of
// that. It reports false if the thread has died.
func (t *task) instead(nr uintptr, args ...uintptr) bool {
	var a [6]uintptr
	copy(a[:], args)
	return !t.gone && inject.Rewrite(t.th.Tid(), nr, a) == nil && t.run()
}

func (t *task) munlock(c tracee.Call) {
	r, ok := lockRange(c)
	if t.run() && ok {
		switch t.call.Errno {
		case unix.ENOMEM:
			r.End = t.sp.mappedUntil(r) // up to a hole it is done
			fallthrough
		case 0:
			t.unlock(r)
		}
	}
	t.resume(0)
}

// mappedUntil returns where the first hole of r begins.
func (sp *space) mappedUntil(r mem.Range) mem.Addr {
	vmas, err := procmem.Maps(sp.ts.Pid())
	if err != nil {
		return r.Start // it is dying
	}
	at := r.Start
	for _, v := range vmas {
		if v.Contains(at) {
			at = v.End
		}
	}
	return min(at, r.End)
}

func (t *task) munlockall(tracee.Call) {
	if t.run() && t.call.Errno == 0 {
		t.unlock(mem.Range{End: 1 << 56})
	}
	t.resume(0)
}

func (t *task) unlock(r mem.Range) {
	for _, g := range t.sp.guarded {
		if part := g.Intersect(r); !part.Empty() {
			t.v.Munlock(part.Start, part.Len())
		}
	}
}

// mlockall locks all that there is, and what will be. Pages that cannot be had
// are passed over.
func (t *task) mlockall(c tracee.Call) {
	flags := c.Args[0]
	if flags&unix.MCL_CURRENT == 0 || flags&^(unix.MCL_CURRENT|unix.MCL_FUTURE|unix.MCL_ONFAULT) != 0 {
		t.resume(0)
		return
	}
	if !t.instead(c.Nr, flags|unix.MCL_ONFAULT) {
		return
	}
	if t.call.Errno != 0 {
		t.restore(c, negated(t.call.Errno))
		return
	}
	how := 0
	if flags&unix.MCL_ONFAULT != 0 {
		how = vkernel.MlockOnFault
	} else if flags&unix.MCL_FUTURE != 0 {
		t.agentCall(c.Nr, unix.MCL_FUTURE) // what will be is not on fault then
	}
	vmas, err := procmem.Maps(t.sp.ts.Pid())
	if err != nil {
		return // it is dying
	}
	for _, v := range vmas {
		if t.gone {
			return
		}
		t.lockMapped(v.Range, how)
	}
	t.restore(c, 0)
}

func (t *task) lockMapped(r mem.Range, how int) {
	if t.sp.owned(r) || t.sp.aliased(r) {
		t.agentCall(unix.SYS_MUNLOCK, uintptr(r.Start), uintptr(r.Len()))
		return
	}
	t.sp.parts(r, func(part mem.Range, ours bool) syscall.Errno {
		switch {
		case ours:
			t.as(waitCall, func() { t.v.Mlock2(part.Start, part.Len(), how) })
			t.sp.apply(part)
			if how == 0 {
				t.bringIn(part)
			}
		case how == 0:
			t.agentCall(unix.SYS_MLOCK, uintptr(part.Start), uintptr(part.Len()))
		}
		return 0
	})
}
