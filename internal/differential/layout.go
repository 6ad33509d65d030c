// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/mem"
)

// layout says what is mapped, in the process and in its children, and which
// pages are there and protected.
func (m *machine) layout() {
	m.layoutOf(m.p, "region")
	for i := range m.regions {
		if r := &m.regions[i]; r.file != none {
			m.say("  alias %d: %s", i, m.letters(m.p, r, r.alias))
		}
	}
	for _, k := range m.kids {
		m.layoutOf(k.proc, k.name+": region")
	}
}

func (m *machine) layoutOf(p conformance.Process, what string) {
	vmas, err := p.Maps(mem.MakeRange(base, regions*gap))
	m.must(err)
	for i := range m.regions {
		r := &m.regions[i]
		var b strings.Builder
		for _, v := range vmas {
			if v.Overlaps(mem.Range{Start: r.below().Start, End: r.all.Start + mem.Addr(max(r.all.Len(), 1<<19))}) {
				fmt.Fprintf(&b, " %#x+%#x %s%s", int64(v.Start-r.all.Start), v.Len(), v.Perms, interesting(v.Flags))
			}
		}
		if slices.ContainsFunc(vmas, func(v conformance.VMA) bool { return v.Overlaps(r.below()) }) {
			b.WriteString(" <" + m.letters(p, r, r.below()))
		}
		m.say("  %s %d:%s |%s", what, i, &b, m.letters(p, r, r.all))
	}
}

// letters has one for every page of at, which are of the size of r's.
func (m *machine) letters(p conformance.Process, r *region, at mem.Range) string {
	words, err := p.Pagemap(at)
	m.must(err)
	var b strings.Builder
	for k := 0; k < len(words); k += int(r.kind.PageSize() / mem.PageSize) {
		b.WriteString(pageLetter(words[k]))
	}
	return b.String()
}

// interesting is VmFlags but for what depends on how a kernel was built: whether
// it accounts for pages that were written since somebody asked.
func interesting(flags string) string {
	var out []string
	for _, f := range strings.Fields(flags) {
		if f != "sd" {
			out = append(out, f)
		}
	}
	sort.Strings(out)
	return " " + strings.Join(out, " ")
}

// pageLetter is a page's state: there, and with a capital protected; a mark of
// protection; or ! for a mark without, which is poison. What is there may be of a
// file, and mapped only once. That it was written since somebody asked is left
// out, and where it is, of course.
func pageLetter(w uint64) string {
	state := "."
	switch {
	case w&conformance.PagemapPresent != 0 && w&conformance.PagemapWP != 0:
		state = "P"
	case w&conformance.PagemapPresent != 0:
		state = "p"
	case w&conformance.PagemapWP != 0 && w&conformance.PagemapSwapped != 0:
		state = "W"
	case w&conformance.PagemapWP != 0:
		state = "w" // as W, of huge pages
	case w&conformance.PagemapSwapped != 0:
		state = "!"
	}
	for _, x := range []struct {
		bit  uint64
		name string
	}{
		{conformance.PagemapFile, "f"}, {conformance.PagemapExclusive, "x"}, {conformance.PagemapGuard, "g"},
	} {
		if w&x.bit != 0 {
			state += x.name
		}
	}
	return state
}
