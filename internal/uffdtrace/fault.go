// SPDX-License-Identifier: Apache-2.0

package uffdtrace

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// kind is what a fault waits for.
type kind uint8

// Members of kind.
const (
	missing kind = iota
	minor
	protected
	kinds // how many there are
)

func (k kind) String() string { return [kinds]string{"missing", "minor", "wp"}[k] }

func kindOf(f uapi.FaultFlags) kind {
	switch {
	case f&uapi.UFFD_PAGEFAULT_FLAG_WP != 0:
		return protected
	case f&uapi.UFFD_PAGEFAULT_FLAG_MINOR != 0:
		return minor
	}
	return missing
}

// waiter is a thread that waits, as far as messages tell. Unless the program has
// asked for UFFD_FEATURE_THREAD_ID tid is 0, and all threads that wait for one
// address are one waiter.
type waiter struct {
	addr mem.Addr // of the message, which is what a wake goes by
	tid  uint32
}

// fault is one that has been read.
type fault struct {
	waiter
	kind kind
	read time.Duration // when the read that brought it had ended
	seq  uint64        // counts all faults of a trace
}

// name says which fault it is, in a line.
func (f *fault) name() string {
	if f.tid == 0 {
		return fmt.Sprintf("%v %v", f.kind, f.addr)
	}
	return fmt.Sprintf("%v %v of %d", f.kind, f.addr, f.tid)
}

// woken is a fault that has ended.
type woken struct {
	fault
	after time.Duration // its latency
}

// outcome is what a call meant for faults.
type outcome struct {
	again []fault // were read although the thread was waiting already
	woken []woken // in the order in which they were read
}

// waiting holds the faults of one File that have been read and not been ended,
// by the page that their address lies in.
type waiting struct {
	pages map[mem.Page][]fault
	n     int
}

// add puts a fault there. It reports false if the same waiter is there already:
// its thread was interrupted by a signal, has come back and waits anew, and
// that it has waited is counted from the first time.
func (w *waiting) add(f fault) bool {
	at := f.addr.Page()
	for _, g := range w.pages[at] {
		if g.waiter == f.waiter {
			return false
		}
	}
	if w.pages == nil {
		w.pages = make(map[mem.Page][]fault)
	}
	w.pages[at] = append(w.pages[at], f)
	w.n++
	return true
}

// end takes out those that e wakes, in the order in which they were read.
func (w *waiting) end(e *effect, at time.Duration) (out []woken) {
	if e.woken.Empty() || w.n == 0 {
		return nil
	}
	take := func(pg mem.Page) {
		var keep []fault
		for _, f := range w.pages[pg] {
			if e.missing && f.kind != missing || !e.woken.Contains(f.addr) {
				keep = append(keep, f)
				continue
			}
			out = append(out, woken{f, max(at-f.read, 0)})
			w.n--
		}
		if w.pages[pg] = keep; keep == nil {
			delete(w.pages, pg)
		}
	}
	first, last := e.woken.Start.Page(), (e.woken.End - 1).Page()
	if uint64(last-first) < uint64(len(w.pages)) {
		for pg := first; pg <= last; pg++ {
			take(pg)
		}
	} else {
		for pg := range w.pages {
			take(pg)
		}
	}
	slices.SortFunc(out, func(a, b woken) int { return cmp.Compare(a.seq, b.seq) })
	return out
}

// faultsOf returns the faults in the messages of a read. The first has the
// number after seq.
func faultsOf(c *Call, seq uint64) (fs []fault) {
	for i := range c.Messages {
		m := &c.Messages[i]
		if m.Event == uapi.UFFD_EVENT_PAGEFAULT {
			addr, flags, tid := m.Fault()
			seq++
			fs = append(fs, fault{waiter{addr, tid}, kindOf(flags), c.End, seq})
		}
	}
	return fs
}
