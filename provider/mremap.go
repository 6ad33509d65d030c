// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/vkernel"
)

// mremap moves or resizes a mapping.
func (t *task) mremap(c tracee.Call) {
	old, okOld := pages(c.Args[0], max(c.Args[1], 1))
	fixed := c.Args[3]&unix.MREMAP_FIXED != 0
	to, okNew := pages(c.Args[4], max(c.Args[2], 1))
	hit := okOld && t.sp.touches(old)
	if !hit && !(fixed && okNew && t.sp.touches(to)) {
		t.resume(0)
		return
	}
	t.sp.complete(old)
	if fixed && okNew {
		t.sp.complete(to)
	}
	if !hit {
		t.replaced(to, c)
		return
	}
	// The kernel sees mappings that are cut up by permissions, and would say
	// other than it does of whole ones.
	if errno := t.sp.v.Remappable(addr(c.Args[0]), uint64(c.Args[1]), uint64(c.Args[2]), int(c.Args[3]), addr(c.Args[4])); errno != 0 {
		t.skip(negated(t.movePart(old, c, errno)))
		return
	}
	t.moveMapping(c)
}

// replaced follows memory that moves to where some is registered.
func (t *task) replaced(to mem.Range, c tracee.Call) {
	if t.run() && t.call.Errno == 0 {
		for _, g := range t.sp.guarded {
			t.sp.prot.forget(g.Intersect(to))
		}
		t.as(waitCall, func() {
			t.v.Mremap(addr(c.Args[0]), uint64(c.Args[1]), uint64(c.Args[2]), int(c.Args[3]), to.Start)
		})
		t.sp.follow()
	}
	t.resume(0)
}

// movePart does what the kernel does of a move of several mappings before it comes
// to one that is registered. It returns what the call returns.
func (t *task) movePart(old mem.Range, c tracee.Call, errno syscall.Errno) syscall.Errno {
	size := (c.Args[2] + mem.PageSize - 1) &^ (mem.PageSize - 1)
	if errno != unix.EFAULT || c.Args[3]&unix.MREMAP_FIXED == 0 || uint64(size) != old.Len() {
		return errno
	}
	first := old.End
	for _, g := range t.sp.guarded {
		if part := g.Intersect(old); !part.Empty() {
			first = part.Start
			break
		}
	}
	n := uintptr(first - old.Start)
	if n == 0 {
		return errno
	}
	if _, errno := t.agentCall(unix.SYS_MREMAP, c.Args[0], n, n, c.Args[3], c.Args[4]); errno != 0 {
		return errno
	}
	t.unmapped(mem.MakeRange(addr(c.Args[4]), uint64(n)))
	return errno
}

// moveMapping moves registered memory: its pages, with the permissions that
// they have, go with it. The kernel moves one mapping at a time, and ours are
// cut up by permissions: so it is opened first, moved, and closed again, while
// the threads that could see it are kept away.
func (t *task) moveMapping(c tracee.Call) {
	sp := t.sp
	mask := uint64(mem.PageSize - 1)
	if sp.v.Huge(addr(c.Args[0])) {
		mask = vkernel.HugePageSize - 1
	}
	old := mem.MakeRange(addr(c.Args[0]), (uint64(c.Args[1])+mask)&^mask)
	newLen := (c.Args[2] + uintptr(mask)) &^ uintptr(mask)
	if !old.Empty() {
		sp.unseal(old)
		close := []inject.Op{{NR: unix.SYS_MPROTECT, Args: [6]uintptr{uintptr(old.Start), uintptr(old.Len()), unix.PROT_NONE}}}
		if !sp.do("close memory that moves", close) {
			return
		}
		sp.prot.set(old, unix.PROT_NONE)
	}
	at, errno := t.remap(old, newLen, c)
	if errno != 0 {
		sp.returned(old)
		sp.apply(old)
		t.skip(negated(errno))
		return
	}
	flags := int(c.Args[3])&^vkernel.MremapDontUnmap | vkernel.MremapMayMove | vkernel.MremapFixed
	if c.Args[3]&unix.MREMAP_DONTUNMAP != 0 {
		flags = int(c.Args[3]) | vkernel.MremapMayMove | vkernel.MremapFixed
	}
	if at == c.Args[0] {
		flags = 0
	}
	now := mem.MakeRange(addr(at), uint64(newLen))
	sp.prot.forget(old)
	sp.prot.forget(now)
	if !old.Empty() {
		sp.prot.set(now, unix.PROT_NONE)
	}
	// It has happened by the time that anybody is told of it, or asked for more
	// pages of it.
	settle := func() {
		sp.follow()
		if !sp.mirrorShared(now) {
			return
		}
		t.guard(sp, now)
		// What is not registered where it is now has to be opened, too.
		sp.returned(now)
		sp.apply(now)
		sp.apply(old)
	}
	if newLen > uintptr(old.Len()) {
		sp.grown(old, now)
	}
	t.parking = settle
	t.as(waitCall, func() {
		_, errno = t.v.Mremap(old.Start, old.Len(), uint64(newLen), flags, addr(at))
	})
	t.parking = nil
	if t.gone {
		return
	}
	if errno != 0 {
		t.p.fatal("follow a mapping that has moved", errno)
		return
	}
	settle()
	t.skip(int64(at))
}
