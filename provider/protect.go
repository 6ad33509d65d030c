// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/vkernel"
)

// apply gives the registered memory of r the permissions that the mirror says.
// It is called when something has been decided and before anybody who waits
// for that goes on.
func (sp *space) apply(r mem.Range) {
	sp.ops = sp.ops[:0]
	for _, g := range sp.guarded {
		if part := g.Intersect(r); !part.Empty() {
			sp.v.Protection(part, sp.want)
		}
	}
	if len(sp.ops) != 0 {
		sp.do("set permissions", sp.ops)
	}
}

// want adds what makes part have prot.
func (sp *space) want(part mem.Range, prot int) {
	if sp.managed != nil && len(sp.managed.guards) != 0 {
		// What guards keep closed is open otherwise: the signal is the kernel's.
		all := []mem.Range{part}
		for _, r := range mem.Subtract(all, mem.Subtract(all, sp.managed.guards)) {
			sp.permit(r, sp.v.Permissions(r.Start))
		}
		for _, r := range mem.Subtract(all, sp.managed.guards) {
			sp.permit(r, prot)
		}
		return
	}
	sp.permit(part, prot)
}

// permit adds what makes part have prot. What is sealed is closed.
func (sp *space) permit(part mem.Range, prot int) {
	const mask = vkernel.HugePageSize - 1
	whole := (part.Start|part.End)&mask == 0 // it may be of huge pages, which cannot be cut
	sp.prot.differ(part, prot, func(run mem.Range) {
		if whole {
			run = mem.Range{Start: run.Start &^ mask, End: (run.End + mask) &^ mask}
		}
		if !sp.seals {
			sp.op(unix.SYS_MPROTECT, run, prot)
			sp.prot.set(run, prot)
			return
		}
		sp.prot.runs(run, func(r mem.Range, is uint8) {
			if is == sealed && prot == unix.PROT_NONE {
				return
			}
			if is == sealed {
				sp.op(unix.SYS_MADVISE, r, unix.MADV_GUARD_REMOVE)
			}
			sp.op(unix.SYS_MPROTECT, r, prot)
			sp.prot.set(r, prot)
		})
	})
}

// op adds a call about r for the agent.
func (sp *space) op(nr uintptr, r mem.Range, arg int) {
	sp.ops = append(sp.ops, inject.Op{NR: nr, Args: [6]uintptr{uintptr(r.Start), uintptr(r.Len()), uintptr(arg)}})
}

// unseal closes what is sealed in r in the other way, so that it can be filled.
// Where nobody is there who could touch it before that, it is opened at once, which
// takes one change of permissions instead of two, and no mapping of its own for the
// time between.
func (sp *space) unseal(r mem.Range) {
	if !sp.seals {
		return
	}
	still := sp.ts.Still()
	sp.ops = sp.ops[:0]
	sp.prot.runs(r, func(run mem.Range, is uint8) {
		switch {
		case is != sealed:
		case still:
			sp.op(unix.SYS_MADVISE, run, unix.MADV_GUARD_REMOVE)
			sp.prot.forget(run)
			sp.v.Allowed(run, func(part mem.Range, prot int) {
				sp.op(unix.SYS_MPROTECT, part, prot)
				sp.prot.set(part, prot)
			})
		default:
			sp.op(unix.SYS_MPROTECT, run, unix.PROT_NONE)
			sp.op(unix.SYS_MADVISE, run, unix.MADV_GUARD_REMOVE)
			sp.prot.set(run, unix.PROT_NONE)
		}
	})
	if len(sp.ops) != 0 {
		sp.do("open what is sealed", sp.ops)
	}
}

// canSeal reports whether this kernel has guards; since Linux 6.13.
var canSeal = sync.OnceValue(func() bool {
	b, err := unix.Mmap(-1, 0, mem.PageSize, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return false
	}
	defer unix.Munmap(b)
	return unix.Madvise(b, unix.MADV_GUARD_INSTALL) == nil
})

