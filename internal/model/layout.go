// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/faultline-go/faultline/mem"
)

// vma is a line of the layout.
type vma struct {
	r     mem.Range
	perms string
	flags string // um, uw, ui and lo of VmFlags
}

// vmas returns the VMAs of a process in the regions of the script.
func (p *proc) vmas() (out []vma) {
	shown := mem.Range{Start: regionBase, End: regionBase + maxRegions*regionGap}
	if p.p.Dead() {
		return nil
	}
	var v vma
	for line := range strings.Lines(p.p.Smaps()) {
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok {
			v.flags = interesting(flags)
			if shown.Covers(v.r) {
				out = append(out, v)
			}
			continue
		}
		addrs, rest, _ := strings.Cut(line, " ")
		from, to, _ := strings.Cut(addrs, "-")
		start, _ := strconv.ParseUint(from, 16, 64)
		end, _ := strconv.ParseUint(to, 16, 64)
		v = vma{r: mem.Range{Start: mem.Addr(start), End: mem.Addr(end)}, perms: rest[:4]}
	}
	return out
}

// interesting keeps of VmFlags what the subsystem is about.
func interesting(flags string) string {
	var out []string
	for _, f := range strings.Fields(flags) {
		switch f {
		case "um", "uw", "ui", "lo", "dc", "wf":
			out = append(out, f)
		}
	}
	return strings.Join(out, " ")
}

func (m *machine) vmaLine(v vma) string {
	return strings.TrimRight(fmt.Sprintf("%08x-%08x %s %-8s %s",
		uint64(v.r.Start), uint64(v.r.End), v.perms, v.flags, m.span(v.r)), " ")
}

// layoutLines are the VMAs of a process as text.
func (m *machine) layoutLines(p *proc) []string {
	lines := []string{}
	for _, v := range p.vmas() {
		lines = append(lines, m.vmaLine(v))
	}
	return lines
}

// layouts tells which VMAs have changed.
func (m *machine) layouts() {
	for _, p := range m.procs {
		now := m.layoutLines(p)
		before := without(p.layout, now)
		after := without(now, p.layout)
		p.layout = now
		if len(before)+len(after) == 0 {
			continue
		}
		m.say(Event{Kind: KindLayout, Process: p.name, Text: "VMAs of " + p.name + ":", Before: before, After: after})
	}
}

// without returns what is in a and not in b.
func without(a, b []string) (out []string) {
	for _, l := range a {
		if !slices.Contains(b, l) {
			out = append(out, l)
		}
	}
	return out
}

// pageState names the state of a page.
func (p *proc) pageState(a mem.Addr) string {
	st := p.p.PageState(a)
	var out string
	switch {
	case st.Poison:
		return "poison"
	case st.Zero:
		out = "zero"
	case st.Present:
		out = "present"
	case st.WP:
		return "marker"
	default:
		return "none"
	}
	if st.WP {
		out += ",protected"
	}
	return out
}
