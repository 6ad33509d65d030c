// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

func TestEntrySize(t *testing.T) {
	if n := unsafe.Sizeof(entry{}); n != 24 {
		t.Errorf("an entry takes %d bytes", n)
	}
}

// TestRemoveRaceWithInstall: a page is installed between a REMOVE event and
// the removal, and goes with the others. However late it is touched again, it
// reads zero (H5, H6), and the evictor does not choke on it.
func TestRemoveRaceWithInstall(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Minute} {
		simulate(t, Config{Readahead: -1}, func(r *rig) {
			k, s := r.start(600)
			r.fill(k, 0, 20, 1)
			g, removed := r.arriveAt("remove:done", func() { k.remove(pages(0, 40)) })
			r.put(k, 33, 4242)
			r.put(k, 34, 4243)
			settled()
			g.release()
			<-removed
			time.Sleep(wait)
			if s.pageState(33) != resident || k.isPresent(page(33)) {
				t.Fatalf("page is %v: this is not the race", s.pageState(33))
			}
			r.wantPage(k, page(33), zeroPage)
			r.fill(k, 50, 500, 1)
			settled()
			r.wantPage(k, page(34), zeroPage)
			r.wantCounts()
		})
	}
}

// TestRemoveRaceWithReturn: a page is installed between a REMOVE event and the
// removal, leaves, and comes back from the store before it goes with the
// others: the thread in madvise(2) has waited for a processor. It reads zero,
// and is not taken for lost (H5, H6).
func TestRemoveRaceWithReturn(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, s := r.start(900)
		r.fill(k, 0, 20, 1)
		g, removed := r.arriveAt("remove:done", func() { k.remove(pages(0, 40)) })
		r.put(k, 33, 4242)
		for i := 50; s.pageState(33) != outside; i++ {
			r.put(k, i, uint64(i)+1)
			settled()
		}
		r.wantPage(k, page(33), pattern(4242))
		settled() // the page is seen before it is entered as resident
		g.release()
		<-removed
		if s.pageState(33) != resident || k.isPresent(page(33)) {
			t.Fatalf("page is %v: this is not the race", s.pageState(33))
		}
		r.wantPage(k, page(33), zeroPage)
		r.wantCounts()
	})
}

// TestGuardStopsReadahead: pages were brought in where the program has made guards,
// which are none then.
func TestGuardStopsReadahead(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		k, s := r.start(600)
		guard := func(rg mem.Range) {
			if err := s.Guard(rg); err != nil {
				t.Fatal(err)
			}
		}
		stream := func(first, n int) { // up to a guard of two pages
			r.fill(k, first, n, 1)
			settled()
			for i := range 2 {
				if k.isPresent(page(first + n + i)) {
					t.Errorf("page %d was brought in", first+n+i)
				}
			}
		}
		guard(pages(40, 2))
		guard(pages(100, 2))
		stream(0, 40)
		stream(42, 58)
		k.remap(pages(90, 20), page(300).Addr()) // and what was guarded is, there
		stream(250, 60)
		k.unmap(pages(310, 2))
		k.mmap(pages(310, 2))
		if err := s.Add(pages(310, 2), false); err != nil {
			t.Fatal(err)
		}
		r.fill(k, 310, 2, 1)
		if err := s.Unguard(pages(40, 2)); err != nil {
			t.Fatal(err)
		}
		r.fill(k, 40, 2, 1)
		r.wantCounts()
	})
}

// TestFreeThenReclaim is MADV_FREE: the pages stay, count, and vanish much
// later, which is no loss.
func TestFreeThenReclaim(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, _ := r.start(600)
		r.fill(k, 0, 20, 1)
		k.free(pages(0, 20))
		r.p.kickEvictor()
		time.Sleep(time.Second)
		r.wantCounts()
		time.Sleep(time.Minute)
		k.reclaim(pages(0, 10)) // the kernel is short of memory
		for i := range 10 {
			r.wantPage(k, page(i), zeroPage)
		}
		r.fill(k, 30, 500, 1)
		for i := 10; i < 20; i++ {
			r.wantPage(k, page(i), pattern(uint64(i)+1))
		}
		r.wantCounts()
	})
}

