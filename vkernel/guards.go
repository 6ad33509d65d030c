// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"strings"

	"github.com/faultline-go/faultline/mem"
)

// Guard is memory of a mirror that is registered, or a page that is poisoned and
// is not, or memory of huge pages.
type Guard struct {
	Range mem.Range
	Perms string // of the VMA, such as "rw-"
	Flags string // its modes, as smaps shows them, such as "um uw"; none if it is not registered
	Huge  bool
}

// Guards returns the memory of Registered, one VMA after the other.
func (p *Process) Guards() (gs []Guard) {
	p.eachVMA(func(as *space, v *vma) {
		parts := []mem.Range{v.rng()}
		if v.uffd == nil && !v.hugetlb() {
			parts = as.scars(v.rng())
		}
		for _, r := range parts {
			gs = append(gs, Guard{Range: r, Perms: v.perms()[:3], Flags: strings.TrimSpace((v.flags & vmUffd).String()), Huge: v.hugetlb()})
		}
	})
	return gs
}
