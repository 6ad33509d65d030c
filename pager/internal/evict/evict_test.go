// SPDX-License-Identifier: Apache-2.0

package evict

import (
	"math/rand/v2"
	"testing"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/faultline-go/faultline/mem"
)

// state is the caller's side of a page.
type state struct {
	stamp    Stamp
	resident bool
	flying   bool // a candidate that is not settled
}

// model is a caller with its table of pages.
type model struct {
	q     *Queue
	pages map[Key]*state
}

func newModel(capacity int) *model {
	m := &model{pages: map[Key]*state{}}
	m.q = New(capacity, func(k Key, s Stamp) bool {
		p := m.pages[k]
		return p != nil && p.resident && !p.flying && p.stamp == s
	})
	return m
}

func (m *model) insert(k Key, kind Kind) {
	p := m.pages[k]
	if p == nil {
		p = new(state)
		m.pages[k] = p
	}
	*p = state{stamp: m.q.Insert(k, p.stamp, kind), resident: true}
}

// count returns how many pages the queue should have.
func (m *model) count() (n int) {
	for _, p := range m.pages {
		if p.resident && !p.flying {
			n++
		}
	}
	return n
}

// TestModel: every page that is inserted comes out of Victim exactly once
// until it is put back, under the stamp that its entry holds, whatever else
// happens; a page that vanished never does.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(rapid.IntRange(0, 64).Draw(t, "capacity"))
		key := rapid.Custom(func(t *rapid.T) Key {
			return Key{rapid.Uint32Range(0, 1).Draw(t, "space"), mem.Page(rapid.Uint64Range(0, 80).Draw(t, "page"))}
		})
		var flying []Key
		take := func(t *rapid.T) (Key, bool) {
			if len(flying) == 0 {
				return Key{}, false
			}
			i := rapid.IntRange(0, len(flying)-1).Draw(t, "candidate")
			k := flying[i]
			flying = append(flying[:i], flying[i+1:]...)
			return k, true
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				if got, want := m.q.Len(), m.count(); got != want {
					t.Fatalf("Len() = %d, want %d", got, want)
				}
			},
			"insert": func(t *rapid.T) {
				k := key.Draw(t, "key")
				if p := m.pages[k]; p == nil || !p.resident {
					m.insert(k, rapid.SampledFrom([]Kind{Demand, Ahead, Fresh}).Draw(t, "kind"))
				}
			},
			"victim": func(t *rapid.T) {
				k, s, ok := m.q.Victim()
				if !ok {
					if m.count() != 0 {
						t.Fatalf("no victim, but %d pages", m.count())
					}
					return
				}
				p := m.pages[k]
				if p == nil || !p.resident || p.flying || p.stamp != s {
					t.Fatalf("Victim() = %v, %d: entry is %+v", k, s, p)
				}
				p.flying = true
				flying = append(flying, k)
			},
			"evicted": func(t *rapid.T) {
				if k, ok := take(t); ok {
					g := m.q.Evicted(m.pages[k].stamp)
					if g == 0 {
						t.Fatal("zero ghost stamp")
					}
					*m.pages[k] = state{stamp: g}
				}
			},
			"return": func(t *rapid.T) {
				if k, ok := take(t); ok {
					*m.pages[k] = state{stamp: m.q.Return(k, m.pages[k].stamp), resident: true}
				}
			},
			"rescue": func(t *rapid.T) {
				if k, ok := take(t); ok {
					m.insert(k, Rescued)
				}
			},
			"vanish": func(t *rapid.T) {
				if k, ok := take(t); ok {
					delete(m.pages, k)
				}
			},
			"remove": func(t *rapid.T) {
				k := key.Draw(t, "key")
				if p := m.pages[k]; p != nil && p.resident && !p.flying {
					delete(m.pages, k)
					m.q.Removed(p.stamp)
				}
			},
			"capacity": func(t *rapid.T) { m.q.SetCapacity(rapid.IntRange(-1, 100).Draw(t, "capacity")) },
		})
		for n := m.count(); n > 0; n-- {
			k, s, ok := m.q.Victim()
			if !ok || m.pages[k].stamp != s || m.pages[k].flying {
				t.Fatalf("draining with %d left: Victim() = %v, %d, %v", n, k, s, ok)
			}
			m.pages[k].flying = true
		}
		if k, _, ok := m.q.Victim(); ok {
			t.Fatalf("%v comes out of an empty queue", k)
		}
	})
}

// cache is a bare caller for page numbers below len: no maps, no heap.
type cache struct {
	q        *Queue
	pages    []state
	resident int
	capacity int
}

func newCache(capacity, pages int) *cache {
	c := &cache{pages: make([]state, pages), capacity: capacity}
	c.q = New(capacity, func(k Key, s Stamp) bool {
		return c.pages[k.Page].resident && c.pages[k.Page].stamp == s
	})
	return c
}

func (c *cache) touch(i int) (miss bool) {
	p := &c.pages[i]
	if p.resident {
		return false
	}
	for c.resident >= c.capacity {
		k, s, _ := c.q.Victim()
		c.pages[k.Page] = state{stamp: c.q.Evicted(s)}
		if c.pages[k.Page].stamp == 0 {
			panic("evict: zero ghost stamp")
		}
		c.resident--
	}
	*p = state{stamp: c.q.Insert(Key{Page: mem.Page(i)}, p.stamp, Demand), resident: true}
	c.resident++
	return true
}

