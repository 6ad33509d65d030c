// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"syscall"
	"testing"

	"github.com/faultline-go/faultline/mem"
)

// TestRelease: memory that is given up has its content, wherever that was, and nobody
// serves it any more. What is next to it goes on as before.
func TestRelease(t *testing.T) {
	for _, owned := range []bool{false, true} {
		simulate(t, Config{}, func(r *rig) {
			var change []func(*SpaceConfig)
			if owned {
				_, own := r.own()
				change = append(change, own)
			}
			k, s := r.start(900, change...)
			r.fill(k, 0, 600, 1)
			settled()
			r.firstIn(s, 600, outside) // this needs pages of both kinds
			r.firstIn(s, 600, resident)
			given := pages(100, 700) // and some that were never touched
			var parts []mem.Range
			err := s.Release(given, func(part mem.Range) syscall.Errno {
				parts = append(parts, part)
				return k.fd.Unregister(part)
			})
			if err != nil || len(parts) != 3 {
				t.Errorf("%v, in %v", err, parts)
			}
			for i := range 500 {
				if !k.isPresent(page(100 + i)) {
					t.Fatalf("page %d is missing", 100+i)
				}
			}
			if reg := s.Regions(); len(reg) != 2 || reg[0] != pages(0, 100) || reg[1] != pages(800, 100) {
				t.Errorf("regions: %v", reg)
			}
			r.fill(k, 800, 100, 1) // pushes out what it can
			for _, i := range []int{0, 50, 99, 100, 300, 599, 800, 899} {
				r.wantPage(k, page(i), pattern(uint64(i)+1))
			}
			r.wantPage(k, page(700), zeroPage)
			for i := 100; i < 800; i++ {
				if st := s.pageState(i); st != fresh {
					t.Fatalf("page %d is %v", i, st)
				}
			}
		})
	}
}

// TestPinForACall: pages that a call reads through a file of /proc, which brings in nothing,
// left between the moment at which they were brought in and the call.
func TestPinForACall(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, s := r.start(2000)
		r.fill(k, 0, 100, 1)
		once, twice := s.Pin(pages(0, 50)), s.Pin(pages(10, 10))
		r.fill(k, 100, 600, 1)
		r.firstIn(s, 700, outside)
		for i := range 50 {
			if !k.isPresent(page(i)) {
				r.Fatalf("page %d has left, and is pinned", i)
			}
		}
		once()
		once() // takes nothing from the other
		r.fill(k, 700, 600, 1)
		settled()
		for i := range 50 {
			if pinned := 10 <= i && i < 20; k.isPresent(page(i)) != pinned {
				r.Errorf("page %d is there: %v, pinned: %v", i, !pinned, pinned)
			}
		}
		twice()
		r.fill(k, 1300, 600, 1)
		settled()
		if k.isPresent(page(15)) || len(s.pins) != 0 {
			r.Errorf("a page stays that was let go; pinned are %v", s.pins)
		}
		r.wantPage(k, page(15), pattern(16))
	})
}
