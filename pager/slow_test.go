// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"testing"
	"time"
)

// slowly makes the store slow until the returned function is called.
func (r *rig) slowly() (release func()) {
	stall := make(chan struct{})
	r.st.set(func(s *testStore) { s.slow, s.stall = true, stall })
	return func() {
		r.st.set(func(s *testStore) { s.slow, s.stall = false, nil })
		close(stall)
	}
}

// TestDropWhileLoading removes, unmaps or moves a page for which a thread
// waits while a worker reads it. The thread must not sleep for ever, and the
// ref must not be freed while it is read.
func TestDropWhileLoading(t *testing.T) {
	for name, tc := range map[string]struct {
		drop func(k *sim, i int)
		want error
	}{
		"remove": {func(k *sim, i int) { k.remove(pages(i, 1)) }, nil},
		"unmap":  {func(k *sim, i int) { k.unmap(pages(i, 1)) }, errSegv},
		"remap":  {func(k *sim, i int) { k.remap(pages(i, 1), pages(5000, 1).Start) }, errSegv},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, Config{Readahead: -1}, func(r *rig) {
				k, s := r.start(600)
				r.fill(k, 0, 600, 1)
				settled()
				i := r.firstIn(s, 600, outside)
				release := r.slowly()
				var err error
				var got []byte
				done := run(func() { got, err = k.load(1, page(i)) })
				settled()
				tc.drop(k, i)
				time.Sleep(100 * time.Millisecond)
				if !isDone(done) {
					t.Error("the thread sleeps on")
				}
				release()
				<-done
				if err != tc.want || err == nil && describe(got) != "zeros" {
					t.Errorf("%v, %s; want %v", err, describe(got), tc.want)
				}
				if name == "remap" {
					r.wantPage(k, page(5000), pattern(uint64(i)+1))
				}
				time.Sleep(time.Second)
				r.wantCounts()
			})
		})
	}
}

// TestCloseWhileLoading: what workers still read belongs to nobody.
func TestCloseWhileLoading(t *testing.T) {
	simulate(t, Config{Readahead: -1, Workers: 2}, func(r *rig) {
		k, s := r.start(600)
		r.fill(k, 0, 600, 1)
		settled()
		release := r.slowly()
		n := 0
		for i := 0; i < 600 && n < 10; i++ {
			if s.pageState(i) == outside {
				n++
				go k.load(uint32(i), page(i))
			}
		}
		settled()
		s.Close()
		release()
	})
}

// TestBoundWhileLoading: pages on loan take up room before they come.
func TestBoundWhileLoading(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		k, s := r.start(4000)
		r.fill(k, 0, 4000, 1)
		settled()
		release := r.slowly()
		var all []<-chan struct{}
		for i := 0; i < 3500; i += 2 {
			if s.pageState(i) == outside {
				all = append(all, run(func() { r.wantPage(k, page(i), pattern(uint64(i)+1)) }))
			}
		}
		time.Sleep(40 * time.Millisecond) // less than stallTime
		release()
		for _, c := range all {
			<-c
		}
		r.wantBound()
		settled()
		r.wantCounts()
	})
}

// TestGetTimeout: a page that the store does not give in time is poisoned,
// and it is that page.
func TestGetTimeout(t *testing.T) {
	simulate(t, Config{Readahead: -1, Patience: time.Second}, func(r *rig) {
		r.lossy = true
		k, s := r.start(600)
		r.fill(k, 0, 600, 1)
		settled()
		i := r.firstIn(s, 600, outside)
		release := r.slowly()
		began := time.Now()
		if _, err := k.load(1, page(i)); err != errBus {
			t.Errorf("load: %v", err)
		}
		if d := time.Since(began); d < time.Second || d > 1100*time.Millisecond {
			t.Errorf("after %v", d)
		}
		release()
		r.wantOneLost(s, i)
		r.wantPage(k, page(i+1), pattern(uint64(i)+2))
	})
}

// wantOneLost checks that page i, and no other, is lost, and that the log
// names it.
func (r *rig) wantOneLost(s *Space, i int) {
	r.Helper()
	if n := r.p.Stats().Lost; n != 1 {
		r.Errorf("%d pages lost", n)
	}
	if s.pageState(i) != poisoned {
		r.Errorf("page %d is %v", i, s.pageState(i))
	}
	if r.log.count(page(i).Addr().String()) != 1 || r.log.count("level=ERROR") != 1 {
		r.Errorf("page %v is not named once: %s", page(i).Addr(), r.log)
	}
}

// TestCorrupt: a page whose checksum is wrong is poisoned, and nothing else.
func TestCorrupt(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		r.lossy = true
		k, s := r.start(600)
		r.fill(k, 0, 600, 1)
		settled()
		i := r.firstIn(s, 600, outside) + 2
		s.mu.Lock()
		ref := s.table.peek(page(i)).ref
		s.mu.Unlock()
		r.st.set(func(s *testStore) { s.corrupt[ref] = true })
		for j := range 600 {
			if j != i {
				r.wantPage(k, page(j), pattern(uint64(j)+1))
			}
		}
		for range 2 {
			if _, err := k.load(1, page(i)); err != errBus {
				t.Errorf("load of a corrupt page: %v", err)
			}
		}
		r.wantOneLost(s, i)
		k.remove(pages(i, 1))
		r.wantPage(k, page(i), zeroPage) // B.10: DONTNEED clears the marker
	})
}
