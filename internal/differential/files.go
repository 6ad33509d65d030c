// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/mem"
)

// partsOfPage are lengths that a size or a hole has more than whole pages. What
// is compared of a page lies around them.
var partsOfPage = []uint64{0, 1, 36, 68, 4095}

// punch makes a hole in the file of a region.
func punch(m *machine, o Op) {
	reg, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
	if reg.file == none {
		return
	}
	off, n := uint64(r.Start-reg.all.Start)+pick(partsOfPage, o.Arg[4]), r.Len()
	if less := pick(partsOfPage, o.Arg[5]); less > 0 {
		n = less + uint64(o.Arg[6]%2)*(n-mem.PageSize)
	}
	m.say("  %v", m.call(conformance.Fallocate, reg.file, conformance.FallocPunchHole|conformance.FallocKeepSize, off, n))
}

// truncate sets the size of the file of a region to less or more than it was.
func truncate(m *machine, o Op) {
	reg := &m.regions[int(o.Arg[1])%regions]
	if reg.file == none {
		return
	}
	size := uint64(int(o.Arg[2])%(reg.pages+2))*reg.kind.PageSize() + pick(partsOfPage, o.Arg[3])
	switch o.Arg[4] {
	case 62:
		size = ^uint64(0)
	case 63:
		size = 0
	}
	m.say("  %v", m.call(conformance.Ftruncate, reg.file, size))
}
