// SPDX-License-Identifier: Apache-2.0

package uffdtrace

import (
	"time"

	"github.com/faultline-go/faultline/internal/histogram"
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
	latency            histogram.Histogram
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
		s.faults[w.kind].latency.Add(w.after)
	}
}
