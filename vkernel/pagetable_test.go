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
