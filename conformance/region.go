// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"strings"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// Region is memory of the case's kind, with nothing mapped on either side.
type Region struct {
	c    *C
	proc *Proc
	mem.Range
	Memory Memory
	fd     uint64 // of the memfd, if there is one
	flags  int    // of its mmap
}

// none is the descriptor of memory without a file.
const none = ^uint64(0)

// Map maps n pages of the case's kind of memory.
func (p *Proc) Map(n int) *Region { return p.MapAs(p.c.Memory, n, ProtRead|ProtWrite) }

// MapAs maps n pages of some kind of memory.
func (p *Proc) MapAs(m Memory, n, prot int) *Region {
	size := uint64(n) * m.PageSize()
	r := &Region{c: p.c, proc: p, Memory: m, fd: none, flags: MapPrivate}
	switch {
	case m == Anon:
		r.flags |= MapAnonymous
	default:
		flags := 0
		if m.Huge() {
			// A page for the region, one for a copy, and some spare.
			if err := p.c.backend.Huge(2*n + 2); err != nil {
				p.c.Skipf("%v", err)
			}
			flags = MfdHugetlb
		}
		r.fd = p.Do(MemfdCreate, flags)
		p.Do(Ftruncate, r.fd, size)
		switch {
		case m.Shared():
			r.flags = MapShared
		case m.Huge():
			// Linux 6.18 loses the reservation of private huge pages when
			// part of a mapping moves, and the pool cannot shrink any more.
			r.flags |= MapNoReserve
		}
	}
	r.Range = p.place(size)
	p.Do(Mmap, r.Start, size, prot, r.flags|MapFixedNoReplace, r.fd, 0)
	return r
}

// place finds n free bytes in the arena.
func (p *Proc) place(n uint64) mem.Range {
	r := mem.MakeRange(p.space.next, n)
	p.space.next = (r.End + 2*arenaGap - 1) &^ (arenaGap - 1)
	return r
}

// Alias maps the region's file once more, as shared.
func (r *Region) Alias() *Region {
	a := &Region{c: r.c, proc: r.proc, Memory: r.Memory, fd: r.fd, flags: MapShared}
	a.Range = r.proc.place(r.Len())
	r.proc.Do(Mmap, a.Start, r.Len(), ProtRead|ProtWrite, MapShared|MapFixedNoReplace, r.fd, 0)
	return a
}

// Page returns the size of a page.
func (r *Region) Page() uint64 { return r.Memory.PageSize() }

// At returns the address of page i.
func (r *Region) At(i int) mem.Addr { return r.Start + mem.Addr(uint64(i)*r.Page()) }

// Pages returns the range of n pages from page i.
func (r *Region) Pages(i, n int) mem.Range { return mem.MakeRange(r.At(i), uint64(n)*r.Page()) }

// Has checks that page i is present for th and consists of v.
func (r *Region) Has(th *Thread, i int, v byte) {
	th.Sees(r.At(i), v)
	th.Sees(r.At(i)+mem.Addr(r.Page()-1), v)
}

// Remap changes the mapping of pages by mapping anew, without a registration.
func (r *Region) Remap(i, n int) {
	s := r.Pages(i, n)
	r.proc.Do(Mmap, s.Start, s.Len(), ProtRead|ProtWrite, r.flags|MapFixed, r.fd, uint64(i)*r.Page())
}

// Layout returns the mappings of the region and around it, one a string, such
// as "0+2 rw-p um": the first page, how many, permissions, and which of the
// flags um, uw and ui there are.
func (r *Region) Layout() string { return r.proc.LayoutOf(r.Range, r.Page()) }

// LayoutOf is Layout of any range.
func (p *Proc) LayoutOf(r mem.Range, page uint64) string {
	vmas, err := p.p.Maps(r)
	p.c.Must(err)
	var parts []string
	for _, v := range vmas {
		s := fmt.Sprintf("%d+%d %s", int64(v.Start-r.Start)/int64(page), v.Len()/page, v.Perms)
		for _, f := range strings.Fields(v.Flags) {
			if f == "um" || f == "uw" || f == "ui" {
				s += " " + f
			}
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, ", ")
}

// WantLayout checks Layout.
func (r *Region) WantLayout(want string) {
	// Cases write private mappings; the permissions of others end in s.
	if r.flags&MapShared != 0 {
		want = strings.NewReplacer("rw-p", "rw-s", "r--p", "r--s", "---p", "---s").Replace(want)
	}
	Is(r.c, "layout", r.Layout(), want)
}

// Pagemap returns the word of the pagemap about page i.
func (r *Region) Pagemap(i int) uint64 { return r.proc.pagemap(r.At(i)) }

func (p *Proc) pagemap(a mem.Addr) uint64 {
	w, err := p.p.Pagemap(mem.MakeRange(a, mem.PageSize))
	p.c.Must(err)
	return w[0]
}

// WantProtected checks the uffd-wp bit of page i.
func (r *Region) WantProtected(i int, want bool) {
	Is(r.c, fmt.Sprintf("write-protect bit of page %d", i), r.Pagemap(i)&PagemapWP != 0, want)
}

// modes returns the modes that a kind of memory can be registered for.
func (m Memory) modes() uapi.RegisterMode {
	all := uapi.UFFDIO_REGISTER_MODE_MISSING | uapi.UFFDIO_REGISTER_MODE_WP
	if m.File() {
		all |= uapi.UFFDIO_REGISTER_MODE_MINOR
	}
	return all
}
