// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/faultline-go/faultline/mem"
)

// TestModel runs threads at random over one space, each in a part of its own,
// so that each knows what it must read: its latest store, zeros after REMOVE,
// never anything else. Now and then a thread pins a page, and with half of the
// seeds it forks, and the child has to see what the thread would (H14). The
// bound holds at every step where nothing is shared. The last six seeds have the
// space served on a thread of the mover's.
func TestModel(t *testing.T) {
	for seed := range uint64(12) {
		simulateNow(t, Config{Readahead: []int{-1, 4, 64}[seed%3]}, func(r *rig) {
			var c children
			k := r.space()
			k.mmap(pages(0, 4000))
			owned := func(*SpaceConfig) {}
			if seed >= 6 {
				_, owned = r.own()
			}
			s := r.attach(k, c.hook, owned)
			k.short = int(seed % 4)
			var wg sync.WaitGroup
			for tid := range 4 {
				wg.Go(func() { r.roam(k, s, tid, seed, &c) })
			}
			if seed%2 == 0 {
				wg.Go(func() { // children that nobody serves
					for range 5 {
						ck := k.fork()
						c.take(r.fdOf(ck)).Discard()
						ck.end()
					}
				})
			}
			wg.Wait()
			if seed%2 == 1 {
				r.wantBound()
			}
		})
	}
}

// roam is one thread of TestModel.
func (r *rig) roam(k *sim, s *Space, tid int, seed uint64, c *children) {
	rng := rand.New(rand.NewPCG(seed, uint64(tid)))
	const n = 400
	first := tid * 1000 // and 500 more pages above, for remaps
	oracle := make([][]byte, n)
	at := 0
	var kids sync.WaitGroup
	defer kids.Wait()
	for step := range 800 {
		if seed%2 == 0 && step == 150*tid+200 {
			child := r.roamChild(k, c, page(first+at), slices.Clone(oracle))
			kids.Go(child)
		}
		i := rng.IntN(n)
		if rng.IntN(3) > 0 { // a run now and then
			i = step % n
		}
		pg := page(first + at + i)
		switch op := rng.IntN(100); {
		case op < 45:
			b := pattern(rng.Uint64())
			if err := k.store(uint32(tid), pg, b); err != nil {
				r.Errorf("thread %d, step %d: store to %v: %v", tid, step, pg.Addr(), err)
				return
			}
			oracle[i] = b
		case op < 93:
			got, err := k.load(uint32(tid), pg)
			want := oracle[i]
			if want == nil {
				want = zeroPage
			}
			if err != nil || !bytes.Equal(got, want) {
				r.Errorf("thread %d, step %d: page %v holds %s (%v), want %s; it is %v", tid, step, pg.Addr(),
					describe(got), err, describe(want), s.pageState(int(pg-base.Page())))
				return
			}
		case op < 94: // until its turn comes again
			k.pin(pg, rng.IntN(2) == 0)
		case op < 98:
			j := min(n, i+1+rng.IntN(40))
			k.remove(mem.Range{Start: pg.Addr(), End: pg.Addr() + mem.Addr((j-i)*mem.PageSize)})
			clear(oracle[i:j])
		case op < 99:
			rg := pages(first+at+i, 1)
			k.unmap(rg)
			k.mmap(rg)
			if err := s.Add(rg, false); err != nil {
				r.Error(err)
				return
			}
			oracle[i] = nil
		case step > 200 && step%2 == 0: // to the place above or below, and back
			from, to := pages(first+at, n), 500-at
			k.unmap(pages(first+to, n))
			k.remap(from, page(first+to).Addr())
			at = to
			// The kernel has it registered; so have we.
		}
	}
}

// roamChild forks, and returns a function that checks the child's copy of what
// the forking thread had, in passing makes it the child's own, and ends it.
func (r *rig) roamChild(parent *sim, c *children, first mem.Page, oracle [][]byte) func() {
	k, s := r.forkOff(parent, c)
	return func() {
		defer k.end()
		defer s.Close()
		r.wantAll(k, first, oracle)
	}
}