// TestVerifyBeforeZap: the pages of a REMOVE are compared with the kernel
// before they have gone. They count as resident then, and go all the same.
func TestVerifyBeforeZap(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, s := r.start(600)
		r.fill(k, 0, 20, 1)
		g, removed := r.arriveAt("remove:done", func() { k.remove(pages(0, 20)) })
		r.p.kickEvictor()
		time.Sleep(time.Second)
		if s.pageState(0) != resident {
			t.Fatal("not verified: this is not the race")
		}
		g.release()
		<-removed
		time.Sleep(time.Minute)
		r.wantPage(k, page(0), zeroPage)
	})
}

// TestVanished: a page that is gone for no reason is poisoned, and not zero.
func TestVanished(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		r.lossy = true
		k, s := r.start(600)
		r.fill(k, 0, 3, 1)
		k.reclaim(pages(1, 1))
		if _, err := k.load(1, page(1)); err != errBus {
			t.Errorf("load: %v", err)
		}
		r.wantOneLost(s, 1)
		r.wantPage(k, page(2), pattern(3))
	})
}

// TestLeavesWhileLookedUp: several threads fault on a page before it comes, so
// that their messages are read when it is there. While the kernel is asked
// whether it is, the page leaves in all order. It is not lost.
func TestLeavesWhileLookedUp(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		var look atomic.Pointer[func()]
		var k *sim
		k, _ = r.start(600, func(c *SpaceConfig) {
			c.Present = func(rg mem.Range, f func(mem.Range)) error {
				if rg.Start == page(7).Addr() {
					if hook := look.Swap(nil); hook != nil {
						(*hook)()
					}
				}
				return k.presentIn(rg, f)
			}
		})
		r.fill(k, 0, 200, 1)
		settled()
		hook := func() {
			r.p.SetForeign(2 * MinLimit) // nearly all has to leave
			time.Sleep(time.Second)
			if k.isPresent(page(7)) {
				t.Error("the page has not left: this is not the race")
			}
		}
		look.Store(&hook)
		var late []uapi.Msg
		for tid := range uint32(enough) {
			late = append(late, faultMsg(page(7), tid+2))
		}
		k.tell(late...)
		time.Sleep(2 * time.Second)
		settled()
		if look.Load() != nil {
			t.Fatal("nobody asked for the page")
		}
		r.wantPage(k, page(7), pattern(8))
	})
}

// TestIsBackWhenLookedUp: a page is missing at the moment in which the kernel is asked for
// it, and is there again when that has answered. It was said to be lost, and was not.
func TestIsBackWhenLookedUp(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		var k *sim
		asked := 0
		k, s := r.start(600, func(c *SpaceConfig) {
			c.Present = func(rg mem.Range, f func(mem.Range)) error {
				if rg == pages(7, 1) {
					asked++
					return nil
				}
				return k.presentIn(rg, f)
			}
		})
		r.fill(k, 0, 200, 1)
		var again []uapi.Msg
		for tid := range uint32(enough) {
			again = append(again, faultMsg(page(7), tid+2))
		}
		k.tell(again...)
		time.Sleep(time.Second)
		settled()
		if asked == 0 {
			t.Fatal("nobody asked for the page")
		}
		if st := s.pageState(7); st != resident {
			t.Errorf("the page is %v", st)
		}
		r.wantPage(k, page(7), pattern(8))
		r.wantCounts()
	})
}

// TestMarkAfterClose: pages that are found in a space that was closed
// meanwhile count for nobody.
func TestMarkAfterClose(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		_, s := r.start(600)
		s.Close()
		s.markResident(pages(0, 100), 0)
	})
}

