// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager/internal/evict"
	"github.com/faultline-go/faultline/store"
	memstore "github.com/faultline-go/faultline/store/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// TestLock: it excludes, a long wait asks for a boost, and a free lock is not
// to be unlocked.
func TestLock(t *testing.T) {
	var boosts atomic.Int32
	l := &lock{boost: func() { boosts.Add(1) }}
	var wg sync.WaitGroup
	n := 0
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				l.Lock()
				n++
				l.Unlock()
			}
		})
	}
	wg.Wait()
	if n != 4000 {
		t.Errorf("%d of 4000", n)
	}
	boosts.Store(0)
	l.Lock()
	got := run(func() {
		l.Lock()
		defer l.Unlock()
	})
	for boosts.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	l.Unlock()
	<-got
	defer func() {
		if recover() == nil {
			t.Error("unlock of a free lock passed")
		}
	}()
	l.Unlock()
}

// TestGuard: only a thread in the idle class that has work and makes no turn
// is taken out of it.
func TestGuard(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		k, s := r.start(10)
		g := r.p.guard
		if g.look() {
			t.Error("a thread is in the idle class")
		}
		s.server.pace.idleFlag.Store(true)
		g.look()
		if !g.look() || r.p.Stats().Starved != 0 {
			t.Error("a thread that sleeps is taken for one that starves")
		}
		h := r.hold("copy")
		busy := run(func() { r.wantPage(k, page(1), zeroPage) })
		<-h.arrived
		other := run(func() { r.wantPage(k, page(2), zeroPage) })
		settled()
		g.look()
		g.look()
		if r.p.Stats().Starved != 1 || !s.server.pace.demoted.Load() {
			t.Error("a thread with work and no progress is left alone")
		}
		h.release()
		<-busy
		<-other
		s.server.pace.idleFlag.Store(false)
	})
}

// TestHotPathDoesNotAllocate: a fault on a page in memory, outside, is served
// without garbage.
func TestHotPathDoesNotAllocate(t *testing.T) {
	simulateNow(t, Config{Readahead: -1, Limit: 1 << 30}, func(r *rig) {
		k, s := r.start(1000)
		var out [1]store.Ref
		if n, err := r.st.Store.Put([][]byte{pattern(1)}, out[:]); n != 1 || err != nil {
			t.Fatal(err)
		}
		ref := out[0]
		fd := &nullFD{sim: k}
		s.closing.Store(true) // stop the serving thread: the test is it now
		k.Interrupt()
		<-s.done
		s.fd = fd
		i := 0
		serve := func() {
			pg := page(i % 900)
			s.mu.Lock()
			e := s.table.peek(pg)
			if e == nil || e.state != outside {
				if e != nil && e.state == resident {
					s.vanish(e)
					e.ref, e.inStore = store.Ref{}, false
				}
				r.st.Share(ref)
				s.table.set(pg, entry{ref: ref, state: outside, inStore: true, stamp: evict.Stamp(2)})
			}
			s.mu.Unlock()
			s.serveFault(fault{page: pg, tid: 1})
			s.mu.Lock()
			e = s.table.peek(pg)
			landed := e.state == resident
			old := e.ref
			e.ref, e.inStore = store.Ref{}, false
			s.mu.Unlock()
			if !landed {
				t.Fatalf("page %d is %v", i, s.table.stateOf(pg))
			}
			s.p.free(old)
			i++
		}
		for range 1000 {
			serve()
		}
		if n := testing.AllocsPerRun(500, serve); n != 0 {
			t.Errorf("%v allocations a fault", n)
		}
		if fd.n == 0 {
			t.Error("nothing was installed")
		}
		s.fd = k
		r.st.Free(ref)
	})
}

// BenchmarkFaults is a thread that goes round four times the limit, through
// the sim: what a fault and its share of eviction cost the pager.
func BenchmarkFaults(b *testing.B) {
	m, err := memstore.Open(memstore.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	pg, err := New(Config{Limit: MinLimit, Store: m})
	if err != nil {
		b.Fatal(err)
	}
	defer pg.Close()
	k := newWorld(b).space()
	const n = 1024
	k.mmap(pages(0, n))
	s := pg.Attach(k, SpaceConfig{Name: "sim", Mover: k.newMover, Present: k.presentIn})
	if err := s.Add(pages(0, n), false); err != nil {
		b.Fatal(err)
	}
	p := pattern(1)
	i := 0
	for b.Loop() {
		if err := k.store(1, page(i*7%n), p); err != nil {
			b.Fatal(err)
		}
		i++
	}
	st := pg.Stats()
	faults := st.Fresh + st.Major + st.Rescued
	b.ReportMetric(float64(faults)/b.Elapsed().Seconds(), "faults/s")
	b.ReportMetric(float64(st.Latency.P50.Nanoseconds()), "p50-ns")
}

// nullFD installs everything, and keeps nothing.
type nullFD struct {
	*sim
	n int
}

func (f *nullFD) Copy(_ mem.Addr, src []byte, _ uapi.CopyMode) (int, syscall.Errno) {
	f.n++
	return len(src), 0
}

// TestReservationIsNotWalked: memory of a TiB with little in it was looked through 64 MiB
// at a time, each on the serving thread: a browser, whose processes have such reservations,
// took half as long again. What is there has to be covered all the same.
func TestReservationIsNotWalked(t *testing.T) {
	const tib = 1 << 40
	at := func(off, n uint64) mem.Range { return mem.MakeRange(base+mem.Addr(off), n) }
	for _, c := range []struct {
		there []mem.Range
		want  []mem.Range
	}{
		{nil, nil},
		{[]mem.Range{at(0, mem.PageSize), at(tib-mem.PageSize, mem.PageSize)},
			[]mem.Range{at(0, mem.PageSize), at(tib-mem.PageSize, mem.PageSize)}},
		{[]mem.Range{at(0, mem.PageSize), at(findStep-mem.PageSize, mem.PageSize)}, []mem.Range{at(0, findStep)}},
		{[]mem.Range{at(0, 2*findStep+mem.PageSize)},
			[]mem.Range{at(0, findStep), at(findStep, findStep), at(2*findStep, mem.PageSize)}},
		{[]mem.Range{at(mem.PageSize, mem.PageSize), at(findStep, 2*mem.PageSize)},
			[]mem.Range{at(mem.PageSize, findStep), at(findStep+mem.PageSize, mem.PageSize)}},
		{[]mem.Range{at(findStep, mem.PageSize), at(0, mem.PageSize)},
			[]mem.Range{at(findStep, mem.PageSize), at(0, mem.PageSize)}},
	} {
		got, err := stepsOf(at(0, tib), func(_ mem.Range, f func(mem.Range)) error {
			for _, r := range c.there {
				f(r)
			}
			return nil
		})
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("steps of %v: %v, %v, want %v", c.there, got, err, c.want)
		}
	}
	failed := errors.New("no")
	if _, err := stepsOf(at(0, tib), func(mem.Range, func(mem.Range)) error { return failed }); err != failed {
		t.Errorf("an error became %v", err)
	}
}
