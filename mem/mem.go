// SPDX-License-Identifier: Apache-2.0

// Package mem names addresses and ranges of an address space, so that no
// signature elsewhere takes a bare integer for either.
//
// All of faultline works in units of [PageSize]. A kernel with larger base
// pages is refused where a descriptor is opened for serving, not here.
package mem

import "fmt"

const (
	// PageShift is the binary logarithm of PageSize.
	PageShift = 12
	// PageSize is the unit, in bytes, in which memory comes in and goes out.
	PageSize = 1 << PageShift
)

// Addr is an address in some address space, most often not our own: it is
// never converted to a Go pointer.
type Addr uint64

// Page returns the number of the page that holds a.
func (a Addr) Page() Page { return Page(a >> PageShift) }

// Down returns a rounded down to a page boundary.
func (a Addr) Down() Addr { return a &^ (PageSize - 1) }

// Up returns a rounded up to a page boundary. It wraps to zero in the last
// page of the 64-bit space, which no kernel maps.
func (a Addr) Up() Addr { return (a + PageSize - 1).Down() }

// Aligned reports whether a lies on a page boundary.
func (a Addr) Aligned() bool { return a&(PageSize-1) == 0 }

// String returns a in the form 0x7f12_3000 without separators.
func (a Addr) String() string { return fmt.Sprintf("%#x", uint64(a)) }

// Page is a page number: an address divided by PageSize.
type Page uint64

// Addr returns the address of the first byte of p.
func (p Page) Addr() Addr { return Addr(p << PageShift) }

// Range is the half-open range [Start, End) of an address space.
// The zero Range is empty.
type Range struct {
	Start, End Addr
}

// MakeRange returns the range of n bytes from start.
func MakeRange(start Addr, n uint64) Range { return Range{start, start + Addr(n)} }

// Len returns the number of bytes in r, zero for an inverted range.
func (r Range) Len() uint64 {
	if r.End <= r.Start {
		return 0
	}
	return uint64(r.End - r.Start)
}

// Pages returns the number of whole pages in r.
func (r Range) Pages() int { return int(r.Len() >> PageShift) }

// Empty reports whether r has no byte.
func (r Range) Empty() bool { return r.End <= r.Start }

// Contains reports whether a lies in r.
func (r Range) Contains(a Addr) bool { return r.Start <= a && a < r.End }

// Covers reports whether every byte of s lies in r. An empty s is covered.
func (r Range) Covers(s Range) bool {
	return s.Empty() || r.Start <= s.Start && s.End <= r.End
}

// Overlaps reports whether r and s share a byte.
func (r Range) Overlaps(s Range) bool {
	return r.Start < s.End && s.Start < r.End && !r.Empty() && !s.Empty()
}

// Intersect returns the bytes that r and s share, the zero Range if none.
func (r Range) Intersect(s Range) Range {
	x := Range{max(r.Start, s.Start), min(r.End, s.End)}
	if x.Empty() {
		return Range{}
	}
	return x
}

// Subtract returns what of a is not in b, in the order of a. The ranges of b are in the
// order of their starts; they may overlap.
func Subtract(a, b []Range) (rest []Range) {
	for _, r := range a {
		for _, s := range b {
			if !s.Overlaps(r) {
				continue
			}
			if s.Start > r.Start {
				rest = append(rest, Range{Start: r.Start, End: s.Start})
			}
			r.Start = min(s.End, r.End)
		}
		if !r.Empty() {
			rest = append(rest, r)
		}
	}
	return rest
}

// String returns r in the form [0x1000+0x2000]: the start and the length.
func (r Range) String() string { return fmt.Sprintf("[%#x+%#x]", uint64(r.Start), r.Len()) }