// TestFindAfterRemap: pages are found at the place to which mremap has brought
// them before its event is there. They must not leave and then be forgotten
// as what was there before (H5).
func TestFindAfterRemap(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, s := r.start(600)
		r.fill(k, 10, 20, 1)
		dst := pages(5000, 20)
		g, moved := r.arriveAt("remap:announced", func() { k.remap(pages(10, 20), dst.Start) })
		found := run(func() {
			if err := s.Add(dst, false); err != nil {
				t.Error(err)
			}
			if err := s.FindResident(dst, false); err != nil {
				t.Error(err)
			}
		})
		settled()
		r.p.SetForeign(r.p.cfg.Limit) // so that everything leaves that can
		time.Sleep(time.Second)
		r.p.SetForeign(0)
		g.release()
		<-moved
		<-found
		for i := range 20 {
			r.wantPage(k, page(5000+i), pattern(uint64(10+i)+1))
		}
		r.wantCounts()
	})
}

// TestFindAfterUnmap: pages are found, unmapped, and only then entered. Other
// memory at their place reads zero, and is not taken for lost (H6).
func TestFindAfterUnmap(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		looks := 0
		unmapped := make(<-chan struct{})
		var k *sim
		var s *Space
		k, s = r.start(600, func(c *SpaceConfig) {
			ask := c.Present
			c.Present = func(rg mem.Range, f func(mem.Range)) error {
				var found []mem.Range
				err := ask(rg, func(p mem.Range) { found = append(found, p) })
				if looks++; looks == 1 {
					unmapped = run(func() {
						k.unmap(rg)
						k.mmap(rg)
						if err := s.Add(rg, false); err != nil {
							t.Error(err)
						}
					})
					time.Sleep(time.Millisecond)
				}
				for _, p := range found {
					f(p)
				}
				return err
			}
		})
		r.fill(k, 10, 20, 1)
		if err := s.FindResident(pages(10, 20), false); err != nil {
			t.Fatal(err)
		}
		<-unmapped
		for i := 10; i < 30; i++ {
			r.wantPage(k, page(i), zeroPage)
		}
		r.wantCounts()
	})
}

// TestGuardDismissesFaults: a fault that was read before a guard was set there had its page
// brought in after that, and there was no guard any more.
func TestGuardDismissesFaults(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, s := r.start(600)
		k.mu.Lock()
		k.extra = append(k.extra, faultMsg(page(10), 1)) // to be read by Guard
		k.mu.Unlock()
		if err := s.Guard(pages(10, 2)); err != nil {
			t.Fatal(err)
		}
		settled()
		if k.isPresent(page(10)) {
			t.Error("a page was brought in")
		}
	})
}

// TestFindWhereSharedMemoryWas: pages of shared memory are seen, private memory is mapped
// in their place, which raises no event and is announced at once, and only then are
// those pages entered. The private ones were never there, and not lost.
func TestFindWhereSharedMemoryWas(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		shared := pages(1000, 4)
		var k *sim
		var s *Space
		looks := 0
		k, s = r.start(600, func(c *SpaceConfig) {
			ask := c.Present
			c.Present = func(rg mem.Range, f func(mem.Range)) error {
				var found []mem.Range
				err := ask(rg, func(p mem.Range) { found = append(found, p) })
				if looks++; looks == 2 { // on the serving thread
					k.unmap(shared)
					k.mmap(shared)
					if err := s.Add(shared, false); err != nil {
						t.Error(err)
					}
				}
				for _, p := range found {
					f(p)
				}
				return err
			}
		})
		k.share(shared)
		r.fill(k, 1000, 4, 1)
		if err := s.FindResident(pages(0, 2000), false); err != nil {
			t.Fatal(err)
		}
		if looks < 2 {
			t.Fatal("nothing was entered")
		}
		for i := 1000; i < 1004; i++ {
			r.wantPage(k, page(i), zeroPage)
		}
		r.wantCounts()
	})
}

