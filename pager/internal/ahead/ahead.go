// SPDX-License-Identifier: Apache-2.0

// Package ahead decides how many pages to bring in along with one that a
// thread faulted on.
//
// It sees the faults of one address space and nothing else: pages that are
// resident are touched without a trace. A program that goes through memory
// by a constant stride is a stream. Once a window of pages was granted to
// it, its next fault is expected exactly behind that window; when it comes
// there every page of the window was passed, the window was useful, and the
// next one is twice as long. A stream that does not come back was granted a
// window in vain, which counts against all windows to come, until streams
// prove themselves again.
package ahead

import (
	"math"

	"github.com/faultline-go/faultline/mem"
)

const (
	// streams is how many streams are followed at a time.
	streams = 32
	// recentLen is how many faults are remembered that belong to no
	// stream, to find the beginnings of new ones.
	recentLen = 32
	// maxStride bounds strides, in pages.
	maxStride = 8192
	// maxPage is the last page number of a 64-bit address space.
	maxPage = math.MaxUint64 >> mem.PageShift
	// slack is how many strides beyond the expected page a stream may
	// come back: pages in between were resident, or faulted by another
	// thread whose message is still on its way.
	slack = 4
	// patience is how many faults a stream without a useful window may
	// be silent before it is taken for an accident.
	patience = 64
	// trustMax is the trust of a tracker without bad experience.
	trustMax = 16
)

// Plan says which pages to bring in along with page p of a fault: the pages
// p+Stride*i for i in 1..Count. All of them are page numbers that exist; if
// they are mapped is for the caller to see.
type Plan struct {
	Stride int64 // in pages, negative for a stream that descends
	Count  int

	slot int32  // stream, and
	gen  uint32 // its incarnation
}

// Stats counts pages, but for Misses.
type Stats struct {
	Misses  uint64
	Granted uint64 // planned, less what Granted said was not brought in
	Useful  uint64 // the stream went on past them
	Useless uint64 // the stream ended before them, as far as one can tell
}

// stream is one sequence of faults at a constant stride.
type stream struct {
	first  mem.Page // where it began
	last   mem.Page // latest fault
	stride int64    // zero: the slot is empty
	count  int      // pages granted with the latest fault
	window int      // the count to grant next
	stamp  uint32   // time of the latest fault
	gen    uint32
	tid    uint32
	proven bool // a window of this stream was useful
}

// recent is a fault that belongs to no stream yet. It may be the second of
// a pair at distance stride; a third at the same distance makes a stream.
type recent struct {
	page   mem.Page
	tid    uint32
	fresh  bool
	stride int64
	used   bool
}

// Tracker finds the streams in the faults of one address space. It allocates
// nothing after New. It is not safe for concurrent use.
type Tracker struct {
	max    int
	now    uint32
	s      [streams]stream
	recent [recentLen]recent
	head   int // of recent: the place of the next fault
	trust  int // 0..trustMax: how much windows paid lately
	stats  Stats
}

// New returns a tracker that grants at most maxWindow pages with a fault.
func New(maxWindow int) *Tracker {
	return &Tracker{max: max(maxWindow, 0), trust: trustMax}
}

// Stats returns the counters so far.
func (t *Tracker) Stats() Stats { return t.stats }

// Miss notes a fault of thread tid on page p and returns what to bring in
// along with it. outside says that the page's content is in the store; if it
// is not the memory is fresh, and its neighbours are cheap to guess wrong.
//
// A caller that brings in less than the plan says so by Granted, or the
// stream is expected too far away.
func (t *Tracker) Miss(p mem.Page, tid uint32, outside bool) Plan {
	t.now++
	t.stats.Misses++
	if p > maxPage {
		return Plan{}
	}
	if i := t.find(p, tid); i >= 0 {
		return t.advance(i, p, tid)
	}
	if i := t.wrapped(p, tid); i >= 0 {
		return t.restart(i, p, tid)
	}
	if stride, ok := t.begin(p, tid, !outside); ok {
		return t.start(p, stride, tid, outside)
	}
	return Plan{}
}

// Granted says that only the first actual pages of plan were brought in, or
// were in memory already: the rest is not mapped or found no room.
func (t *Tracker) Granted(plan Plan, actual int) {
	if plan.Count == 0 || actual < 0 || actual >= plan.Count {
		return
	}
	s := &t.s[plan.slot]
	if s.gen != plan.gen || s.count != plan.Count {
		return // the stream went on, or is gone
	}
	t.stats.Granted -= uint64(plan.Count - actual)
	s.count = actual
}

// Useful tells of n pages brought in ahead that proved themselves in a way
// that Miss cannot see, such as a rescue.
func (t *Tracker) Useful(n int) {
	if n > 0 {
		t.trust = min(t.trust+1, trustMax)
	}
}

// Wasted tells of n pages brought in ahead that left memory untouched.
func (t *Tracker) Wasted(n int) {
	if n > 0 {
		t.trust = max(t.trust-1, 0)
	}
}

