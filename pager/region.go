// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"slices"

	"github.com/faultline-go/faultline/mem"
)

// region is a registered range. Regions say where faults are ours and how far
// readahead may go; they are coarser than the kernel's VMAs.
type region struct {
	mem.Range
	// wipe: a forked child reads zeros here (MADV_WIPEONFORK).
	wipe bool
}

// regions is a sorted list of disjoint regions. Protected by Pager.mu.
type regions struct {
	list []region
	last int // index of the latest hit: faults cluster
}

// find returns the region that holds a, or nil. The pointer is valid until
// the next change.
func (rs *regions) find(a mem.Addr) *region {
	if rs.last < len(rs.list) && rs.list[rs.last].Contains(a) {
		return &rs.list[rs.last]
	}
	i := rs.at(a)
	if i < len(rs.list) && rs.list[i].Contains(a) {
		rs.last = i
		return &rs.list[i]
	}
	return nil
}

// at returns the index of the first region that ends above a.
func (rs *regions) at(a mem.Addr) int {
	i, _ := slices.BinarySearchFunc(rs.list, a, func(r region, a mem.Addr) int {
		if r.End <= a {
			return -1
		}
		return 1
	})
	return i
}

// overlaps reports whether any region shares a byte with r.
func (rs *regions) overlaps(r mem.Range) bool {
	i := rs.at(r.Start)
	return i < len(rs.list) && rs.list[i].Overlaps(r)
}

// remove cuts r out of all regions.
func (rs *regions) remove(r mem.Range) {
	if r.Empty() {
		return
	}
	i := rs.at(r.Start)
	j := i
	var keep []region
	for ; j < len(rs.list) && rs.list[j].Start < r.End; j++ {
		old := rs.list[j]
		if old.Start < r.Start {
			left := old
			left.End = r.Start
			keep = append(keep, left)
		}
		if old.End > r.End {
			right := old
			right.Start = r.End
			keep = append(keep, right)
		}
	}
	rs.list = slices.Replace(rs.list, i, j, keep...)
}

// add makes r one region, replacing whatever it overlaps, and joins it with
// equal neighbours.
func (rs *regions) add(r region) {
	if r.Empty() {
		return
	}
	rs.remove(r.Range)
	i := rs.at(r.Start)
	if i > 0 && rs.list[i-1].End == r.Start && rs.list[i-1].wipe == r.wipe {
		i--
		r.Start = rs.list[i].Start
		rs.list = slices.Delete(rs.list, i, i+1)
	}
	if i < len(rs.list) && rs.list[i].Start == r.End && rs.list[i].wipe == r.wipe {
		r.End = rs.list[i].End
		rs.list = slices.Delete(rs.list, i, i+1)
	}
	rs.list = slices.Insert(rs.list, i, r)
}

// within calls f for each part of a region that lies in r.
func (rs *regions) within(r mem.Range, f func(region)) {
	for i := rs.at(r.Start); i < len(rs.list) && rs.list[i].Start < r.End; i++ {
		part := rs.list[i]
		part.Range = part.Intersect(r)
		f(part)
	}
}

// outside calls f for each part of r that is in no region. f must not change them.
func (rs *regions) outside(r mem.Range, f func(mem.Range)) {
	rest := r
	rs.within(r, func(part region) {
		if part.Start > rest.Start {
			f(mem.Range{Start: rest.Start, End: part.Start})
		}
		rest.Start = part.End
	})
	if !rest.Empty() {
		f(rest)
	}
}
