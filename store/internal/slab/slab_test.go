// SPDX-License-Identifier: Apache-2.0

package slab

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/faultline-go/faultline/store"
)

// space is a backing that remembers which slabs it provides.
type space struct {
	t      interface{ Errorf(string, ...any) }
	mu     sync.Mutex
	backed map[int]bool
	fail   error
	next   int
}

func newSpace(t interface{ Errorf(string, ...any) }) *space {
	return &space{t: t, backed: map[int]bool{}}
}

func (s *space) Grow(i int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	if s.backed[i] {
		s.t.Errorf("slab %d is grown twice", i)
	}
	if i > s.next {
		s.t.Errorf("slab %d is grown before slab %d", i, s.next)
	}
	s.next = max(s.next, i+1)
	s.backed[i] = true
	return nil
}

func (s *space) Release(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.backed[i] {
		s.t.Errorf("slab %d is released without backing", i)
	}
	delete(s.backed, i)
}

func (s *space) has(off uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.backed[int(off>>Shift)]
}

// slot is what the model knows of a live slot.
type slot struct {
	off   uint64
	n     int
	size  int
	count int
}

// The allocator against a list of what is live: no two slots overlap, each
// lies in backing, counts hold, and what is freed is gone.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		maxSlabs := rapid.SampledFrom([]int64{0, 3, 40}).Draw(t, "bound in slabs")
		sp := newSpace(t)
		a := New(sp, maxSlabs*Size)
		var live []slot
		sizes := rapid.OneOf(rapid.IntRange(1, MaxSlot), rapid.SampledFrom([]int{1, 64, 65, 2100, 4095, 4096}))

		t.Repeat(map[string]func(*rapid.T){
			"alloc": func(t *rapid.T) {
				n := sizes.Draw(t, "n")
				for range rapid.IntRange(1, 100).Draw(t, "times") {
					off, size, err := a.Alloc(n)
					if err != nil {
						if maxSlabs == 0 || !errors.Is(err, store.ErrFull) || len(live) == 0 {
							t.Fatalf("alloc %d: %v", n, err)
						}
						return
					}
					if size < n || size > MaxSlot || off%Unit != 0 {
						t.Fatalf("alloc %d: %d bytes at %#x", n, size, off)
					}
					live = append(live, slot{off, n, size, 1})
				}
			},
			"share": func(t *rapid.T) {
				if len(live) > 0 {
					s := &live[rapid.IntRange(0, len(live)-1).Draw(t, "which")]
					if !a.Share(s.off, s.n) {
						t.Fatalf("share %+v", *s)
					}
					s.count++
				}
			},
			"free": func(t *rapid.T) {
				for range rapid.IntRange(1, 120).Draw(t, "times") {
					if len(live) == 0 {
						return
					}
					i := rapid.IntRange(0, len(live)-1).Draw(t, "which")
					s := &live[i]
					gone, _, ok := a.Free(s.off, s.n)
					s.count--
					if !ok || gone != (s.count == 0) {
						t.Fatalf("free %+v: gone %v, ok %v", *s, gone, ok)
					}
					if gone {
						if _, _, ok := a.Free(s.off, s.n); ok {
							t.Fatalf("%+v is freed twice", *s)
						}
						live = slices.Delete(live, i, i+1)
					}
				}
			},
			"free all": func(t *rapid.T) {
				for _, s := range live {
					for range s.count {
						a.Free(s.off, s.n)
					}
				}
				live = nil
			},
			"trim": func(t *rapid.T) { a.Trim() },
			"": func(t *rapid.T) {
				check(t, a, sp, live, maxSlabs)
			},
		})
	})
}

func check(t *rapid.T, a *Allocator, sp *space, live []slot, maxSlabs int64) {
	sorted := slices.Clone(live)
	slices.SortFunc(sorted, func(x, y slot) int { return int(int64(x.off) - int64(y.off)) })
	bytes := 0
	for i, s := range sorted {
		bytes += s.size
		if i > 0 && sorted[i-1].off+uint64(sorted[i-1].size) > s.off {
			t.Fatalf("%+v overlaps %+v", sorted[i-1], s)
		}
		if !sp.has(s.off) || !a.Live(s.off, s.n) {
			t.Fatalf("%+v lies nowhere", s)
		}
	}
	u := a.Usage()
	if u.Slots != len(live) || u.Bytes != bytes || u.Backed != len(sp.backed) {
		t.Fatalf("usage %+v, want %d slots, %d bytes, %d slabs with backing", u, len(live), bytes, len(sp.backed))
	}
	if maxSlabs > 0 && int64(u.Backed) > maxSlabs {
		t.Fatalf("%d slabs, the bound is %d", u.Backed, maxSlabs)
	}
}

// Random replacement for a long time: the space stays near what is live, and
// goes back when all is freed.
func TestGrowthIsBounded(t *testing.T) {
	sp := newSpace(t)
	a := New(sp, 0)
	r := rand.New(rand.NewPCG(5, 5))
	live := make([]slot, 20000)
	var bytes int
	for step := range 400000 {
		s := &live[r.IntN(len(live))]
		if s.size > 0 {
			a.Free(s.off, s.n)
			bytes -= s.size
		}
		// The sizes drift, so that classes fall out of use.
		n := 1 + (r.IntN(1500)+step/200)%MaxSlot
		off, size, err := a.Alloc(n)
		if err != nil {
			t.Fatal(err)
		}
		*s = slot{off: off, n: n, size: size}
		bytes += size
		if step%100 == 0 {
			a.Trim()
		}
		if got := a.Usage().Backed * Size; step > 40000 && got > bytes*3/2+(classes+keepMin)*Size {
			t.Fatalf("step %d: %d bytes of backing for %d live", step, got, bytes)
		}
	}
	for _, s := range live {
		if s.size > 0 {
			a.Free(s.off, s.n)
		}
	}
	a.Trim()
	if u := a.Usage(); u.Slots != 0 || u.Bytes != 0 || u.Backed > keepMin || u.Misuse != 0 {
		t.Errorf("all freed: %+v", u)
	}
}

