// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"testing"
	"time"
)

// TestStoreFull: the store fills up in the middle of a batch. Nothing is
// lost, the bound is suspended and the user told, our own memory does not
// take the store's place, and all is well again when there is room.
func TestStoreFull(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		k, _ := r.start(4000)
		r.st.set(func(s *testStore) { s.room = 100 })
		r.fill(k, 0, 1000, 1)
		time.Sleep(time.Second)
		r.fill(k, 1000, 1000, 1)
		time.Sleep(30 * time.Second)
		st := r.p.Stats()
		if !st.Unbounded || r.log.count("level=WARN") != 2 {
			t.Errorf("unbounded: %v; %s", st.Unbounded, r.log)
		}
		if n := r.p.overflow.len(); n == 0 || n > 4*r.p.batch {
			t.Errorf("%d pages held in our own memory", n)
		}
		r.st.set(func(s *testStore) {
			if s.puts > 100 {
				t.Errorf("%d tries to store, in half a minute", s.puts)
			}
			s.room = -1
		})
		time.Sleep(10 * time.Second)
		if n := r.p.overflow.pending(); n > 0 {
			t.Errorf("%d pages are still held in our own memory", n)
		}
		if r.p.Stats().Unbounded || r.p.Resident() > MinLimit {
			t.Errorf("%d bytes resident, unbounded: %v, 10 s after the store had room again",
				r.p.Resident(), r.p.Stats().Unbounded)
		}
		for i := range 2000 {
			r.wantPage(k, page(i), pattern(uint64(i)+1))
		}
		settled()
		r.wantCounts()
	})
}

// pending counts the pages that the store has not taken yet.
func (o *overflow) pending() (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, h := range o.pages {
		if h.bytes != nil {
			n++
		}
	}
	return n
}

// TestStoreFlaps: a store that is full again and again is told of once a
// minute, and in the end that it takes pages.
func TestStoreFlaps(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, _ := r.start(4000)
		for round := range 5 {
			r.st.set(func(s *testStore) { s.room = 0 })
			r.fill(k, round*500, 500, uint64(round))
			time.Sleep(3 * time.Second)
			r.st.set(func(s *testStore) { s.room = -1 })
			time.Sleep(5 * time.Second)
		}
		if n := r.log.count("the store takes no pages"); n != 2 { // one names the limit
			t.Errorf("told %d times in 40 seconds:\n%s", n, r.log)
		}
		if r.p.Stats().Unbounded || r.p.Resident() > MinLimit {
			t.Errorf("%d bytes resident", r.p.Resident())
		}
	})
}

// TestStoreFullOfHints: all that a full store holds are copies of pages that
// came back. They are given up, and pages can leave again.
func TestStoreFullOfHints(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, s := r.start(700)
		r.st.set(func(s *testStore) { s.most = 300 })
		r.fill(k, 0, 700, 1)
		time.Sleep(time.Second)
		for i := range 700 {
			r.wantPage(k, page(i), pattern(uint64(i)+1))
		}
		// The newest have never left, so that this makes no room.
		k.unmap(pages(500, 200))
		settled()
		if n := r.st.Stats().Live; n != 300 || s.pageState(0) != resident {
			t.Fatalf("the store holds %d pages, page 0 is %v: this is not the case", n, s.pageState(0))
		}
		time.Sleep(10 * time.Second)
		if r.p.Stats().Unbounded || r.p.Resident() > MinLimit {
			t.Errorf("%d bytes resident, unbounded: %v", r.p.Resident(), r.p.Stats().Unbounded)
		}
		for i := range 500 {
			r.wantPage(k, page(i), pattern(uint64(i)+1))
		}
		r.wantCounts()
	})
}

// TestStoreFullOfZeros: pages that need no room in a full store are no sign
// that it has some.
func TestStoreFullOfZeros(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		k, _ := r.start(4000)
		r.st.set(func(s *testStore) { s.room, s.zeros = 0, true })
		for i := range 2000 {
			b := zeroPage
			if i%2 == 0 {
				b = pattern(uint64(i))
			}
			if err := k.store(1, page(i), b); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(60 * time.Second)
		if n := r.p.overflow.len(); n > 4*r.p.batch {
			t.Errorf("%d pages held in our own memory", n)
		}
	})
}

// TestForeign: with no page of ours to evict a fault does not wait for room.
func TestForeign(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		k, _ := r.start(100)
		r.p.SetForeign(2*MinLimit + overshoot<<12)
		began := time.Now()
		r.fill(k, 0, 100, 1)
		if d := time.Since(began); d > 200*time.Millisecond {
			t.Errorf("100 faults took %v", d)
		}
	})
}

// TestForkIsNoReasonToGrow: nothing can leave from the fork of a process until its
// event is read: all pages are shared with the child, or none is tried. The bound was
// lifted then, for 100 ms, in which a child had everything in memory.
func TestForkIsNoReasonToGrow(t *testing.T) {
	t.Run("shared", func(t *testing.T) {
		noReasonToGrow(t, func(k *sim, on bool) { k.changing = on }, true)
	})
	t.Run("not tried", func(t *testing.T) {
		noReasonToGrow(t, func(k *sim, on bool) { k.later = on }, false)
	})
}

