// SPDX-License-Identifier: Apache-2.0

package uffdtrace

import (
	"math/bits"
	"time"

	"github.com/faultline-go/faultline/uffd/uapi"
)

// callStats counts the calls of one kind.
type callStats struct {
	count, failed, interrupted, ended int64
	bytes                             uint64 // of pages that were installed
	took                              time.Duration
	errnos                            map[Errno]int64
}

func (s *callStats) add(c *Call, e *effect) {
	s.count++
	s.took += max(c.End-c.Start, 0)
	s.bytes += e.filled
	switch {
	case c.Ended:
		s.ended++
	case c.Errno.restarts():
		s.interrupted++
	case c.failed():
		s.failed++
		if s.errnos == nil {
			s.errnos = make(map[Errno]int64)
		}
		s.errnos[c.Errno]++
	}
}

// faultStats counts the faults of one kind. Those that are neither again nor
// woken still wait, or were left to themselves.
type faultStats struct {
	read, again, woken int64
	latency            histogram
}

// stats is all that a summary says.
type stats struct {
	processes, files, notes int64
	calls                   map[string]*callStats
	messages                map[uapi.EventKind]int64
	faults                  [kinds]faultStats
}

func newStats() stats {
	return stats{calls: make(map[string]*callStats), messages: make(map[uapi.EventKind]int64)}
}

// name returns what calls are counted under.
func (c *Call) name() string {
	if request, ok := c.request(); ok {
		return requestName(request)
	}
	return c.Name
}

func (s *stats) call(c *Call, e *effect, o *outcome) {
	name := c.name()
	if s.calls[name] == nil {
		s.calls[name] = &callStats{}
	}
	s.calls[name].add(c, e)
	for i := range c.Messages {
		m := &c.Messages[i]
		s.messages[m.Event]++
		if m.Event == uapi.UFFD_EVENT_PAGEFAULT {
			_, flags, _ := m.Fault()
			s.faults[kindOf(flags)].read++
		}
	}
	for _, f := range o.again {
		s.faults[f.kind].again++
	}
	for _, w := range o.woken {
		s.faults[w.kind].woken++
		s.faults[w.kind].latency.add(w.after)
	}
}

// histogram counts durations in buckets of a power of two nanoseconds, each
// split in eight: a quantile is at most one part in eight too high.
type histogram struct {
	bucket [64 * 8]int64
	count  int64
	most   time.Duration
}

func (h *histogram) add(d time.Duration) {
	d = max(d, 0)
	h.bucket[bucketOf(uint64(d))]++
	h.count++
	h.most = max(h.most, d)
}

func bucketOf(n uint64) int {
	if n < 8 {
		return int(n)
	}
	shift := bits.Len64(n) - 4
	return (shift+1)*8 + int(n>>shift&7)
}

// bucketTop returns the largest duration of bucket i.
func bucketTop(i int) time.Duration {
	if i < 8 {
		return time.Duration(i)
	}
	shift := i/8 - 1
	return time.Duration((uint64(8+i%8)+1)<<shift - 1)
}

// quantile returns a duration that percent of all do not exceed, 0 if there
// are none.
func (h *histogram) quantile(percent int64) time.Duration {
	want, sum := (h.count*percent+99)/100, int64(0)
	for i, n := range h.bucket {
		if sum += n; n > 0 && sum >= want {
			return min(bucketTop(i), h.most)
		}
	}
	return 0
}
