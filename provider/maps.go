// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/vkernel"
)

// mapping is an entry of /proc/PID/maps or smaps.
type mapping struct {
	mem.Range
	perms string
	off   uint64
	file  string         // device, inode, and the name if there is one
	more  []string       // the other lines of smaps
	guard *vkernel.Guard // what of it is registered; nil for nothing
}

// mapsText returns the text of /proc/PID/maps, or smaps, as it would be had
// registered memory the permissions that it has for the program.
func (sp *space) mapsText(pid int, name string) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		return "" // the kernel's own answer is an error, too
	}
	real, ok := parseMappings(string(b))
	if !ok {
		return ""
	}
	var text strings.Builder
	for _, m := range join(cut(real, sp.v.Guards())) {
		m.write(&text)
	}
	return text.String()
}

func parseMappings(text string) (all []mapping, ok bool) {
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		f := strings.SplitN(line, " ", 6) // range, perms, offset, device, inode, name
		from, to, isRange := strings.Cut(f[0], "-")
		if !isRange || len(f) < 5 {
			if len(all) == 0 {
				return nil, false
			}
			last := &all[len(all)-1]
			last.more = append(last.more, line)
			continue
		}
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		off, err3 := strconv.ParseUint(f[2], 16, 64)
		if err1 != nil || err2 != nil || err3 != nil || len(f[1]) != 4 {
			return nil, false
		}
		m := mapping{Range: mem.Range{Start: mem.Addr(start), End: mem.Addr(end)}, perms: f[1], off: off, file: f[3] + " " + f[4]}
		if len(f) == 6 {
			if n := strings.TrimLeft(f[5], " "); n != "" {
				m.file += " " + n
			}
		}
		all = append(all, m)
	}
	return all, true
}

// cut splits what is real where guarded memory begins and ends.
func cut(real []mapping, guards []vkernel.Guard) (parts []mapping) {
	for _, m := range real {
		at := m.Start
		for i := range guards {
			r := guards[i].Range.Intersect(mem.Range{Start: at, End: m.End})
			if r.Empty() {
				continue
			}
			if at < r.Start {
				parts = append(parts, m.part(mem.Range{Start: at, End: r.Start}, nil))
			}
			parts = append(parts, m.part(r, &guards[i]))
			at = r.End
		}
		if at < m.End {
			parts = append(parts, m.part(mem.Range{Start: at, End: m.End}, nil))
		}
	}
	return parts
}

// part returns what of m lies in r. Numbers of smaps are divided by length, which
// is a guess where a mapping is partly registered.
func (m *mapping) part(r mem.Range, g *vkernel.Guard) mapping {
	p := *m
	p.Range, p.guard = r, g
	if g != nil && (g.Flags != "" || m.perms[:3] == "---") {
		p.perms = g.Perms + m.perms[3:]
	}
	if !strings.HasPrefix(m.file, "00:00 0") { // an object is behind it
		p.off += uint64(r.Start - m.Start)
	}
	p.more = slices.Clone(m.more)
	for i, line := range p.more {
		switch key, kB, ok := number(line); {
		case strings.HasPrefix(line, "VmFlags:"):
			p.more[i] = p.flags(line)
		case ok && r != m.Range:
			p.more[i] = withNumber(key, kB*r.Len()/m.Len()/4*4)
		}
	}
	return p
}

// number takes a line of smaps apart that says how much there is of something.
func number(line string) (key string, kB uint64, ok bool) {
	key, rest, _ := strings.Cut(line, ":")
	rest, ok = strings.CutSuffix(rest, " kB")
	kB, err := strconv.ParseUint(strings.TrimSpace(rest), 10, 64)
	return key, kB, ok && err == nil && !strings.HasSuffix(key, "PageSize")
}

func withNumber(key string, kB uint64) string { return fmt.Sprintf("%-16s%8d kB", key+":", kB) }

// flagOrder has the flags of smaps that are not the same for the program.
var flagOrder = []string{"rd", "wr", "ex"}

// flags returns the line of flags that the program is to see.
func (m *mapping) flags(line string) string {
	var now []string
	for i, f := range flagOrder {
		if m.perms[i] != '-' {
			now = append(now, f)
		}
	}
	for _, f := range strings.Fields(line)[1:] {
		if !slices.Contains(flagOrder, f) {
			now = append(now, f)
		}
	}
	if m.guard != nil && m.guard.Flags != "" {
		now = append(now, m.guard.Flags)
	}
	return "VmFlags: " + strings.Join(now, " ") + " "
}

// join puts together what only our permissions have cut up.
func join(parts []mapping) (all []mapping) {
	for _, m := range parts {
		if n := len(all); n != 0 && all[n-1].continues(&m) {
			all[n-1].append(&m)
			continue
		}
		all = append(all, m)
	}
	return all
}

// continues reports whether m is the continuation of p.
func (p *mapping) continues(m *mapping) bool {
	if p.End != m.Start || p.file != m.file || p.guard == nil && m.guard == nil {
		return false
	}
	if p.guard == m.guard {
		return p.perms == m.perms
	}
	// A poisoned page in memory that nobody has registered is a part of that.
	plain := func(x *mapping) bool { return x.guard == nil || x.guard.Flags == "" && !x.guard.Huge }
	return plain(p) && plain(m) && p.perms == m.perms
}

func (p *mapping) append(m *mapping) {
	p.End = m.End
	for i := range p.more {
		key, a, ok := number(p.more[i])
		if _, b, same := number(m.more[i]); ok && same {
			p.more[i] = withNumber(key, a+b)
		}
	}
}

func (m *mapping) write(text *strings.Builder) {
	dev, rest, _ := strings.Cut(m.file, " ")
	inode, name, _ := strings.Cut(rest, " ")
	line := fmt.Sprintf("%08x-%08x %s %08x %s %s ", uint64(m.Start), uint64(m.End), m.perms, m.off, dev, inode)
	if name != "" {
		line = fmt.Sprintf("%-73s%s", line, name)
	}
	text.WriteString(line)
	text.WriteByte('\n')
	for _, l := range m.more {
		text.WriteString(l)
		text.WriteByte('\n')
	}
}
