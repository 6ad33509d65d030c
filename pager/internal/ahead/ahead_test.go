// SPDX-License-Identifier: Apache-2.0

package ahead

import (
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/faultline-go/faultline/mem"
)

// memory is a program's memory seen from a tracker: a touch of a page that
// is not resident faults and brings in what the tracker plans.
type memory struct {
	t        *Tracker
	resident map[mem.Page]bool
	end      mem.Page // of the mapping: nothing beyond is brought in
	outside  bool
	misses   int
}

func newMemory(outside bool) *memory {
	return &memory{t: New(256), resident: map[mem.Page]bool{}, end: maxPage, outside: outside}
}

func (m *memory) touch(p mem.Page, tid uint32) {
	if m.resident[p] {
		return
	}
	m.misses++
	m.resident[p] = true
	plan := m.t.Miss(p, tid, m.outside)
	for i := 1; i <= plan.Count; i++ {
		q := mem.Page(int64(p) + plan.Stride*int64(i))
		if q >= m.end {
			m.t.Granted(plan, i-1)
			return
		}
		m.resident[q] = true
	}
}

// TestPatterns bounds the faults that patterns of n accesses cost, and what
// is brought in needlessly.
func TestPatterns(t *testing.T) {
	const base = mem.Page(1 << 24)
	const n = 8000
	each := func(f func(i int) (mem.Page, uint32)) func(*memory) {
		return func(m *memory) {
			for i := range n {
				m.touch(f(i))
			}
		}
	}
	for _, tc := range []struct {
		name    string
		outside bool
		run     func(*memory)
		limit   int // faults
	}{
		{"sequential", true, each(func(i int) (mem.Page, uint32) { return base + mem.Page(i), 1 }), 45},
		{"first fill", false, each(func(i int) (mem.Page, uint32) { return base + mem.Page(i), 1 }), 42},
		{"reverse", true, each(func(i int) (mem.Page, uint32) { return base - mem.Page(i), 1 }), 45},
		{"stride 7", true, each(func(i int) (mem.Page, uint32) { return base + mem.Page(7*i), 1 }), 45},
		{"stride -5000", true, each(func(i int) (mem.Page, uint32) { return 4*base - mem.Page(5000*i), 1 }), 45},
		{"16 streams of one thread", true, each(func(i int) (mem.Page, uint32) {
			return base + mem.Page(i%16)<<20 + mem.Page(i/16), 1
		}), 16 * 12},
		{"16 threads, close together", true, each(func(i int) (mem.Page, uint32) {
			return base + mem.Page(i%16*1000+i/16), uint32(i % 16)
		}), 16 * 16},
		{"two strides", true, each(func(i int) (mem.Page, uint32) {
			return base + mem.Page(i%2<<20+i/2*(3+i%2*8)), 1
		}), 80},
		{"wrapping, every 7th", true, each(func(i int) (mem.Page, uint32) {
			return base + mem.Page(i%1000*7+i/1000), 1
		}), 120},
		{"two threads share a scan", true, each(func(i int) (mem.Page, uint32) {
			return base + mem.Page(i^1), uint32(i % 2)
		}), 120},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMemory(tc.outside)
			tc.run(m)
			t.Logf("%d faults, %+v", m.misses, m.t.Stats())
			if m.misses > tc.limit {
				t.Errorf("%d faults for %d accesses, want at most %d; %+v", m.misses, n, tc.limit, m.t.Stats())
			}
			if m.t.Stats().Useful == 0 {
				t.Error("no page counted as useful")
			}
		})
	}
}

// TestRampUp: the windows of a sequence double up to the limit.
func TestRampUp(t *testing.T) {
	tr := New(64)
	var got []int
	for p := mem.Page(1000); len(got) < 8; {
		plan := tr.Miss(p, 1, false)
		got = append(got, plan.Count)
		p += mem.Page(plan.Count) + 1
	}
	want := []int{0, 4, 8, 16, 32, 64, 64, 64}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("windows %v, want %v", got, want)
		}
	}
}

// TestGranted: a stream whose window was cut short is expected behind what
// was really brought in.
func TestGranted(t *testing.T) {
	tr := New(64)
	tr.Miss(10, 1, false)
	plan := tr.Miss(11, 1, false)
	if plan.Count != 4 || plan.Stride != 1 {
		t.Fatalf("plan %+v, want 4 pages by 1", plan)
	}
	tr.Granted(plan, 1)
	tr.Granted(plan, 1) // once is enough
	if next := tr.Miss(13, 1, false); next.Count != 8 {
		t.Errorf("plan %+v behind the cut window, want 8 pages", next)
	}
	if s := tr.Stats(); s.Granted != 9 || s.Useful != 1 {
		t.Errorf("stats %+v, want 9 granted, 1 useful", s)
	}
	tr.Granted(plan, 0) // outdated: the stream went on
	if s := tr.Stats(); s.Granted != 9 {
		t.Errorf("an outdated plan changed the statistics: %+v", s)
	}
}

