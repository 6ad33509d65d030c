// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import "github.com/faultline-go/faultline/mem"

// protections remembers what the pages of registered memory really allow at
// the moment. What is alike costs nothing by its size: programs reserve TiBs.
type protections struct {
	giants map[mem.Addr]*giant // by address in GiB
}

const (
	giantShift = 30
	chunkShift = 21
)

// giant is 1 GiB: one value for all, or one chunk for each 2 MiB.
type giant struct {
	all    uint8
	chunks *[1 << (giantShift - chunkShift)]chunk // nil if all are alike
}

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

// at returns the permissions of a, as they were set last.
func (p *protections) at(a mem.Addr) uint8 {
	g := p.giants[a>>giantShift]
	switch {
	case g == nil:
		return unknown
	case g.chunks == nil:
		return g.all
	}
	c := g.chunk(a)
	if c.pages == nil {
		return c.all
	}
	return c.pages[pageOf(a)]
}

func (g *giant) chunk(a mem.Addr) *chunk {
	return &g.chunks[a>>chunkShift&(1<<(giantShift-chunkShift)-1)]
}

func pageOf(a mem.Addr) int { return int(a >> mem.PageShift & (1<<(chunkShift-mem.PageShift) - 1)) }

// split calls f for the parts of r, each in one block of that size.
func split(r mem.Range, shift int, f func(part mem.Range)) {
	for a := r.Start; a < r.End; {
		next := min((a>>shift+1)<<shift, r.End)
		f(mem.Range{Start: a, End: next})
		a = next
	}
}

// set notes that r has the permissions prot.
func (p *protections) set(r mem.Range, prot int) {
	is := uint8(prot)
	split(r, giantShift, func(part mem.Range) {
		key := part.Start >> giantShift
		if part.Len() == 1<<giantShift && is == unknown {
			delete(p.giants, key)
			return
		}
		g := p.giants[key]
		if g == nil {
			if is == unknown {
				return
			}
			if p.giants == nil {
				p.giants = make(map[mem.Addr]*giant)
			}
			g = &giant{all: unknown}
			p.giants[key] = g
		}
		g.set(part, is)
	})
}

func (g *giant) set(r mem.Range, is uint8) {
	if r.Len() == 1<<giantShift {
		*g = giant{all: is}
		return
	}
	if g.chunks == nil {
		if g.all == is {
			return
		}
		g.chunks = new([1 << (giantShift - chunkShift)]chunk)
		for i := range g.chunks {
			g.chunks[i].all = g.all
		}
	}
	split(r, chunkShift, func(part mem.Range) { g.chunk(part.Start).set(part, is) })
}

func (c *chunk) set(r mem.Range, is uint8) {
	if r.Len() == 1<<chunkShift {
		*c = chunk{all: is}
		return
	}
	if c.pages == nil {
		if c.all == is {
			return
		}
		c.pages = new([1 << (chunkShift - mem.PageShift)]uint8)
		for i := range c.pages {
			c.pages[i] = c.all
		}
	}
	for a := r.Start; a < r.End; a += mem.PageSize {
		c.pages[pageOf(a)] = is
	}
}

// parts calls f for parts of r that are alike, in order; neighbours may be alike, too.
// f must not set anything.
func (p *protections) parts(r mem.Range, f func(part mem.Range, is uint8)) {
	split(r, giantShift, func(part mem.Range) {
		g := p.giants[part.Start>>giantShift]
		switch {
		case g == nil:
			f(part, unknown)
			return
		case g.chunks == nil:
			f(part, g.all)
			return
		}
		split(part, chunkShift, func(part mem.Range) {
			c := g.chunk(part.Start)
			if c.pages == nil {
				f(part, c.all)
				return
			}
			for a := part.Start; a < part.End; a += mem.PageSize {
				f(mem.MakeRange(a, mem.PageSize), c.pages[pageOf(a)])
			}
		})
	})
}

// runs calls f for the runs of r that are alike. f may set what it is called with.
func (p *protections) runs(r mem.Range, f func(run mem.Range, is uint8)) {
	type run struct {
		mem.Range
		is uint8
	}
	var all []run
	p.parts(r, func(part mem.Range, is uint8) {
		if n := len(all); n != 0 && all[n-1].is == is {
			all[n-1].End = part.End
		} else {
			all = append(all, run{part, is})
		}
	})
	for _, x := range all {
		f(x.Range, x.is)
	}
}

// differ calls f for the runs of r that do not have prot. f may set what it is called
// with.
func (p *protections) differ(r mem.Range, prot int, f func(run mem.Range)) {
	var all []mem.Range
	p.parts(r, func(part mem.Range, is uint8) {
		if is == uint8(prot) {
			return
		}
		if n := len(all); n != 0 && all[n-1].End == part.Start {
			all[n-1].End = part.End
		} else {
			all = append(all, part)
		}
	})
	for _, x := range all {
		f(x)
	}
}

// forget drops what is known of r.
func (p *protections) forget(r mem.Range) { p.set(r, unknown) }

func (p *protections) clone() protections {
	n := protections{giants: make(map[mem.Addr]*giant, len(p.giants))}
	for k, g := range p.giants {
		d := giant{all: g.all}
		if g.chunks != nil {
			chunks := *g.chunks
			for i := range chunks {
				if c := &chunks[i]; c.pages != nil {
					pages := *c.pages
					c.pages = &pages
				}
			}
			d.chunks = &chunks
		}
		n.giants[k] = &d
	}
	return n
}