// noReasonToGrow has f keep all pages from leaving, which are pinned for that if pinned
// is set. f is called with the lock of k held.
func noReasonToGrow(t *testing.T, f func(k *sim, on bool), pinned bool) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, _ := r.start(2000)
		change := func(on bool) {
			r.world.mu.Lock()
			defer r.world.mu.Unlock()
			f(k, on)
		}
		change(true)
		for i := range 300 {
			r.put(k, i, uint64(i))
			if pinned {
				k.pin(page(i), true)
			}
		}
		time.Sleep(patientFor / 2)
		if r.p.Resident() <= MinLimit || r.p.Stats().Unbounded {
			t.Errorf("%d bytes resident, unbounded %v, while a fork is under way", r.p.Resident(), r.p.Stats().Unbounded)
		}
		time.Sleep(patientFor) // a thread that makes changes without end must not stop all others
		if !r.p.Stats().Unbounded {
			t.Error("still bounded, though nothing could leave for long")
		}
		change(false)
		for i := range 300 {
			if pinned {
				k.pin(page(i), false)
			}
		}
		time.Sleep(20 * time.Second)
		if r.p.Resident() > MinLimit || r.p.Stats().Unbounded {
			t.Errorf("%d bytes resident, unbounded %v, after the fork", r.p.Resident(), r.p.Stats().Unbounded)
		}
		r.wantCounts()
	})
}

// TestStuckPagesAreLeftAlone: whoever needed room in a space with many pages that cannot
// leave had all of them tried for each one that could. A program most of whose memory
// could be executed, and so did not move, took ten minutes for a second's work.
func TestStuckPagesAreLeftAlone(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		began := time.Now()
		k, s := r.start(2000)
		const stuck = 200 // of 256
		for i := range stuck {
			r.put(k, i, uint64(i))
			k.pin(page(i), true)
		}
		r.fill(k, stuck, 1000, 0)
		for range 5 {
			for i := stuck; i < stuck+1000; i++ {
				r.wantPage(k, page(i), pattern(uint64(i)))
			}
		}
		st := r.p.Stats()
		// Each list once, and each page twice before that and once more while the last
		// of them runs out.
		most := int64(stuck * (asideLists + 3) * (1 + int(time.Since(began)/(asideFirst<<(asideLists-1)))))
		if st.PagesOut < 5000 || st.Unmovable > most {
			t.Errorf("%d pages left, and those that cannot were tried %d times, at most %d are needed", st.PagesOut, st.Unmovable, most)
		}
		if st.Unbounded || r.p.Resident() > MinLimit {
			t.Errorf("%d bytes resident, unbounded %v, though all others can leave", r.p.Resident(), st.Unbounded)
		}
		for i := range stuck {
			if s.pageState(i) != resident {
				t.Fatalf("pinned page %d is %v", i, s.pageState(i))
			}
			k.pin(page(i), false)
		}
		r.wantCounts()
	})
}

// TestNoRoomLeft: where what cannot leave is as much as the limit, all else left as soon as
// it had come, and the program did nothing but wait for it; and the limit was not kept.
func TestNoRoomLeft(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, _ := r.start(2000)
		const stuck = 300 // of 256
		for i := range stuck {
			r.put(k, i, uint64(i))
			k.pin(page(i), true)
		}
		time.Sleep(10 * time.Second)
		before := r.p.Stats().PagesOut
		r.fill(k, stuck, 100, 0)
		for range 20 {
			for i := stuck; i < stuck+100; i++ {
				r.wantPage(k, page(i), pattern(uint64(i)))
				time.Sleep(time.Millisecond)
			}
		}
		if st := r.p.Stats(); st.PagesOut-before > 500 || !st.Unbounded || r.log.count("grows past the limit") == 0 {
			t.Errorf("%d pages left, unbounded %v: %s", st.PagesOut-before, st.Unbounded, r.log)
		}
		for i := range stuck {
			k.pin(page(i), false)
		}
		time.Sleep(20 * time.Second)
		if r.p.Stats().Unbounded || r.p.Resident() > MinLimit {
			t.Errorf("%d bytes resident, unbounded %v after all were unpinned", r.p.Resident(), r.p.Stats().Unbounded)
		}
		r.wantCounts()
	})
}

// TestPinned: pages that cannot move stay, the rest leaves, and when all is
// pinned the bound is lifted rather than the program stopped.
func TestPinned(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, s := r.start(2000)
		pin := func(i int, on bool) { k.pin(page(i), on) }
		for i := range 100 {
			r.put(k, i, uint64(i))
			pin(i, true)
		}
		r.fill(k, 100, 900, 0)
		settled() // or one is just being tried
		for i := range 100 {
			if s.pageState(i) != resident {
				t.Fatalf("pinned page %d is %v", i, s.pageState(i))
			}
		}
		if r.p.Stats().Unbounded {
			t.Error("unbounded, though most pages can leave")
		}
		for i := range 800 { // all that comes is pinned
			r.wantPage(k, page(100+i), pattern(uint64(100+i)))
			pin(100+i, true)
		}
		if !r.p.Stats().Unbounded || r.log.count("pinned") == 0 {
			t.Errorf("not unbounded: %s", r.log)
		}
		for i := range 900 {
			pin(i, false)
		}
		time.Sleep(20 * time.Second)
		if r.p.Stats().Unbounded || r.p.Resident() > MinLimit {
			t.Errorf("%d bytes resident, unbounded %v after all were unpinned", r.p.Resident(), r.p.Stats().Unbounded)
		}
		r.wantCounts()
	})
}
