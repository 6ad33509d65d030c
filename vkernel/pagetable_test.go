// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"math/rand/v2"
	"testing"

	"github.com/faultline-go/faultline/mem"
)

// TestSlotKeepsEntries: whatever is set is there, be it of a few pages or of many, and
// whether or not a place in the table of a few was another page's before.
func TestSlotKeepsEntries(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var m memory
		m.init()
		var table pageTable
		s := table.slot(0, true)
		want := map[int]pte{}
		pages := 1 + rng.IntN(8) // about as many as there is room for in the small one
		for range 30 {
			i, e := rng.IntN(pages)*63, pte(0)
			if rng.IntN(3) > 0 {
				e = pteWP | ptePoison*pte(rng.IntN(2))
			}
			s.set(i, e)
			want[i] = e
			if from := mem.Addr(rng.IntN(slotPages)); rng.IntN(20) == 0 {
				table.zap(&m, mem.Range{Start: from * mem.PageSize, End: slotPages * mem.PageSize}, false)
				for i := range want {
					if i >= int(from) {
						delete(want, i)
					}
				}
			}
			for i := range slotPages {
				if s.get(i) != want[i] {
					t.Fatalf("entry %d is %#x, not %#x", i, s.get(i), want[i])
				}
			}
		}
		table.zap(&m, mem.Range{End: slotPages * mem.PageSize}, false)
		if !s.blank() {
			t.Fatal("a slot keeps a table of nothing")
		}
	}
}

// TestUsedPassesOver: slots that have no pages are passed over, and none that has.
func TestUsedPassesOver(t *testing.T) {
	var m memory
	m.init()
	var table pageTable
	all := mem.Range{Start: 5 * mem.PageSize, End: 3 << topShift}
	if got := table.used(all); got != all.End {
		t.Errorf("an empty table is used at %v", got)
	}
	at := mem.Addr(2)<<topShift + 7<<dirShift + 9<<slotShift
	table.slot(at-1, true) // has a directory, and nothing else
	table.slot(at, true).set(3, ptePoison)
	for _, c := range []struct{ start, end, want mem.Addr }{
		{all.Start, all.End, at},
		{all.Start, at, at},
		{at + 20*mem.PageSize, all.End, at + 20*mem.PageSize}, // in its middle
		{at + 1<<slotShift, all.End, all.End},
	} {
		if got := table.used(mem.Range{Start: c.start, End: c.end}); got != c.want {
			t.Errorf("from %v: %v, want %v", c.start, got, c.want)
		}
	}
}
