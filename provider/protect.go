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

// protections remembers what the pages of registered memory really allow at
// the moment.
type protections struct {
	chunks map[mem.Addr]*chunk
}

const chunkShift = 21

// chunk is 2 MiB: one value for all, or one for each page.
type chunk struct {
	all   uint8
	pages *[1 << (chunkShift - mem.PageShift)]uint8 // nil if all are alike
}

const (
	unknown = 0xff
	// sealed pages have a guard (MADV_GUARD_INSTALL), and permissions that do
	// not matter: closing pages that way makes no more mappings.
	sealed = 0x40
)

func (p *protections) chunk(a mem.Addr) *chunk {
	if p.chunks == nil {
		p.chunks = make(map[mem.Addr]*chunk)
	}
	c := p.chunks[a>>chunkShift]
	if c == nil {
		c = &chunk{all: unknown}
		p.chunks[a>>chunkShift] = c
	}
	return c
}

func (c *chunk) get(a mem.Addr) uint8 {
	if c.pages == nil {
		return c.all
	}
	return c.pages[a>>mem.PageShift&(1<<(chunkShift-mem.PageShift)-1)]
}

// each calls f for the part of r in every chunk.
func (p *protections) each(r mem.Range, f func(c *chunk, part mem.Range)) {
	for a := r.Start; a < r.End; {
		next := min((a>>chunkShift+1)<<chunkShift, r.End)
		f(p.chunk(a), mem.Range{Start: a, End: next})
		a = next
	}
}

// set notes that r has the permissions prot.
func (p *protections) set(r mem.Range, prot int) {
	p.each(r, func(c *chunk, part mem.Range) {
		if part.Len() == 1<<chunkShift {
			*c = chunk{all: uint8(prot)}
			return
		}
		if c.pages == nil {
			if c.all == uint8(prot) {
				return
			}
			c.pages = new([1 << (chunkShift - mem.PageShift)]uint8)
			for i := range c.pages {
				c.pages[i] = c.all
			}
		}
		for a := part.Start; a < part.End; a += mem.PageSize {
			c.pages[a>>mem.PageShift&(1<<(chunkShift-mem.PageShift)-1)] = uint8(prot)
		}
	})
}

// differ calls f for the runs of r that do not have prot.
func (p *protections) differ(r mem.Range, prot int, f func(run mem.Range)) {
	var run mem.Range
	flush := func() {
		if !run.Empty() {
			f(run)
		}
	}
	p.each(r, func(c *chunk, part mem.Range) {
		step := mem.Addr(mem.PageSize)
		if c.pages == nil {
			step = part.End - part.Start
		}
		for a := part.Start; a < part.End; a += step {
			switch {
			case c.get(a) == uint8(prot):
			case run.End == a && !run.Empty():
				run.End = a + step
			default:
				flush()
				run = mem.Range{Start: a, End: a + step}
			}
		}
	})
	flush()
}

// runs calls f for the runs of r that are alike. f may set what it is called with.
func (p *protections) runs(r mem.Range, f func(run mem.Range, is uint8)) {
	type part struct {
		mem.Range
		is uint8
	}
	var all []part
	p.each(r, func(c *chunk, of mem.Range) {
		step := mem.Addr(mem.PageSize)
		if c.pages == nil {
			step = of.End - of.Start
		}
		for a := of.Start; a < of.End; a += step {
			if is, n := c.get(a), len(all); n != 0 && all[n-1].is == is {
				all[n-1].End = a + step
			} else {
				all = append(all, part{mem.Range{Start: a, End: a + step}, is})
			}
		}
	})
	for _, x := range all {
		f(x.Range, x.is)
	}
}

// forget drops what is known of r, which must not be much larger than what there
// is.
func (p *protections) forget(r mem.Range) {
	if r.Empty() {
		return
	}
	p.each(r, func(c *chunk, part mem.Range) {
		if part.Len() == 1<<chunkShift {
			delete(p.chunks, part.Start>>chunkShift)
		}
	})
	p.set(mem.Range{Start: r.Start, End: min(r.End, (r.Start>>chunkShift+1)<<chunkShift)}, unknown)
	if last := r.End >> chunkShift << chunkShift; last > r.Start {
		p.set(mem.Range{Start: last, End: r.End}, unknown)
	}
}

func (p *protections) clone() protections {
	n := protections{chunks: make(map[mem.Addr]*chunk, len(p.chunks))}
	for k, c := range p.chunks {
		d := *c
		if c.pages != nil {
			pages := *c.pages
			d.pages = &pages
		}
		n.chunks[k] = &d
	}
	return n
}

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