// wantAll checks a child's pages, and writes some.
func (r *rig) wantAll(k *sim, first mem.Page, oracle [][]byte) {
	for i, want := range oracle {
		pg := first + mem.Page(i)
		if want == nil {
			want = zeroPage
		}
		got, err := k.load(1, pg)
		if err != nil || !bytes.Equal(got, want) {
			r.Errorf("child: page %v holds %s (%v), want %s", pg.Addr(), describe(got), err, describe(want))
			break
		}
		if i%3 == 0 {
			if err := k.store(1, pg, pattern(uint64(i))); err != nil {
				r.Error(err)
			}
		}
	}
}

// TestTableModel compares the table with a map.
func TestTableModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tab table
		want := make(map[mem.Page]entry)
		pg := rapid.Custom(func(t *rapid.T) mem.Page {
			return mem.Page(rapid.SampledFrom([]uint64{0, 511, 512, 1 << 22, 1<<22 + 5, uint64(maxPage) - 600}).Draw(t, "base") +
				rapid.Uint64Range(0, 599).Draw(t, "off"))
		})
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			p := pg.Draw(t, "page")
			e := entry{state: state(rapid.IntRange(0, 5).Draw(t, "state"))}
			if e.state != fresh {
				e.stuck = rapid.Uint8().Draw(t, "stuck")
				want[p] = e
			} else {
				delete(want, p)
			}
			tab.set(p, e)
			if tab.stateOf(p) != e.state {
				t.Fatalf("page %v is %v, want %v", p, tab.stateOf(p), e.state)
			}
		}
		a, b := pg.Draw(t, "from"), pg.Draw(t, "to")
		r := mem.Range{Start: min(a, b).Addr(), End: max(a, b).Addr()}
		limit := rapid.IntRange(1, 20).Draw(t, "limit")
		drop := rapid.Bool().Draw(t, "drop")
		seen, last := 0, mem.Page(0)
		for first := true; !r.Empty(); {
			n := 0
			r.Start = tab.each(r, limit, func(p mem.Page, e *entry) {
				if n++; n > limit {
					t.Fatalf("more than %d", limit)
				}
				if !first && p <= last {
					t.Fatalf("%v after %v", p, last)
				}
				first, last = false, p
				if want[p] != *e {
					t.Fatalf("page %v: %+v, want %+v", p, *e, want[p])
				}
				seen++
				if drop {
					delete(want, p)
					tab.set(p, entry{})
				}
			})
		}
		inside := 0
		for p := range want {
			if p >= min(a, b) && p < max(a, b) {
				inside++
			}
		}
		if drop && inside != 0 || !drop && seen != inside {
			t.Fatalf("saw %d, %d are there", seen, inside)
		}
		left := 0
		tab.each(allPages(), noLimit, func(p mem.Page, e *entry) {
			if want[p] != *e {
				t.Fatalf("page %v: %+v, want %+v", p, *e, want[p])
			}
			left++
		})
		if left != len(want) {
			t.Fatalf("%d entries, want %d", left, len(want))
		}
	})
}

// TestRegionsModel compares regions with a map of pages.
func TestRegionsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var rs regions
		want := make(map[int]bool) // page to wipe
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			a, n := rapid.IntRange(0, 60).Draw(t, "at"), rapid.IntRange(0, 12).Draw(t, "n")
			wipe := rapid.Bool().Draw(t, "wipe")
			add := rapid.IntRange(0, 2).Draw(t, "op") > 0
			known := false
			for i := a; i < a+n; i++ {
				_, ok := want[i]
				known = known || ok
			}
			if rs.overlaps(pages(a, n)) != known {
				t.Fatalf("overlaps(%d+%d) = %v", a, n, !known)
			}
			if add {
				rs.add(region{pages(a, n), wipe})
			} else {
				rs.remove(pages(a, n))
			}
			for i := a; i < a+n; i++ {
				delete(want, i)
				if add {
					want[i] = wipe
				}
			}
			for i := range 80 {
				got := rs.find(page(i).Addr() + 7)
				wipe, ok := want[i]
				if (got != nil) != ok || ok && got.wipe != wipe {
					t.Fatalf("page %d: %+v, want %v %v", i, got, ok, wipe)
				}
			}
			for i := 1; i < len(rs.list); i++ {
				l, r := rs.list[i-1], rs.list[i]
				if l.End > r.Start || l.End == r.Start && l.wipe == r.wipe {
					t.Fatalf("%v and %v are neighbours", l, r)
				}
			}
		}
	})
}
