// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"fmt"
	"strings"

	"github.com/faultline-go/faultline/mem"
)

// Maps returns the text of /proc/PID/maps.
func (p *Process) Maps() string {
	var b strings.Builder
	p.eachVMA(func(as *space, v *vma) {
		b.WriteString(as.mapsLine(v))
		b.WriteByte('\n')
	})
	return b.String()
}

// Smaps returns for every VMA the line of Maps and the VmFlags line of
// /proc/PID/smaps.
func (p *Process) Smaps() string {
	var b strings.Builder
	p.eachVMA(func(as *space, v *vma) {
		b.WriteString(as.mapsLine(v))
		b.WriteString("\nVmFlags: " + v.flags.String() + "\n")
	})
	return b.String()
}

func (p *Process) eachVMA(fn func(as *space, v *vma)) {
	as := p.as.Load()
	as.mu.RLock()
	defer as.mu.RUnlock()
	as.vmas.all(mem.Range{Start: 0, End: taskSize}, func(v *vma) bool {
		fn(as, v)
		return true
	})
}

// perms returns the permissions as maps shows them.
func (v *vma) perms() string {
	perm := []byte("---p")
	for i, f := range []vmaFlags{vmRead, vmWrite, vmExec, vmMayShare} {
		if v.is(f) {
			perm[i] = "rwxs"[i]
		}
	}
	return string(perm)
}

// String returns the names of flags as smaps shows them, each with a space after
// it.
func (f vmaFlags) String() string {
	s := ""
	for _, n := range flagNames {
		if f&n.flag != 0 {
			s += n.name + " "
		}
	}
	return s
}

func (as *space) mapsLine(v *vma) string {
	var off, inode uint64
	name := ""
	if v.obj != nil {
		off, inode, name = v.off, v.obj.id, v.obj.name
	} else if as.brk > heapStart && v.start < as.brk && v.end > heapStart {
		name = "[heap]"
	}
	line := fmt.Sprintf("%08x-%08x %s %08x %02x:%02x %d ", uint64(v.start), uint64(v.end), v.perms(), off, 0, min(inode, 1), inode)
	if name != "" {
		line = fmt.Sprintf("%-73s%s", line, name)
	}
	return line
}

// Pagemap returns what /proc/PID/pagemap has for the page at a, without the
// frame number: bit 63 present, 62 a marker, 61 of an object, 57 protected
// through a descriptor, 56 mapped once.
func (p *Process) Pagemap(a mem.Addr) uint64 {
	as := p.as.Load()
	s := as.pt.slot(a, false)
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, huge := s.huge, true
	if e == 0 {
		e, huge = s.get(index(a)), false
	}
	return as.k.pagemap(e, huge)
}

func (k *Kernel) pagemap(e pte, huge bool) (bits uint64) {
	const (
		exclusive = 1 << 56
		wp        = 1 << 57
		file      = 1 << 61
		swap      = 1 << 62
		present   = 1 << 63
	)
	if e&pteWP != 0 {
		bits |= wp
	}
	switch {
	case e.marker() && huge:
		return bits // of these no more is told
	case e.marker():
		return bits | swap
	}
	if !e.present() {
		return bits
	}
	bits |= present
	fr := e.frame()
	var word uint32
	switch {
	case huge:
		word = k.mem.huge.page(fr).word.Load()
	case fr != 0:
		c, n := k.mem.chunk(fr)
		word = c.word[n].Load()
	}
	refs := word & frameCount
	if word&frameCached != 0 {
		bits |= file
		refs-- // the object's own
	}
	if refs == 1 {
		bits |= exclusive
	}
	return bits
}

// PageState says what is known of one page.
type PageState struct {
	Present   bool
	Zero      bool // the zero page
	WP        bool // protected through a descriptor, or marked so
	Poison    bool
	Writable  bool // a store needs no fault
	Exclusive bool // the process's own, not shared by fork
	Pinned    bool
	Huge      bool
}

// PageState returns the state of the page at a.
func (p *Process) PageState(a mem.Addr) (st PageState) {
	as := p.as.Load()
	s := as.pt.slot(a, false)
	if s == nil {
		return st
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.huge
	st.Huge = e != 0
	if !st.Huge {
		e = s.get(index(a))
	}
	st.Present, st.WP, st.Poison, st.Writable = e.present(), e&pteWP != 0, e&ptePoison != 0, e.writable()
	if !st.Present {
		return st
	}
	fr := e.frame()
	st.Pinned = as.k.pinned(pin{fr, st.Huge})
	if st.Huge {
		st.Exclusive = as.k.mem.huge.page(fr).word.Load()&frameExclusive != 0
		return st
	}
	st.Zero = fr == 0
	st.Exclusive = as.k.mem.has(fr, frameExclusive)
	return st
}
