// SPDX-License-Identifier: Apache-2.0

package mem

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestRounding(t *testing.T) {
	for _, tc := range []struct{ in, down, up Addr }{
		{0, 0, 0},
		{1, 0, PageSize},
		{PageSize - 1, 0, PageSize},
		{PageSize, PageSize, PageSize},
		{PageSize + 1, PageSize, 2 * PageSize},
	} {
		if got := tc.in.Down(); got != tc.down {
			t.Errorf("%v.Down() = %v, want %v", tc.in, got, tc.down)
		}
		if got := tc.in.Up(); got != tc.up {
			t.Errorf("%v.Up() = %v, want %v", tc.in, got, tc.up)
		}
		if got := tc.in.Aligned(); got != (tc.in == tc.down) {
			t.Errorf("%v.Aligned() = %v", tc.in, got)
		}
	}
	if got := Addr(5*PageSize + 7).Page().Addr(); got != 5*PageSize {
		t.Errorf("page of 5*PageSize+7 starts at %v", got)
	}
}

func TestRangeSets(t *testing.T) {
	a := MakeRange(0x1000, 0x3000)
	for _, tc := range []struct {
		b        Range
		overlaps bool
		covers   bool
		inter    Range
	}{
		{Range{0x0, 0x1000}, false, false, Range{}},
		{Range{0x0, 0x2000}, true, false, Range{0x1000, 0x2000}},
		{Range{0x2000, 0x3000}, true, true, Range{0x2000, 0x3000}},
		{Range{0x1000, 0x4000}, true, true, a},
		{Range{0x4000, 0x5000}, false, false, Range{}},
		{Range{0x2000, 0x2000}, false, true, Range{}},
		{Range{0x3000, 0x1000}, false, true, Range{}},
	} {
		if got := a.Overlaps(tc.b); got != tc.overlaps {
			t.Errorf("%v.Overlaps(%v) = %v", a, tc.b, got)
		}
		if got := tc.b.Overlaps(a); got != tc.overlaps {
			t.Errorf("%v.Overlaps(%v) = %v", tc.b, a, got)
		}
		if got := a.Covers(tc.b); got != tc.covers {
			t.Errorf("%v.Covers(%v) = %v", a, tc.b, got)
		}
		if got := a.Intersect(tc.b); got != tc.inter {
			t.Errorf("%v.Intersect(%v) = %v, want %v", a, tc.b, got, tc.inter)
		}
	}
	if a.Contains(a.End) || !a.Contains(a.Start) {
		t.Error("a range must be half-open")
	}
	if a.Pages() != 3 || (Range{0x3000, 0x1000}).Len() != 0 {
		t.Error("wrong length")
	}
	if got, want := a.String(), "[0x1000+0x3000]"; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
}

// TestSubtract compares it with a look at every page.
func TestSubtract(t *testing.T) {
	const pages = 24
	random := rand.New(rand.NewPCG(1, 2))
	ranges := func(n int) (list []Range) {
		for range n {
			at := Addr(random.IntN(pages))
			list = append(list, Range{at, at + Addr(random.IntN(6))})
		}
		slices.SortFunc(list, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
		return list
	}
	holds := func(list []Range, a Addr) (n int) {
		for _, r := range list {
			if r.Contains(a) {
				n++
			}
		}
		return n
	}
	for range 2000 {
		a, b := ranges(1+random.IntN(3)), ranges(random.IntN(4))
		rest := Subtract(a, b)
		for p := range Addr(pages + 6) {
			want := holds(a, p)
			if holds(b, p) > 0 {
				want = 0
			}
			if got := holds(rest, p); got != want {
				t.Fatalf("%v without %v is %v: %d times %d, want %d", a, b, rest, got, p, want)
			}
		}
		if slices.ContainsFunc(rest, Range.Empty) {
			t.Fatalf("%v without %v is %v: one is empty", a, b, rest)
		}
	}
}
