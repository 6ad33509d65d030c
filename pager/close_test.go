// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"runtime"
	"testing"

	"github.com/faultline-go/faultline/vkernel"
)

// TestCloseWhileOthersFault: the queue is cleaned for another space's sake while
// a space closes. Had it taken the closing one's pages for gone by then, they
// would be counted as gone twice, and with fewer than no pages in its account
// the queue panics, which ends all programs.
func TestCloseWhileOthersFault(t *testing.T) {
	simulate(t, Config{Limit: 16 << 20}, func(r *rig) {
		dying, s := r.start(1000)
		r.fill(dying, 0, 1000, 1)
		other, _ := r.start(500)
		s.batchMu.Lock()
		closed := run(s.Close)
		<-s.done
		for range 1000 {
			runtime.Gosched() // Close gets to where it waits for the batch
		}
		for range 6 {
			// The queue is cleaned when a fifth of what is in it is stale.
			r.fill(other, 0, 500, 1)
			other.advise("discard", pages(0, 500), vkernel.MadvDontNeed)
		}
		s.batchMu.Unlock()
		<-closed
		settled() // what was discarded last has been read, and perhaps not applied
		r.p.mu.Lock()
		defer r.p.mu.Unlock()
		if n := r.p.queue.Len(); n != 0 {
			t.Errorf("the queue counts %d pages, want none", n)
		}
	})
}

// TestClosingIsNoVictim: what leaves is not looked for in a space that closes:
// its pages go by themselves.
func TestClosingIsNoVictim(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		k, s := r.start(100)
		r.fill(k, 0, 100, 1)
		settled()
		s.closing.Store(true)
		ev := &evictor{p: r.p, size: 50, victims: make(map[*Space][]victim)}
		if ev.choose(); len(ev.victims) != 0 {
			t.Errorf("%d pages of a closing space were chosen", len(ev.victims[s]))
		}
		if n := r.p.queue.Len(); n != 0 {
			t.Errorf("%d pages are still in the queue", n)
		}
	})
}

// TestOneBatchForAllSpaces: with more than two spaces the buffers of a batch were made
// anew for each in every round: the collector ran forty times a second, and a tree of
// five processes took half as long again.
func TestOneBatchForAllSpaces(t *testing.T) {
	simulate(t, Config{Limit: 8 << 20}, func(r *rig) {
		const spaces, each = 6, 60
		for i := range spaces {
			k, _ := r.start(each)
			r.fill(k, 0, each, uint64(1000*i))
		}
		settled()
		ev := &evictor{p: r.p, size: 90, victims: make(map[*Space][]victim), busy: make(map[*Space][]victim)}
		var first *byte
		for round := range 3 {
			before := r.p.stat.pagesOut.Load()
			ev.round()
			if n := r.p.stat.pagesOut.Load() - before; n != 90 {
				t.Fatalf("%d pages left in round %d, want 90", n, round)
			}
			if round == 0 {
				first = &ev.batch.buf[0]
			} else if first != &ev.batch.buf[0] {
				t.Errorf("the buffer of round %d is a new one", round)
			}
			ev.size = 90 // scattered or not
		}
		r.wantCounts()
	})
}