// TestScanResistance: a hot set that proved itself survives a scan of
// everything else. A FIFO loses all of it four times over.
func TestScanResistance(t *testing.T) {
	const capacity = 4000
	for _, share := range []int{10, 25} {
		hot := capacity * share / 100
		r := rand.New(rand.NewPCG(1, uint64(share)))
		c := newCache(capacity, 10*capacity)
		next, lost := hot, 0
		for round := range 2 {
			for range 4 * capacity {
				c.touch(next)
				if next++; next == len(c.pages) {
					next = hot
				}
				for range 8 {
					if c.touch(r.IntN(hot)) && round == 1 {
						lost++
					}
				}
			}
		}
		// What the queue takes for the sake of evidence: at most one
		// victim in 16, of 4*capacity.
		if limit := 4 * capacity / 16; lost > limit {
			t.Errorf("hot set of %d%%: %d faults on it during a scan, want at most %d", share, lost, limit)
		}
	}
}

// TestLoop: a loop that does not fit keeps a part of itself in memory, where
// a FIFO has no hit at all.
func TestLoop(t *testing.T) {
	for _, tc := range []struct{ pages, limit int }{ // limit: percent of misses
		{4400, 40}, {6000, 75}, {8000, 90},
	} {
		c := newCache(4000, tc.pages)
		misses := 0
		for round := range 30 {
			for i := range tc.pages {
				if c.touch(i) && round >= 10 {
					misses++
				}
			}
		}
		if got := misses * 100 / (20 * tc.pages); got > tc.limit {
			t.Errorf("loop of %d pages in 4000: %d%% misses, want at most %d%%", tc.pages, got, tc.limit)
		}
	}
}

// TestRescued: a rescued page is in main, which a stream of new pages does
// not drain.
func TestRescued(t *testing.T) {
	c := newCache(1000, 20000)
	for i := range 1000 {
		c.touch(i)
	}
	k, s, _ := c.q.Victim()
	c.pages[k.Page].stamp = c.q.Insert(k, s, Rescued)
	for i := 1000; i < 2500; i++ {
		c.touch(i)
	}
	// Probing may take the one page of main; it is the first to go then.
	if p := c.pages[k.Page]; p.stamp&1 != main {
		t.Errorf("page %d has stamp %#x: not of main", k.Page, p.stamp)
	}
}

// TestNeighbours: pages that came in side by side leave side by side.
func TestNeighbours(t *testing.T) {
	c := newCache(4096, 1<<15)
	for round := range 3 {
		for i := range c.pages {
			c.touch((i + round*100) % len(c.pages))
		}
	}
	runs, n := 0, 0
	last := Key{Page: 1 << 40}
	for {
		k, _, ok := c.q.Victim()
		if !ok {
			break
		}
		if k.Page != last.Page+1 {
			runs++
		}
		last = k
		n++
	}
	if n != 4096 || n/runs < 32 {
		t.Errorf("%d victims in %d runs, want 4096 in runs of 32 or more on average", n, runs)
	}
}

// TestReturn: a page that cannot leave is not tried again before the others
// of its queue.
func TestReturn(t *testing.T) {
	c := newCache(100, 100)
	for i := range 100 {
		c.touch(i)
	}
	k, s, _ := c.q.Victim()
	c.pages[k.Page].stamp = c.q.Return(k, s)
	for i := range 99 {
		if again, _, _ := c.q.Victim(); again == k {
			t.Fatalf("page %d is tried again after %d others", k.Page, i)
		}
	}
	if again, _, ok := c.q.Victim(); !ok || again != k {
		t.Errorf("last victim is %v, %v, want %v", again, ok, k)
	}
}

// TestMemory: no allocation in steady state, and at most 24 bytes a page
// with entries going stale all the time.
func TestMemory(t *testing.T) {
	const capacity = 20000
	c := newCache(capacity, 3*capacity)
	r := rand.New(rand.NewPCG(5, 6))
	work := func() {
		for range 5000 {
			c.touch(r.IntN(len(c.pages)))
			if i := r.IntN(len(c.pages)); c.pages[i].resident {
				c.q.Removed(c.pages[i].stamp)
				c.pages[i] = state{}
				c.resident--
			}
		}
	}
	for range 100 {
		work()
	}
	if n := testing.AllocsPerRun(100, work); n != 0 {
		t.Errorf("%v allocations for 5000 insertions", n)
	}
	for i := range c.pages {
		c.touch(i) // full again
	}
	chunks := c.q.pool.nfree
	for i := range c.q.q {
		for p := c.q.q[i].head; p != nil; p = p.next {
			chunks++
		}
	}
	size := chunks * int(unsafe.Sizeof(chunk{}))
	if limit := 24*capacity + 4*4096; size > limit {
		t.Errorf("%d bytes for %d pages, want at most %d", size, capacity, limit)
	}
}

// TestStampWrap: the counters wrap without a zero stamp and without a loss.
func TestStampWrap(t *testing.T) {
	c := newCache(64, 256)
	c.q.seq, c.q.now = 1<<31-100, 1<<31-100
	for range 4 {
		for i := range c.pages {
			c.touch(i)
			if c.pages[i].stamp == 0 {
				t.Fatal("zero stamp")
			}
		}
	}
	if c.q.Len() != 64 {
		t.Errorf("Len() = %d, want 64", c.q.Len())
	}
}

func BenchmarkTouch(b *testing.B) {
	c := newCache(1<<14, 1<<16)
	r := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		c.touch(r.IntN(1 << 16))
	}
}