// TestRandom: faults at random get next to nothing, in large and in small
// regions, from fresh memory and from outside.
func TestRandom(t *testing.T) {
	for _, tc := range []struct {
		pages    int
		outside  bool
		perMille int // pages granted for 1000 faults
	}{
		{1 << 20, true, 1}, {1 << 20, false, 1}, {1 << 14, true, 20}, {1 << 14, false, 20}, {1 << 11, true, 100},
	} {
		r := rand.New(rand.NewPCG(3, uint64(tc.pages)))
		tr := New(256)
		const n = 100_000
		granting := 0
		for range n {
			if tr.Miss(mem.Page(1<<30+r.IntN(tc.pages)), uint32(r.IntN(4)), tc.outside).Count > 0 {
				granting++
			}
		}
		s := tr.Stats()
		t.Logf("%d pages: %d of %d faults granted, %+v", tc.pages, granting, n, s)
		if got := int(s.Granted * 1000 / n); got > tc.perMille {
			t.Errorf("%d pages (outside %v): %d pages granted for 1000 random faults, want at most %d", tc.pages, tc.outside, got, tc.perMille)
		}
	}
}

// TestBackOff: streams that always end at once get less and less, and a
// long one is followed again all the same.
func TestBackOff(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 9))
	tr := New(256)
	var half uint64
	for i := range 2000 {
		p := mem.Page(r.Uint64N(1 << 40))
		for j := range 3 {
			tr.Miss(p+mem.Page(j), 1, true)
		}
		if i == 999 {
			half = tr.Stats().Granted
		}
	}
	s := tr.Stats()
	if s.Granted-half > 20 {
		t.Errorf("%d pages granted to the last 1000 streams of three pages, want next to none; %+v", s.Granted-half, s)
	}
	m := newMemory(true)
	m.t = tr
	for i := range 4000 {
		m.touch(mem.Page(1<<41+i), 1)
	}
	if m.misses > 60 {
		t.Errorf("%d faults for a sequence of 4000 pages after bad experience, want at most 60", m.misses)
	}
}

// TestLimits: whatever is fed in, every planned page exists, the window
// keeps its bound and the counters add up.
func TestLimits(t *testing.T) {
	edges := []uint64{0, 1, 2, 8191, 1 << 35, maxPage - 8192, maxPage - 1, maxPage, maxPage + 1, 1<<64 - 1}
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(-1, 300).Draw(t, "window")
		tr := New(limit)
		p := uint64(0)
		step := uint64(1)
		for range rapid.IntRange(1, 200).Draw(t, "faults") {
			switch rapid.IntRange(0, 9).Draw(t, "move") {
			case 0:
				p = rapid.SampledFrom(edges).Draw(t, "page")
			case 1:
				step = uint64(rapid.Int64Range(-maxStride-1, maxStride+1).Draw(t, "step"))
			case 2:
				p = rapid.Uint64().Draw(t, "anywhere")
			}
			p += step
			plan := tr.Miss(mem.Page(p), rapid.Uint32Range(0, 2).Draw(t, "tid"), rapid.Bool().Draw(t, "outside"))
			if plan.Count < 0 || plan.Count > max(limit, 0) {
				t.Fatalf("count %d with a window of %d", plan.Count, limit)
			}
			if plan.Count > 0 {
				// The last page bounds all: no wrap below 2^64.
				last := int64(p) + plan.Stride*int64(plan.Count)
				if plan.Stride == 0 || last < 0 || last > maxPage {
					t.Fatalf("page %#x: plan %+v leaves the address space", p, plan)
				}
				actual := rapid.IntRange(-1, plan.Count+1).Draw(t, "actual")
				tr.Granted(plan, actual)
				if actual >= 0 && actual <= plan.Count {
					p += uint64(plan.Stride) * uint64(actual)
				}
			}
			if s := tr.Stats(); s.Useful+s.Useless > s.Granted {
				t.Fatalf("more pages judged than granted: %+v", s)
			}
		}
	})
}

// TestAllocations: none after New.
func TestAllocations(t *testing.T) {
	tr := New(256)
	p := mem.Page(0)
	if n := testing.AllocsPerRun(1000, func() {
		plan := tr.Miss(p, 1, true)
		p += mem.Page(plan.Count) + 1
		tr.Miss(p*0x9e3779b9&0xffffff, 2, true)
	}); n != 0 {
		t.Errorf("%v allocations for two faults", n)
	}
}

func BenchmarkMissRandom(b *testing.B) {
	tr := New(256)
	r := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		tr.Miss(mem.Page(r.Uint64N(1<<16)), 1, true)
	}
}

func BenchmarkMiss16Streams(b *testing.B) {
	tr := New(256)
	var at [16]mem.Page
	i := 0
	for b.Loop() {
		k := i % 16
		plan := tr.Miss(mem.Page(k)<<28+at[k], 1, true)
		at[k] += mem.Page(plan.Count) + 1
		i++
	}
}
