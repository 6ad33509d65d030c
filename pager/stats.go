// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"sync/atomic"
	"time"

	"github.com/faultline-go/faultline/internal/histogram"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/store"
)

// Stats is what a pager has done since it began. Counters only grow; the
// fields that say "now" are gauges.
type Stats struct {
	// Faults that were served, by kind. Fresh is a first touch, or one after
	// the program gave the page back; Major is a page that was outside;
	// Rescued one that was on its way out; Repeated a fault that was resolved
	// when it was read, or about to be; Stale one in memory that had been
	// unmapped.
	Fresh, Major, Rescued, Repeated, Stale int64
	// Parked faults had to wait: for a layout change to end, or, counted in
	// Stalls as well, for room under the limit. Slow ones waited for the
	// store's device.
	Parked, Stalls, Slow int64
	// Ahead is the number of pages brought in along with a faulting one,
	// of which Useful are known to have been wanted and Useless are not.
	Ahead, Useful, Useless int64
	// PagesIn and PagesOut count pages that came in, fresh ones included,
	// and pages that left.
	PagesIn, PagesOut int64
	// Clean counts pages that left as they had come, so that nothing had to
	// be stored.
	Clean int64
	// Unmovable counts tries to evict a page that is pinned, locked or not
	// writable.
	Unmovable int64
	// Lost pages were poisoned: their content could not be had.
	Lost int64
	// Events counts UNMAP, REMOVE, REMAP and FORK, Forks the last alone.
	Events, Forks int64
	// Starved counts how often the guard had to raise a serving thread.
	Starved int64
	// StoreErrors counts batches that the store did not take as a whole.
	StoreErrors int64
	// Latency of the faults that needed a page, from the message read to the
	// page ready to be installed.
	Latency Latency

	// Resident is the bytes resident now, Peak the most there were, Outside
	// the bytes of pages in the store now.
	Resident, Peak, Outside uint64
	// Spaces is the number of address spaces served now.
	Spaces int
	// Unbounded is set while the limit is suspended because nothing can
	// leave.
	Unbounded bool
	// Store is what the store says.
	Store store.Stats
}

// counters are updated by all threads.
type counters struct {
	fresh, major, rescued, repeated, stale atomic.Int64
	parked, stalls, slow                   atomic.Int64
	ahead                                  atomic.Int64
	useful, useless                        atomic.Int64 // of spaces that have ended
	pagesIn, pagesOut, unmovable, lost     atomic.Int64
	events, forks, starved, storeErrors    atomic.Int64
	most, clean                            atomic.Int64
	latency                                histogram.Histogram
}

func (c *counters) peak(resident int64) {
	for {
		old := c.most.Load()
		if resident <= old || c.most.CompareAndSwap(old, resident) {
			return
		}
	}
}

// Stats returns the counters. They are read one by one.
func (p *Pager) Stats() Stats {
	c := &p.stat
	st := Stats{
		Fresh: c.fresh.Load(), Major: c.major.Load(), Rescued: c.rescued.Load(),
		Repeated: c.repeated.Load(), Stale: c.stale.Load(),
		Parked: c.parked.Load(), Stalls: c.stalls.Load(), Slow: c.slow.Load(),
		Ahead:   c.ahead.Load(),
		Useful:  c.useful.Load(),
		Useless: c.useless.Load(),
		PagesIn: c.pagesIn.Load(), PagesOut: c.pagesOut.Load(), Clean: c.clean.Load(),
		Unmovable: c.unmovable.Load(), Lost: c.lost.Load(),
		Events: c.events.Load(), Forks: c.forks.Load(),
		Starved: c.starved.Load(), StoreErrors: c.storeErrors.Load(),
		Latency:   Latency(c.latency.Read()),
		Resident:  p.Resident(),
		Peak:      uint64(max(0, c.most.Load())) << mem.PageShift,
		Unbounded: p.unbounded.on.Load(),
		Store:     p.cfg.Store.Stats(),
	}
	for _, s := range p.snapshot() {
		st.Spaces++
		s.mu.Lock()
		a := s.server.ahead.Stats()
		s.mu.Unlock()
		st.Useful += int64(a.Useful)
		st.Useless += int64(a.Useless)
	}
	st.Outside = (st.Store.Live + uint64(p.overflow.len())) << mem.PageShift
	return st
}

// Latency is a distribution of durations. A quantile is the upper end of a
// bucket, at most an eighth too high.
type Latency struct {
	Count              int64
	P50, P90, P99, Max time.Duration
}
