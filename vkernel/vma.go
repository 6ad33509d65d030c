// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// vmaFlags are the properties of a VMA that /proc/PID/smaps shows.
type vmaFlags uint32

const (
	vmRead vmaFlags = 1 << iota
	vmWrite
	vmExec
	vmShared
	vmMayRead
	vmMayWrite
	vmMayExec
	vmMayShare
	vmGrowsDown
	vmMissing
	vmWP
	vmLocked
	vmLockOnFault
	vmSeq
	vmRand
	vmDontCopy
	vmDontExpand
	vmAccount
	vmNoReserve
	vmHugetlb
	vmWipeOnFork
	vmHugepage
	vmNoHugepage
	vmMinor

	vmUffd   = vmMissing | vmWP | vmMinor
	vmAccess = vmRead | vmWrite | vmExec
	// vmLockedMask is a lock that brings no pages in.
	vmLockedMask = vmLocked | vmLockOnFault
)

// flagNames are in the order in which smaps prints them.
var flagNames = []struct {
	flag vmaFlags
	name string
}{
	{vmRead, "rd"}, {vmWrite, "wr"}, {vmExec, "ex"}, {vmShared, "sh"},
	{vmMayRead, "mr"}, {vmMayWrite, "mw"}, {vmMayExec, "me"}, {vmMayShare, "ms"},
	{vmGrowsDown, "gd"}, {vmMissing, "um"}, {vmWP, "uw"}, {vmLocked, "lo"},
	{vmSeq, "sr"}, {vmRand, "rr"}, {vmDontCopy, "dc"}, {vmDontExpand, "de"},
	{vmLockOnFault, "lf"},
	{vmAccount, "ac"}, {vmNoReserve, "nr"}, {vmHugetlb, "ht"},
	{vmWipeOnFork, "wf"}, {vmHugepage, "hg"}, {vmNoHugepage, "nh"}, {vmMinor, "ui"},
}

// uffdFlags translates the mode of a registration.
func uffdFlags(mode uapi.RegisterMode) (f vmaFlags) {
	if mode&uapi.UFFDIO_REGISTER_MODE_MISSING != 0 {
		f |= vmMissing
	}
	if mode&uapi.UFFDIO_REGISTER_MODE_WP != 0 {
		f |= vmWP
	}
	if mode&uapi.UFFDIO_REGISTER_MODE_MINOR != 0 {
		f |= vmMinor
	}
	return f
}

// lineage is the origin of a VMA's own pages. VMAs with pages of different
// origin do not merge.
type lineage struct {
	forked bool // a parent or a child shares pages of it
}

// vma is a run of pages with equal properties. The lock of its address space
// protects all of it, but for line: see adopt.
type vma struct {
	start, end mem.Addr
	flags      vmaFlags
	off        uint64 // of start in obj, in bytes; the first address for anonymous memory
	obj        *object
	file       *file // that was mapped; nil for memory without a name
	uffd       *uffd
	line       *lineage // nil until a page of its own was made; see adopt
	lined      uint32   // 1 once line is set; atomic
	inherited  bool     // private, and from a parent
}

func (v *vma) rng() mem.Range           { return mem.Range{Start: v.start, End: v.end} }
func (v *vma) is(f vmaFlags) bool       { return v.flags&f != 0 }
func (v *vma) anon() bool               { return v.obj == nil }
func (v *vma) hugetlb() bool            { return v.flags&vmHugetlb != 0 }
func (v *vma) shared() bool             { return v.flags&vmShared != 0 }
func (v *vma) offset(a mem.Addr) uint64 { return v.off + uint64(a-v.start) }

// guard returns what must stay free below v.
func (v *vma) guard() mem.Addr {
	if v.flags&vmGrowsDown != 0 {
		return stackGap
	}
	return 0
}

// pageMask returns the size of v's pages, less one.
func (v *vma) pageMask() mem.Addr {
	if v.hugetlb() {
		return HugePageSize - 1
	}
	return mem.PageSize - 1
}

// extends reports whether b, which starts where a ends, could be its
// continuation.
func (a *vma) extends(b *vma) bool {
	if a.end != b.start || a.flags != b.flags || a.inherited != b.inherited && a.hugetlb() || a.obj != b.obj || a.file != b.file || a.uffd != b.uffd {
		return false
	}
	if a.flags&vmDontExpand != 0 || a.offset(a.end) != b.off {
		return false
	}
	if a.line == b.line {
		return true
	}
	switch {
	case a.line == nil:
		return !b.line.forked
	case b.line == nil:
		return !a.line.forked
	}
	return false
}

