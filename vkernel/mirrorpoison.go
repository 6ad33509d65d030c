// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"slices"

	"github.com/faultline-go/faultline/mem"
)

// unscar gives the mappings of poisoned pages, which have no permissions outside,
// those that the mirror knows, and makes one of what they have cut up.
func (as *space) unscar(maps []Mapping, scars []mem.Range) []Mapping {
	if len(scars) == 0 {
		return maps
	}
	out := maps[:0:0]
	for _, m := range maps {
		if slices.ContainsFunc(scars, m.Range.Overlaps) {
			if v := as.vmas.find(m.Range.Start); v != nil && v.start <= m.Range.Start {
				m.Prot = int(v.flags & vmAccess)
			}
		}
		if last := len(out) - 1; last >= 0 && out[last].precedes(&m) {
			out[last].Range.End = m.Range.End
			continue
		}
		out = append(out, m)
	}
	return out
}

// precedes reports whether n could be of the same VMA as m.
func (m *Mapping) precedes(n *Mapping) bool {
	return m.Range.End == n.Range.Start && m.Prot == n.Prot && m.Shared == n.Shared && m.Fixed == n.Fixed &&
		m.Object == n.Object && (m.Object == Object{} || m.Off+m.Range.Len() == n.Off)
}

// scars returns the pages of r that are poisoned.
func (as *space) scars(r mem.Range) (rs []mem.Range) {
	if !as.scarred.Load() {
		return nil
	}
	r.End = min(r.End, taskSize)
	note := func(a mem.Addr, size uint64, e pte) pte {
		if e&ptePoison != 0 {
			rs = appendRange(rs, mem.MakeRange(a, size))
		}
		return e
	}
	as.pt.update(r, func(a mem.Addr, e pte) pte { return note(a, mem.PageSize, e) })
	as.pt.updateHuge(r, func(a mem.Addr, e pte) pte { return note(a, HugePageSize, e) })
	return rs
}

// restore poisons what is still mapped of pages that were.
func (as *space) restore(scars []mem.Range) {
	for _, r := range scars {
		as.vmas.all(r, func(v *vma) bool {
			part := v.rng().Intersect(r)
			for a := part.Start; a < part.End; a += mem.Addr(v.pageMask() + 1) {
				s := as.pt.slot(a, true)
				s.mu.Lock()
				if v.hugetlb() {
					s.huge = ptePoison
				} else {
					s.set(index(a), ptePoison)
				}
				s.mu.Unlock()
			}
			return true
		})
	}
}
