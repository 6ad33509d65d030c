// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"errors"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/vkernel"
)

// memoryCalls change memory that may be registered. Where it is, the mirror
// decides; the process's memory is changed by the agent, in one step for all
// threads: none is served in between, since that happens on this thread too.
var memoryCalls = map[uintptr]func(*task, tracee.Call){
	unix.SYS_MUNMAP:        (*task).munmap,
	unix.SYS_MPROTECT:      (*task).mprotect,
	unix.SYS_PKEY_MPROTECT: (*task).mprotect,
	unix.SYS_MADVISE:       (*task).madvise,
	unix.SYS_MREMAP:        (*task).mremap,
	unix.SYS_MMAP:          (*task).mmap,
	unix.SYS_BRK:           (*task).brk,
	unix.SYS_MLOCK:         (*task).mlock,
	unix.SYS_MLOCK2:        (*task).mlock,
	unix.SYS_MUNLOCK:       (*task).munlock,
	unix.SYS_MINCORE:       (*task).mincore,
	unix.SYS_MLOCKALL:      (*task).mlockall,
	unix.SYS_MUNLOCKALL:    (*task).munlockall,
}

// touches reports whether r has registered memory.
func (sp *space) touches(r mem.Range) bool {
	return slices.ContainsFunc(sp.guarded, r.Overlaps)
}

// pages returns the range of a call, whole pages, and false if the kernel would
// refuse it for its form.
func pages(start, n uintptr) (mem.Range, bool) {
	end := start + (n+mem.PageSize-1)&^(mem.PageSize-1)
	if start&(mem.PageSize-1) != 0 || end < start || n == 0 {
		return mem.Range{}, false
	}
	return mem.Range{Start: addr(start), End: addr(end)}, true
}

// agentCall makes a call in the process, by the agent.
func (t *task) agentCall(nr uintptr, args ...uintptr) (uintptr, syscall.Errno) {
	v, err := t.sp.agent.Call(nr, args...)
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		if !gone(err) {
			t.p.fatal("make a call for the program", err)
		}
		return 0, unix.ENOMEM // it is dying
	}
	return v, errno
}

func (t *task) munmap(c tracee.Call) {
	r, ok := pages(c.Args[0], c.Args[1])
	if !ok || !t.sp.touches(r) {
		t.resume(0)
		return
	}
	_, errno := t.agentCall(unix.SYS_MUNMAP, c.Args[0], c.Args[1])
	if errno != 0 {
		t.skip(negated(errno))
		return
	}
	t.unmapped(r)
	t.skip(0)
}

// unmapped tells the mirror of memory that is no more. The thread waits until
// the event was read, if somebody asked for it.
func (t *task) unmapped(r mem.Range) {
	t.unfence(r)
	for _, g := range t.sp.guarded {
		t.sp.prot.forget(g.Intersect(r))
	}
	t.as(waitCall, func() { t.v.Munmap(r.Start, r.Len()) })
	t.sp.follow()
}

// parts calls f for the parts of r in order, registered or not, until it
// returns an error.
func (sp *space) parts(r mem.Range, f func(part mem.Range, ours bool) syscall.Errno) syscall.Errno {
	at := r.Start
	for _, g := range slices.Clone(sp.guarded) {
		part := g.Intersect(r)
		if part.Empty() {
			continue
		}
		if at < part.Start {
			if errno := f(mem.Range{Start: at, End: part.Start}, false); errno != 0 {
				return errno
			}
		}
		if errno := f(part, true); errno != 0 {
			return errno
		}
		at = part.End
	}
	if at < r.End {
		return f(mem.Range{Start: at, End: r.End}, false)
	}
	return 0
}

// mprotect lets the mirror have what is registered, and the kernel the rest.
func (t *task) mprotect(c tracee.Call) {
	r, ok := pages(c.Args[0], c.Args[1])
	prot := int(c.Args[2])
	if !ok || !t.sp.touches(r) || prot&^7 != 0 {
		t.resume(0)
		return
	}
	errno := t.sp.parts(r, func(part mem.Range, ours bool) syscall.Errno {
		if !ours {
			_, errno := t.agentCall(unix.SYS_MPROTECT, uintptr(part.Start), uintptr(part.Len()), uintptr(prot))
			return errno
		}
		errno := t.v.Mprotect(part.Start, part.Len(), prot)
		t.sp.apply(part)
		return errno
	})
	t.sp.follow()
	t.skip(negated(errno))
}