// inherit gives v the origin of a VMA whose pages become its own. The lock of
// the address space is held for writing, as in setLine.
func (v *vma) inherit(from *vma) {
	if v.line == nil {
		v.setLine(from.line)
	}
}

func (v *vma) setLine(l *lineage) {
	v.line, v.lined = l, 0
	if l != nil {
		v.lined = 1
	}
}

// link adds v to the address space. Preconditions: as.mu is held for writing,
// as for all that follows here.
func (as *space) link(v *vma) {
	as.vmas.insert(v)
	if v.obj != nil {
		v.obj.addMapping(as, v)
	}
}

func (as *space) unlink(v *vma) {
	as.vmas.remove(v)
	if v.obj != nil {
		v.obj.dropMapping(as, v)
	}
}

// split cuts v at a and returns the part from a on.
func (as *space) split(v *vma, a mem.Addr) (*vma, syscall.Errno) {
	if a&v.pageMask() != 0 {
		return nil, EINVAL
	}
	if as.vmas.count >= as.k.maxMaps {
		return nil, ENOMEM
	}
	right := *v
	right.off = v.offset(a)
	right.start = a
	as.vmas.resize(v, mem.Range{Start: v.start, End: a})
	as.link(&right)
	return &right, 0
}

// carve makes the part of v within r a VMA by itself and returns that.
func (as *space) carve(v *vma, r mem.Range) (*vma, syscall.Errno) {
	if r.Start > v.start {
		right, errno := as.split(v, r.Start)
		if errno != 0 {
			return nil, errno
		}
		v = right
	}
	if r.End < v.end {
		if _, errno := as.split(v, r.End); errno != 0 {
			return nil, errno
		}
	}
	return v, 0
}

// change gives the part of v within r other flags and another descriptor. It
// splits v as needed, merges what has become equal, and returns the VMA that
// now has the part.
func (as *space) change(v *vma, r mem.Range, flags vmaFlags, u *uffd) (*vma, syscall.Errno) {
	r = r.Intersect(v.rng())
	if v.flags == flags && v.uffd == u {
		return v, 0
	}
	if grown := as.shift(v, r, flags, u); grown != nil {
		return grown, 0
	}
	v, errno := as.carve(v, r)
	if errno != 0 {
		return nil, errno
	}
	v.flags, v.uffd = flags, u
	return as.merge(v), 0
}

// shift moves the border between v and a neighbour that is already what the
// part of v within r is to become. This is how a change at the edge of a VMA
// costs no VMA, and cannot fail for want of one.
func (as *space) shift(v *vma, r mem.Range, flags vmaFlags, u *uffd) *vma {
	part := *v
	part.start, part.end, part.off, part.flags, part.uffd = r.Start, r.End, v.offset(r.Start), flags, u
	if r.Start == v.start && r.End < v.end && r.End&v.pageMask() == 0 {
		if prev := as.vmas.prev(r.Start); prev != nil && prev.extends(&part) {
			prev.inherit(v)
			off := v.offset(r.End)
			as.vmas.resize(v, mem.Range{Start: r.End, End: v.end})
			v.off = off
			as.vmas.resize(prev, mem.Range{Start: prev.start, End: r.End})
			return prev
		}
	}
	if r.End == v.end && r.Start > v.start && r.Start&v.pageMask() == 0 {
		if next := as.vmas.next(v); next != nil && part.extends(next) {
			next.inherit(v)
			as.vmas.resize(v, mem.Range{Start: v.start, End: r.Start})
			as.vmas.resize(next, mem.Range{Start: r.Start, End: next.end})
			next.off = part.off
			return next
		}
	}
	return nil
}

// merge joins v with its neighbours where nothing tells them apart, and
// returns what v is part of.
func (as *space) merge(v *vma) *vma {
	if prev := as.vmas.prev(v.start); prev != nil && prev.extends(v) {
		v = as.join(prev, v)
	}
	return as.mergeNext(v)
}

// mergeNext is merge with what comes after v.
func (as *space) mergeNext(v *vma) *vma {
	if next := as.vmas.next(v); next != nil && v.extends(next) {
		v = as.join(v, next)
	}
	return v
}

func (as *space) join(a, b *vma) *vma {
	a.inherit(b)
	as.unlink(b)
	as.vmas.resize(a, mem.Range{Start: a.start, End: b.end})
	return a
}