// TestRemapOntoBatch: a REMAP brings a page of a batch to the address of
// another page of the same batch, whose bytes it must not take.
func TestRemapOntoBatch(t *testing.T) {
	for _, phase := range []string{"moved", "read", "put"} {
		t.Run(phase, func(t *testing.T) {
			simulate(t, Config{Readahead: -1}, func(r *rig) {
				k, s := r.start(600)
				var g *gate
				var i int
				if phase == "put" {
					g, i = r.overfillPut(k, s, 600)
				} else {
					g, i = r.overfill(k, s, 600, phase)
				}
				if s.pageState(i+1) != evicting {
					t.Fatal("not in the batch")
				}
				k.remap(pages(i+1, 1), page(i).Addr())
				g.release()
				settled()
				r.wantPage(k, page(i), pattern(uint64(i)+2))
				if _, err := k.load(1, page(i+1)); err != errSegv {
					t.Errorf("load of the place it left: %v", err)
				}
				r.wantCounts()
			})
		})
	}
}

// TestFaultsAndEventsInOneRead: the faults are read first, and served last,
// when the UNMAP or REMOVE behind them has been applied (H5).
func TestFaultsAndEventsInOneRead(t *testing.T) {
	for _, unmap := range []bool{false, true} {
		simulate(t, Config{Readahead: -1}, func(r *rig) {
			k, s := r.start(1000)
			r.fill(k, 0, 600, 1)
			settled()
			i := r.firstIn(s, 600, outside)
			// The serving thread is busy while both are queued.
			g := r.hold("copy")
			busy := run(func() { r.wantPage(k, page(999), zeroPage) })
			<-g.arrived
			var err error
			var got []byte
			load := run(func() { got, err = k.load(1, page(i)) })
			settled()
			var op <-chan struct{}
			if unmap {
				op = run(func() { k.unmap(pages(i, 1)) })
			} else {
				op = run(func() { k.remove(pages(i, 1)) })
			}
			settled()
			g.release()
			<-op
			<-load
			<-busy
			if unmap && err != errSegv || !unmap && (err != nil || describe(got) != "zeros") {
				t.Errorf("unmap %v: %v, %s", unmap, err, describe(got))
			}
			r.wantCounts()
		})
	}
}

// TestAddOverQueuedUnmap: a mapping is made where the UNMAP of another is
// still queued, which must not be taken for one of the new mapping.
func TestAddOverQueuedUnmap(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, s := r.start(600)
		r.fill(k, 0, 600, 1)
		g, unmapped := r.arriveAt("unmap:announced", func() { k.unmap(pages(0, 100)) })
		added := run(func() {
			k.mmap(pages(0, 100))
			if err := s.Add(pages(0, 100), false); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Second)
		if isDone(added) {
			t.Error("Add did not wait for the events before it")
		}
		g.release()
		<-unmapped
		<-added
		for i := range 100 {
			r.wantPage(k, page(i), zeroPage)
			r.put(k, i, uint64(i)+9000)
		}
		r.fill(k, 100, 500, 1)
		for i := range 100 {
			r.wantPage(k, page(i), pattern(uint64(i)+9000))
		}
		settled()
		r.wantCounts()
	})
}

// TestFoundAfterRemap: memory that was looked for while it was unmapped is announced
// when mremap(2) has brought pages there. They were forgotten, and read as zeros.
func TestFoundAfterRemap(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, s := r.start(600)
		r.fill(k, 0, 600, 1)
		settled()
		i := r.firstIn(s, 600, outside)
		k.remap(pages(i, 10), page(1000).Addr())
		settled()
		s.Found(pages(990, 30))
		for j := range 10 {
			r.wantPage(k, page(1000+j), pattern(uint64(i+j)+1))
		}
		if got := s.Regions(); !slices.Contains(got, pages(990, 30)) {
			t.Errorf("regions %v, without %v", got, pages(990, 30))
		}
		r.wantCounts()
	})
}

