// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"testing"
	"time"
)

// TestRoundTrip fills four times the limit and reads it back: every byte
// returns, and the bound holds.
func TestRoundTrip(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		const n = 1024
		k, _ := r.start(n)
		r.fill(k, 0, n, 1)
		for i := range n {
			r.wantPage(k, page(i), pattern(uint64(i)+1))
		}
		for i := n - 1; i >= 0; i -= 3 {
			r.wantPage(k, page(i), pattern(uint64(i)+1))
		}
		st := r.p.Stats()
		if st.PagesOut < n-256 || st.Major == 0 || st.Ahead == 0 {
			t.Errorf("nothing much happened: %+v", st)
		}
		r.wantBound()
		time.Sleep(time.Second)
		r.wantCounts()
		if got := r.p.Resident(); got > MinLimit {
			t.Errorf("%d bytes resident in peace, limit %d", got, MinLimit)
		}
	})
}

// TestSingleFlight: 50 threads on one slow page are one Get, and another
// page is served meanwhile.
func TestSingleFlight(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, s := r.start(1024)
		r.fill(k, 0, 600, 1)
		settled()
		i := r.firstIn(s, 600, outside)
		stall := make(chan struct{})
		r.st.set(func(s *testStore) { s.slow, s.stall, s.gets = true, stall, 0 })
		var all []<-chan struct{}
		for tid := range uint32(50) {
			all = append(all, run(func() {
				if b, err := k.load(tid, page(i)); err != nil || describe(b) != describe(pattern(uint64(i)+1)) {
					t.Errorf("thread %d: %v, %s", tid, err, describe(b))
				}
			}))
		}
		settled()
		r.wantPage(k, page(1000), zeroPage) // fresh
		r.st.set(func(s *testStore) {
			if s.gets != 1 {
				t.Errorf("%d Gets of one page", s.gets)
			}
			s.slow = false
		})
		close(stall)
		for _, c := range all {
			<-c
		}
	})
}