// madvise handles advice that drops pages. What is registered has no
// permissions by the time that they are dropped, so that no thread finds zeros
// there.
func (t *task) madvise(c tracee.Call) {
	r, ok := pages(c.Args[0], c.Args[1])
	advice := int(int32(c.Args[2]))
	// A hole in a file shows wherever that is mapped.
	if !ok || !t.sp.touches(r) && advice != unix.MADV_REMOVE {
		t.resume(0)
		return
	}
	switch advice {
	case unix.MADV_DONTNEED, unix.MADV_FREE, unix.MADV_REMOVE, unix.MADV_DONTNEED_LOCKED:
		t.skip(negated(t.drop(r, advice)))
	case unix.MADV_POPULATE_READ, unix.MADV_POPULATE_WRITE:
		t.populate(r, advice)
	case unix.MADV_DONTFORK, unix.MADV_DOFORK, unix.MADV_WIPEONFORK, unix.MADV_KEEPONFORK:
		if t.run() && t.call.Errno == 0 {
			t.sp.parts(r, func(part mem.Range, ours bool) syscall.Errno {
				if ours {
					t.v.Madvise(part.Start, part.Len(), advice)
				}
				return 0
			})
			if wipe := advice == unix.MADV_WIPEONFORK; t.sp.managed != nil && (wipe || advice == unix.MADV_KEEPONFORK) {
				t.elsewhere(func() { t.p.hooks.Wiped(t.sp.ts, r, wipe) })
			}
		}
		t.resume(0)
	default:
		t.resume(0)
	}
}

// drop goes on behind what is not mapped, as the kernel does.
func (t *task) drop(r mem.Range, advice int) syscall.Errno {
	hole := syscall.Errno(0)
	native := advice
	if advice == unix.MADV_FREE {
		// The kernel would drop the pages when it likes, unseen.
		native = unix.MADV_DONTNEED
	}
	errno := t.sp.parts(r, func(part mem.Range, ours bool) syscall.Errno {
		if ours {
			var errno syscall.Errno
			t.as(waitCall, func() { errno = t.v.Madvise(part.Start, part.Len(), advice) })
			if errno != 0 || t.gone {
				return errno
			}
			if advice == unix.MADV_FREE {
				// The mirror keeps the pages that may be dropped.
				t.sp.v.Discard(part)
			}
			t.sp.follow()
			t.sp.apply(part)
		} else if advice == unix.MADV_REMOVE {
			t.sp.reflect(part)
			t.v.Madvise(part.Start, part.Len(), advice) // as far as the kernel will go
		}
		if advice == unix.MADV_REMOVE {
			t.sp.v.Sharers(part, applyOutside) // before the kernel drops the pages
		}
		_, errno := t.agentCall(unix.SYS_MADVISE, uintptr(part.Start), uintptr(part.Len()), uintptr(native))
		if errno == unix.ENOMEM {
			hole, errno = errno, 0
		}
		return errno
	})
	if errno == 0 {
		errno = hole
	}
	return errno
}

// applyOutside applies what the loss of an object's pages has changed, in whatever
// process they are mapped.
func applyOutside(out vkernel.Outside, r mem.Range) {
	if sp, ok := out.(*space); ok {
		sp.apply(r)
	}
}

// populate brings the pages in as the system call would. It is not made for them:
// some may have left again by then.
func (t *task) populate(r mem.Range, advice int) {
	errno := t.sp.parts(r, func(part mem.Range, ours bool) syscall.Errno {
		if !ours {
			_, errno := t.agentCall(unix.SYS_MADVISE, uintptr(part.Start), uintptr(part.Len()), uintptr(advice))
			return errno
		}
		for a := part.Start; a < part.End; a += mem.PageSize {
			if !t.bring(a, advice == unix.MADV_POPULATE_WRITE) {
				return unix.EFAULT
			}
		}
		return 0
	})
	t.skip(negated(errno))
}

// mmap is a mapping at a fixed address, which replaces what is there.
func (t *task) mmap(c tracee.Call) {
	r, ok := pages(c.Args[0], c.Args[1])
	if !ok || !t.sp.touches(r) {
		t.resume(0)
		return
	}
	if !t.run() {
		return
	}
	if t.call.Errno == 0 {
		t.unmapped(r)
	}
	t.resume(0)
}

// brk is the end of the heap, which may move into registered memory.
func (t *task) brk(tracee.Call) {
	old := t.sp.heap()
	if !t.run() {
		return
	}
	t.shrunk(old, t.sp.heap())
	t.resume(0)
}

// heap returns what brk has made: its parts may differ in permissions.
func (sp *space) heap() (r mem.Range) {
	vmas, err := procmem.Maps(sp.ts.Pid())
	if err != nil {
		return r // it is dying
	}
	for _, v := range vmas {
		if v.Name == "[heap]" {
			if r.Empty() {
				r.Start = v.Start
			}
			r.End = v.End
		}
	}
	return r
}

// shrunk tells the mirror what the heap has lost.
func (t *task) shrunk(old, now mem.Range) {
	for _, r := range mem.Subtract([]mem.Range{old}, []mem.Range{now}) {
		if !r.Empty() && t.sp.touches(r) {
			t.unmapped(r)
		}
	}
}
