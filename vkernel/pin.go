// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
)

// pin is a page that can be pinned: a frame of one kind or the other.
type pin struct {
	frame frame
	huge  bool
}

// Pin faults in the pages of a range for writing and pins them, as a device
// does that transfers to memory: a pinned page is not moved, and fork copies
// it at once rather than share it. The function that it returns unpins them.
// EFAULT says that one cannot be had.
func (th *Thread) Pin(r mem.Range) (unpin func(), errno syscall.Errno) {
	th.enter()
	defer th.leave()
	k, as := th.p.k, th.p.as.Load()
	var pins []pin
	drop := func() {
		for _, p := range pins {
			k.unpin(p)
		}
		pins = nil
	}
	for a := r.Start.Down(); a < r.End; {
		at := attempt{as: as, write: true, mode: pinMode}
		p, ok := as.pinPage(a)
		for ; !ok; p, ok = as.pinPage(a) {
			if v := as.fault(th, a, &at); v != retry {
				drop()
				return nil, EFAULT
			}
		}
		pins = append(pins, p)
		if a += mem.PageSize; p.huge {
			a = (a + HugePageSize - 1) &^ (HugePageSize - 1)
		}
	}
	return drop, 0
}

// pinPage pins the page at a if it can be written to.
func (as *space) pinPage(a mem.Addr) (p pin, ok bool) {
	s := as.pt.slot(a, false)
	if s == nil {
		return p, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.huge
	if p.huge = e != 0; !p.huge {
		e = s.get(index(a))
	}
	if !e.writable() {
		return p, false
	}
	p.frame = e.frame()
	if p.huge {
		as.k.mem.huge.get(p.frame)
	} else {
		as.k.mem.get(p.frame)
	}
	as.k.pinMu.Lock()
	as.k.pins[p]++
	as.k.pinMu.Unlock()
	return p, true
}

func (k *Kernel) unpin(p pin) {
	k.pinMu.Lock()
	if k.pins[p]--; k.pins[p] == 0 {
		delete(k.pins, p)
	}
	k.pinMu.Unlock()
	if p.huge {
		k.mem.huge.put(p.frame)
	} else {
		k.mem.put(p.frame)
	}
}

func (k *Kernel) pinned(p pin) bool {
	k.pinMu.Lock()
	defer k.pinMu.Unlock()
	return k.pins[p] > 0
}