// find returns the stream that page p continues, -1 if none does. The
// stream of the same thread wins over others, then the one closest by.
func (t *Tracker) find(p mem.Page, tid uint32) int {
	best, score := -1, math.MaxInt
	for i := range t.s {
		s := &t.s[i]
		if s.stride == 0 {
			continue
		}
		d := int64(p) - int64(s.last)
		next := s.stride * int64(s.count+1)
		n := 0
		if d != next {
			// Off the mark is fine for a stream that proved itself.
			// Most are nowhere near: no division for those.
			reach := abs(next) + slack*abs(s.stride)
			if !s.proven || d > reach || d < -reach || d%s.stride != 0 {
				continue
			}
			steps := d / s.stride
			if steps < -slack {
				continue
			}
			n = int(abs(steps - int64(s.count+1)))
		}
		if !s.proven && t.now-s.stamp > patience {
			continue
		}
		if s.tid != tid {
			n += slack
		}
		if n < score {
			best, score = i, n
		}
	}
	return best
}

// advance notes that stream i came to page p.
func (t *Tracker) advance(i int, p mem.Page, tid uint32) Plan {
	s := &t.s[i]
	steps := int((int64(p) - int64(s.last)) / s.stride)
	s.stamp, s.tid = t.now, tid
	switch {
	case steps <= 0:
		// A page behind us: evicted early, or a thread that lags.
		return Plan{}
	case steps <= s.count:
		// Within the window: not there after all, perhaps on its way.
		// What lies behind p is still to come.
		t.stats.Useful += uint64(steps - 1)
		s.last = p
		s.count -= steps
		return Plan{}
	}
	t.stats.Useful += uint64(s.count)
	if s.count > 0 {
		s.proven = true
		t.trust = min(t.trust+2, trustMax)
	}
	if steps == s.count+1 {
		s.window = min(max(2*s.window, 2), t.max)
	}
	s.last = p
	return t.grant(i)
}

// grant plans the window of stream i behind its latest fault.
func (t *Tracker) grant(i int) Plan {
	s := &t.s[i]
	n := s.window
	if !s.proven && t.trust < trustMax/2 {
		// Streams that ended at once were many lately. This one has
		// to show by single faults that it goes on.
		n = 0
		s.proven = s.window >= t.max || s.window >= 16
	}
	n = min(n, t.room(s.last, s.stride))
	s.count = n
	s.gen++
	t.stats.Granted += uint64(n)
	if n == 0 {
		return Plan{}
	}
	return Plan{Stride: s.stride, Count: n, slot: int32(i), gen: s.gen}
}

// room returns how many pages there are from p by stride.
func (t *Tracker) room(p mem.Page, stride int64) int {
	left := uint64(p)
	if stride > 0 {
		left = maxPage - uint64(p)
	}
	return int(min(left/uint64(abs(stride)), uint64(t.max)))
}

// wrapped returns the stream that starts over at p, -1 if none does: a loop
// at its first page again, or a strided scan at an offset that it left out.
func (t *Tracker) wrapped(p mem.Page, tid uint32) int {
	for i := range t.s {
		s := &t.s[i]
		if s.proven && s.tid == tid && abs(int64(p)-int64(s.first)) < abs(s.stride) {
			return i
		}
	}
	return -1
}

// restart lets stream i begin again at p. What it was granted last lies
// behind the end of its way.
func (t *Tracker) restart(i int, p mem.Page, tid uint32) Plan {
	s := &t.s[i]
	t.stats.Useless += uint64(s.count)
	if s.count > 0 {
		// The stream has to go on at least once to be let in again.
		s.proven = false
	}
	s.first, s.last, s.stamp, s.tid = p, p, t.now, tid
	s.window = max(s.window/2, min(2, t.max))
	return t.grant(i)
}

// start makes a stream whose latest fault is p, in place of the one that was
// silent for longest.
func (t *Tracker) start(p mem.Page, stride int64, tid uint32, outside bool) Plan {
	i := 0
	for j := range t.s {
		if t.s[j].stride == 0 {
			i = j
			break
		}
		if t.now-t.s[j].stamp > t.now-t.s[i].stamp {
			i = j
		}
	}
	s := &t.s[i]
	if s.stride != 0 && s.count > 0 {
		t.stats.Useless += uint64(s.count)
		t.trust = max(t.trust-1, 0)
	}
	*s = stream{first: p, last: p, stride: stride, stamp: t.now, gen: s.gen, tid: tid, window: min(2, t.max)}
	if !outside && stride == 1 {
		// The first fill of fresh memory: hardly ever anything else.
		s.window = min(4, t.max)
	}
	return t.grant(i)
}

// begin looks among the recent faults for ones that p makes a stream of, and
// returns its stride. Neighbours in fresh memory need two faults, all else
// needs three at the same distance.
func (t *Tracker) begin(p mem.Page, tid uint32, fresh bool) (int64, bool) {
	mine := recent{page: p, tid: tid, fresh: fresh, used: true}
	for back := 1; back <= recentLen; back++ {
		r := &t.recent[(t.head-back+recentLen)%recentLen]
		if !r.used {
			break
		}
		d := int64(p) - int64(r.page)
		if d == 0 || d > maxStride || d < -maxStride {
			continue
		}
		if tid != r.tid && abs(d) != 1 {
			// Threads that work side by side, each in its own part,
			// look like one stride from part to part.
			continue
		}
		if d == r.stride || fresh && r.fresh && d == 1 {
			r.stride = 0
			return d, true
		}
		if r.stride == 0 && (mine.stride == 0 || abs(d) < abs(mine.stride)) {
			mine.stride = d
		}
	}
	t.recent[t.head] = mine
	t.head = (t.head + 1) % recentLen
	return 0, false
}

func abs(n int64) int64 {
	if n < 0 {
		return -n
	}
	return n
}