// What is kept in reserve depends on what is in use, and is little.
func TestReserve(t *testing.T) {
	a := New(newSpace(t), 0)
	const slabs, perSlab = 800, Size / MaxSlot
	var offs []uint64
	for range slabs * perSlab {
		off, _, err := a.Alloc(MaxSlot)
		if err != nil {
			t.Fatal(err)
		}
		offs = append(offs, off)
	}
	trims := false
	for _, off := range offs[:len(offs)/2] {
		_, trim, _ := a.Free(off, MaxSlot)
		trims = trims || trim
	}
	if !trims {
		t.Error("half of all slabs are free, and nobody is told to trim")
	}
	a.Trim()
	if got, want := a.Usage().Backed, slabs/2+slabs/2/8; got != want {
		t.Errorf("%d slabs have backing, want %d", got, want)
	}
}

func TestConsecutive(t *testing.T) {
	a := New(newSpace(t), 0)
	var last uint64
	for i := range 31 {
		off, size, err := a.Alloc(2000)
		if err != nil || size != 2048 {
			t.Fatal(size, err)
		}
		if i > 0 && off != last+2048 {
			t.Errorf("slot %d lies at %#x after %#x", i, off, last)
		}
		last = off
	}
}

func TestSharedTooOften(t *testing.T) {
	a := New(newSpace(t), 0)
	off, _, err := a.Alloc(100)
	if err != nil {
		t.Fatal(err)
	}
	for range maxCount + 10 {
		if !a.Share(off, 100) {
			t.Fatal("cannot share")
		}
	}
	for range 2 * maxCount {
		if gone, _, ok := a.Free(off, 100); gone || !ok {
			t.Fatalf("a slot whose count is not known is free: %v, %v", gone, ok)
		}
	}
}

func TestGrowError(t *testing.T) {
	sp := newSpace(t)
	a := New(sp, 0)
	sp.fail = errors.New("no")
	if _, _, err := a.Alloc(64); !errors.Is(err, sp.fail) {
		t.Errorf("alloc: %v", err)
	}
	if u := a.Usage(); u != (Usage{}) {
		t.Errorf("usage %+v after nothing", u)
	}
	sp.fail = nil
	off, _, err := a.Alloc(64)
	if err != nil {
		t.Fatal(err)
	}
	// A slot of another class serves when nothing else does.
	sp.fail = errors.New("no")
	if _, _, err := a.Alloc(128); err == nil {
		t.Error("a slot of 128 bytes from a slab of 64")
	}
	if got, size, err := a.Alloc(10); err != nil || size != 64 || got != off+64 {
		t.Errorf("alloc 10: %#x, %d, %v", got, size, err)
	}
}

func TestMisuse(t *testing.T) {
	a := New(newSpace(t), 0)
	off, _, err := a.Alloc(1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []struct {
		off uint64
		n   int
	}{{off + 64, 1000}, {off + 1024, 1000}, {off, 1025}, {1 << 60, 10}, {^uint64(0), 10}, {off + Size, 10}} {
		if a.Share(bad.off, bad.n) {
			t.Errorf("shared %+v", bad)
		}
		if _, _, ok := a.Free(bad.off, bad.n); ok {
			t.Errorf("freed %+v", bad)
		}
	}
	if !a.Live(off, 1000) {
		t.Error("the slot is gone")
	}
	if n := a.Usage().Misuse; n != 12 {
		t.Errorf("%d calls counted, want 12", n)
	}
}

func TestConcurrent(t *testing.T) {
	sp := newSpace(t)
	a := New(sp, 0)
	var wg sync.WaitGroup
	for w := range uint64(4) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(w, 1))
			var live []slot
			for range 20000 {
				if len(live) > 0 && r.IntN(2) == 0 {
					i := r.IntN(len(live))
					if gone, _, _ := a.Free(live[i].off, live[i].n); !gone {
						t.Errorf("%+v is not gone", live[i])
					}
					live[i] = live[len(live)-1]
					live = live[:len(live)-1]
					continue
				}
				n := 1 + r.IntN(MaxSlot)
				off, size, err := a.Alloc(n)
				if err != nil {
					t.Error(err)
					return
				}
				live = append(live, slot{off: off, n: n, size: size})
				if r.IntN(500) == 0 {
					a.Trim()
				}
			}
			for _, s := range live {
				a.Free(s.off, s.n)
			}
		})
	}
	wg.Wait()
	a.Trim()
	if u := a.Usage(); u.Slots != 0 || u.Backed > keepMin || u.Backed != len(sp.backed) || u.Misuse != 0 {
		t.Errorf("all freed: %+v, %d slabs have backing", u, len(sp.backed))
	}
}

// Memory for bookkeeping is part of what faultline promises.
func TestBookkeepingIsSmall(t *testing.T) {
	if n := reflect.TypeFor[slabInfo]().Size(); n > 32 {
		t.Errorf("a slab takes %d bytes of bookkeeping", n)
	}
}

func BenchmarkAllocFree(b *testing.B) {
	a := New(newSpace(b), 0)
	var live [4096]slot
	for i := range b.N {
		s := &live[i%len(live)]
		if s.n > 0 {
			a.Free(s.off, s.n)
		}
		s.n = 1 + (i*769)%MaxSlot
		s.off, _, _ = a.Alloc(s.n)
	}
}
