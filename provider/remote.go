// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"encoding/binary"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/sysargs"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
)

// remote is process_vm_readv(2) and process_vm_writev(2): the pages of the other
// process come first, as do those of its own.
func (t *task) remote(c tracee.Call) {
	sp := t.p.spaceOf(int(int32(c.Args[0])))
	if sp == nil {
		t.use(c)
		return
	}
	write := c.Nr == unix.SYS_PROCESS_VM_WRITEV
	// Its own buffers first, among them the vector that says what is meant.
	t.ranges = sysargs.Ranges(t.ranges[:0], c.Nr, c.Args, t.sp.Load)
	if !t.hold() {
		return
	}
	vector := t.vector(c.Args[3], c.Args[4])
	defer sp.pinned(vector)()
	for _, r := range vector {
		if !t.bringOf(sp, r, write) {
			break // the call finds out by itself
		}
	}
	if !t.gone {
		t.useThen(c, func() {}) // which waits for its end
	}
}

// pinned keeps pages until the function is called that it returns.
func (sp *space) pinned(ranges []mem.Range) (unpin func()) {
	m := sp.managed
	var pins []mem.Page
	for _, r := range ranges {
		pins = sp.pin(pins, r)
	}
	return func() {
		for _, pg := range pins {
			m.unpin(pg)
		}
	}
}

// spaceOf returns the space of a process of the tree in which there is registered
// memory.
func (p *Provider) spaceOf(pid int) *space {
	for _, pr := range p.tracer.Processes() {
		if pr.Pid() != pid {
			continue
		}
		if sp := p.spaces[pr.Space()]; sp != nil && len(sp.guarded) != 0 {
			return sp
		}
	}
	return nil
}

// vector returns the ranges of an iovec of n elements.
func (t *task) vector(a, n uintptr) []mem.Range {
	const most, size = 1024, 16 // UIO_MAXIOV, struct iovec
	b := make([]byte, size*min(n, most))
	b = b[:t.sp.Load(addr(a), b)/size*size]
	var rs []mem.Range
	for ; len(b) > 0; b = b[size:] {
		start, n := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
		if start < 1<<56 && n < 1<<56 {
			rs = append(rs, mem.MakeRange(mem.Addr(start), n))
		}
	}
	return rs
}

// bringOf waits for pages of another space. It reports false if one cannot be had,
// or the thread has died.
func (t *task) bringOf(sp *space, r mem.Range, write bool) bool {
	need := uint8(unix.PROT_READ)
	if write {
		need = unix.PROT_WRITE
	}
	for _, g := range slices.Clone(sp.guarded) {
		part := g.Intersect(r)
		for a := part.Start; a < part.End; a = a.Down() + mem.PageSize {
			if sp.prot.at(a)&need != 0 {
				continue
			}
			var errno syscall.Errno
			t.as(waitCall, func() { errno = t.v.WantOf(sp.v, a, write) })
			if t.gone || errno != 0 {
				return false
			}
			sp.apply(mem.MakeRange(a.Down(), mem.PageSize))
		}
	}
	return true
}