// follow notices what has become registered and what no longer is. Memory
// that is nobody's again, and still there, gets back what it had.
func (sp *space) follow() {
	before := sp.guarded
	sp.guarded = sp.v.Registered()
	sp.kernel = sp.v.KernelFaults()
	sp.ops = sp.ops[:0]
	for _, r := range mem.Subtract(before, sp.guarded) {
		sp.v.Protection(r, sp.want)
		sp.prot.forget(r)
		sp.aliases = sp.unalias(r)
	}
	if len(sp.ops) != 0 {
		sp.do("give permissions back", sp.ops)
	}
}

// unalias drops what aliases show of r, and returns what is left of them.
func (sp *space) unalias(r mem.Range) (left []alias) {
	for _, al := range sp.aliases {
		for _, part := range mem.Subtract([]mem.Range{al.Range}, []mem.Range{r}) {
			left = append(left, alias{part, al.at + (part.Start - al.Start)})
		}
		if gone := al.Intersect(r); !gone.Empty() {
			sp.ops = append(sp.ops, inject.Op{NR: unix.SYS_MUNMAP,
				Args: [6]uintptr{uintptr(al.at + (gone.Start - al.Start)), uintptr(gone.Len())}})
		}
	}
	return left
}

// unaliased returns what of r has no alias.
func (sp *space) unaliased(r mem.Range) []mem.Range {
	rest := []mem.Range{r}
	for _, al := range sp.aliases {
		rest = mem.Subtract(rest, []mem.Range{al.Range})
	}
	return rest
}

// mirrorShared makes aliases for the shared memory of r that has none.
func (sp *space) mirrorShared(r mem.Range) bool {
	ok := true
	sp.v.Shared(r, func(part mem.Range) {
		for _, part := range sp.unaliased(part) {
			ok = ok && sp.mirrorPart(part)
		}
	})
	return ok
}

// mapAgain maps shared memory once more.
func (sp *space) mapAgain(part mem.Range) (uintptr, error) {
	if sp.v.Huge(part.Start) {
		at, err := sp.mapHuge(part, unix.MAP_SHARED)
		return uintptr(at), err
	}
	// A length of zero makes mremap do that.
	return sp.agent.Call(unix.SYS_MREMAP, uintptr(part.Start), 0, uintptr(part.Len()), unix.MREMAP_MAYMOVE, inject.Hint())
}

// mirrorPart makes one alias.
func (sp *space) mirrorPart(part mem.Range) bool {
	// Locked memory would be brought in where it can be accessed.
	if !sp.do("map shared memory once more", []inject.Op{{NR: unix.SYS_MPROTECT,
		Args: [6]uintptr{uintptr(part.Start), uintptr(part.Len()), unix.PROT_NONE}}}) {
		return false
	}
	sp.prot.set(part, unix.PROT_NONE)
	at, err := sp.mapAgain(part)
	if err != nil {
		if !gone(err) {
			sp.p.fatal("map shared memory once more", err)
		}
		return false
	}
	sp.aliases = append(sp.aliases, alias{part, mem.Addr(at)})
	if sp.v.Huge(part.Start) {
		return sp.do("make an alias ours", []inject.Op{{NR: unix.SYS_MADVISE, Args: [6]uintptr{at, uintptr(part.Len()), unix.MADV_DONTFORK}}})
	}
	return sp.do("open an alias", []inject.Op{
		{NR: unix.SYS_MUNLOCK, Args: [6]uintptr{at, uintptr(part.Len())}},
		{NR: unix.SYS_MPROTECT, Args: [6]uintptr{at, uintptr(part.Len()), unix.PROT_READ | unix.PROT_WRITE}},
		{NR: unix.SYS_MADVISE, Args: [6]uintptr{at, uintptr(part.Len()), unix.MADV_DONTFORK}},
	})
}
