// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/mem"
)

// categories are sets of what a scan asks for, or returns. A bit that no kernel
// knows is among them.
var categories = []uint64{
	0, conformance.PageIsWritten, conformance.PageIsWPAllowed, conformance.PageIsPresent, conformance.PageIsSwapped,
	conformance.PageIsFile, conformance.PageIsPfnzero, conformance.PageIsHuge,
	conformance.PageIsPresent | conformance.PageIsSwapped, conformance.PageIsWPAllowed | conformance.PageIsWritten,
	conformance.PageIsSoftDirty, conformance.PageIsGuard, 1 << 20,
}

// everyCategory is what most scans return.
const everyCategory = conformance.PageIsGuard<<1 - 1

// scan makes a PAGEMAP_SCAN of a range, which may protect what it finds.
func scan(m *machine, o Op) {
	reg, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
	if o.Arg[0] >= 32 {
		r = mem.Range{Start: reg.below().Start, End: reg.all.End}
	}
	start, n := rng(r, o.Arg[5])
	flags := even([]uint64{0, conformance.ScanWPMatching, conformance.ScanWPMatching | conformance.ScanCheckWPAsync,
		0, conformance.ScanWPMatching, conformance.ScanCheckWPAsync, conformance.ScanWPMatching | conformance.ScanCheckWPAsync, 4}, o.Arg[4])
	room := pick([]uint64{16, 1, 2, 3}, o.Arg[6])
	most := pick([]uint64{0, 1, 2, 3}, o.Arg[6]/2)
	if flags&conformance.ScanWPMatching != 0 {
		reg.mark()
	}
	mask := uint64(0)
	anyOf, inverted := pick(categories, o.Arg[7]/2), pick(categories, o.Arg[2]^o.Arg[7])
	if o.Arg[3] >= 24 {
		mask = even(categories[:10], o.Arg[7])
	}
	told := uint64(everyCategory)
	if o.Arg[0]%8 == 7 {
		told = even(categories, o.Arg[7])
	}
	vec := m.scratch + 4096
	switch o.Arg[0] {
	case 61:
		room = 0
	case 62:
		vec = 0
	case 63:
		vec, room = 0, 0 // the regions are not asked for
	}
	var b []byte
	for _, w := range []uint64{96, flags, start, start + n, sentinel, uint64(vec), room, most, inverted, mask, anyOf, told} {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	m.p.Poke(m.scratch, b)
	res := m.call(conformance.Ioctl, m.pagemap, conformance.PagemapScan, m.scratch)
	m.p.Peek(m.scratch, b)
	var found strings.Builder
	if res.Errno == 0 && vec != 0 {
		out := make([]byte, 24*res.Value)
		m.p.Peek(vec, out)
		for ; len(out) > 0; out = out[24:] {
			word := func(i int) uint64 { return binary.LittleEndian.Uint64(out[8*i:]) }
			fmt.Fprintf(&found, " %#x+%#x %#x", int64(word(0)-uint64(reg.all.Start)), word(1)-word(0), word(2))
		}
	}
	m.say("  flags %d, %#x^%#x of %#x: %v, up to %#x%s", flags, mask, inverted, anyOf, res,
		binary.LittleEndian.Uint64(b[32:]), &found)
}
