// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"math/rand/v2"
	"testing"

	"github.com/faultline-go/faultline/mem"
)

// TestProtections: what was set is there, be it of a page or of GiBs, in the clone of
// earlier as it was then.
func TestProtections(t *testing.T) {
	const pages = 5 << (giantShift - mem.PageShift) / 2
	rng := rand.New(rand.NewPCG(1, 2))
	// Pages are compared where something begins or ends, or nearby.
	sizes := []int{1, 3, 1 << (chunkShift - mem.PageShift), 1 << (giantShift - mem.PageShift)}
	pick := func() int {
		size := sizes[rng.IntN(len(sizes))]
		return min(rng.IntN(pages/size+1)*size+rng.IntN(2)*rng.IntN(3), pages)
	}
	type change struct {
		mem.Range
		is uint8
	}
	for range 300 {
		var p protections
		var changes []change
		want := func(a mem.Addr, n int) uint8 {
			for i := n - 1; i >= 0; i-- {
				if changes[i].Contains(a) {
					return changes[i].is
				}
			}
			return unknown
		}
		check := func(p *protections, n int) {
			t.Helper()
			for _, c := range changes {
				for _, a := range []mem.Addr{c.Start, c.End - mem.PageSize, c.End, (c.Start + c.End) / 2 &^ (mem.PageSize - 1)} {
					if got := p.at(a); got != want(a, n) {
						t.Fatalf("%v is %#x, want %#x, after %v", a, got, want(a, n), changes[:n])
					}
				}
				at, other := c.Start, uint64(0)
				p.runs(c.Range, func(run mem.Range, is uint8) {
					if run.Start != at || is != want(run.Start, n) || is != want(run.End-mem.PageSize, n) {
						t.Fatalf("a run of %#x at %v, want one at %v", is, run, at)
					}
					if at = run.End; is != 3 {
						other += run.Len()
					}
				})
				if at != c.End {
					t.Fatalf("runs of %v end at %v", c.Range, at)
				}
				p.differ(c.Range, 3, func(run mem.Range) {
					if want(run.Start, n) == 3 || want(run.End-mem.PageSize, n) == 3 || !c.Covers(run) {
						t.Fatalf("%v of %v is said to differ", run, c.Range)
					}
					other -= run.Len()
				})
				if other != 0 {
					t.Fatalf("%d bytes of %v that differ are not told", int64(other), c.Range)
				}
			}
		}
		var old protections
		cloned := 0
		for range 12 {
			from, to := pick(), pick()
			if from == to {
				continue
			}
			r := mem.Range{Start: mem.Addr(min(from, to)) * mem.PageSize, End: mem.Addr(max(from, to)) * mem.PageSize}
			if c := (change{r, []uint8{0, 1, 3, sealed, unknown}[rng.IntN(5)]}); c.is == unknown {
				p.forget(r)
				changes = append(changes, c)
			} else {
				p.set(r, int(c.is))
				changes = append(changes, c)
			}
			if rng.IntN(6) == 0 {
				old, cloned = p.clone(), len(changes)
			}
		}
		check(&p, len(changes))
		check(&old, cloned)
	}
}

// TestReservationsCostNothing: what is known of a TiB was half a million entries.
func TestReservationsCostNothing(t *testing.T) {
	var p protections
	r := mem.Range{Start: 1 << 40, End: 1<<41 + mem.PageSize}
	p.set(r, 3)
	parts := 0
	p.parts(r, func(mem.Range, uint8) { parts++ })
	if parts > 1<<10+1 {
		t.Errorf("%d parts of what is alike", parts)
	}
	if p.forget(r); len(p.giants) > 1 {
		t.Errorf("%d GiB are still known", len(p.giants))
	}
}