// TestFlood: a flood of REMOVE events starves neither faults nor Add (H19).
// It runs in real time: the clock of a bubble stands still in a flood.
func TestFlood(t *testing.T) {
	simulateNow(t, Config{}, func(r *rig) {
		k, s := r.start(1000)
		stop := make(chan struct{})
		var floods []<-chan struct{}
		for i := range 4 {
			floods = append(floods, run(func() {
				// Threads that do nothing but madvise(2), more of them than
				// processors, keep EAGAIN up for ever: nobody can help that.
				for n := uint64(0); !isDone(stop); n++ {
					k.remove(pages(900+i, 1))
					if err := k.store(uint32(100+i), page(900+i), pattern(n)); err != nil {
						t.Error(err)
					}
				}
			}))
		}
		r.fill(k, 0, 500, 1)
		if err := s.Add(pages(950, 1), false); err != nil {
			t.Error(err)
		}
		close(stop)
		for _, c := range floods {
			<-c
		}
		for i := range 500 {
			r.wantPage(k, page(i), pattern(uint64(i)+1))
		}
	})
}

// TestControlUnderFlood: faults are served while a request waits for a quiet
// moment that does not come (H19).
func TestControlUnderFlood(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, s := r.start(100)
		late, removed := r.arriveAt("remove:read", func() { k.remove(pages(99, 1)) })
		added := run(func() { _ = s.Add(pages(0, 1), false) })
		time.Sleep(time.Millisecond)
		k.split(page(50).Addr())
		stale := run(func() { k.Wake(pages(0, 1)); _, _ = k.load(1, page(200)) })
		<-stale
		k.mmap(pages(300, 1))
		k.tell(faultMsg(page(400), 7)) // unmapped by now
		time.Sleep(time.Second)
		if !k.woken(page(400)) {
			t.Error("a thread that only has to wake sleeps on")
		}
		late.release()
		<-removed
		<-added
	})
}

// TestUnknownEvent: told, and survived (H23).
func TestUnknownEvent(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		k, _ := r.start(10)
		k.tell(uapi.Msg{Event: 0x77})
		r.wantPage(k, page(1), zeroPage)
		if r.log.count("0x77") != 1 {
			t.Errorf("log: %s", r.log)
		}
	})
}

// TestAdopt: a fault in memory that nobody has announced is served if it is
// mapped, and its thread woken if not (H23).
func TestAdopt(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		k, s := r.start(10)
		k.mmap(pages(20, 5))
		r.wantPage(k, page(22), zeroPage)
		want := []mem.Range{pages(0, 10), pages(20, 5)}
		if got := s.Regions(); len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
			t.Errorf("regions %v, want %v", got, want)
		}
	})
}

// TestPresentAlready: an install meets a page that is there: the waiter is
// woken (H3), and the install goes on behind it (H4).
func TestPresentAlready(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		k, _ := r.start(600)
		r.world.mu.Lock()
		once := true
		k.onCopy = func(dst mem.Addr) {
			if once { // it is populated behind everybody's back, and nobody woken
				once = false
				b := make([]byte, mem.PageSize)
				b[0] = 7
				if _, errno := k.fd.Copy(dst, b, uapi.UFFDIO_COPY_MODE_DONTWAKE); errno != 0 {
					t.Error(errno)
				}
			}
		}
		r.world.mu.Unlock()
		got, err := k.load(1, page(5))
		if err != nil || got[0] != 7 {
			t.Errorf("%v, %v", err, got[0])
		}
		r.wantCounts()
	})
}

// TestShortCopies: COPY stops early, and goes on from there (H4).
func TestShortCopies(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		k, s := r.start(600)
		k.short = 3
		r.fill(k, 0, 600, 1)
		for i := 50; i < 600; i += 50 {
			k.split(page(i + 3).Addr()) // and so do VMAs (ENOENT)
		}
		for i := range 600 {
			r.wantPage(k, page(i), pattern(uint64(i)+1))
		}
		k.remove(pages(0, 600))
		for i := range 600 {
			r.wantPage(k, page(i), zeroPage)
		}
		if r.p.Stats().Ahead < 300 {
			t.Errorf("readahead gave up: %d", r.p.Stats().Ahead)
		}
		_ = s
		r.wantCounts()
	})
}
