// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
)

// Pin faults in the pages of a range for writing and pins them, as a device
// does that transfers to memory: a pinned page is not moved, and fork copies
// it at once rather than share it. The function that it returns unpins them.
func (th *Thread) Pin(r mem.Range) (unpin func(), errno syscall.Errno) {
	th.enter()
	defer th.leave()
	k, as := th.p.k, th.p.as.Load()
	var frames []frame
	drop := func() {
		for _, f := range frames {
			k.unpin(f)
		}
		frames = nil
	}
	for a := r.Start.Down(); a < r.End; a += mem.PageSize {
		at := attempt{as: as, write: true, mode: pinMode}
		for pinned := false; !pinned; {
			if f, ok := as.pinPage(a); ok {
				frames = append(frames, f)
				pinned = true
			} else if v := as.fault(th, a, &at); v != retry {
				drop()
				return nil, EFAULT
			}
		}
	}
	return drop, 0
}

// pinPage pins the page at a if it can be written to.
func (as *space) pinPage(a mem.Addr) (frame, bool) {
	s := as.pt.slot(a, false)
	if s == nil {
		return 0, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.get(index(a))
	if !e.writable() {
		return 0, false
	}
	as.k.mem.get(e.frame())
	as.k.pinMu.Lock()
	as.k.pins[e.frame()]++
	as.k.pinMu.Unlock()
	return e.frame(), true
}

func (k *Kernel) unpin(f frame) {
	k.pinMu.Lock()
	if k.pins[f]--; k.pins[f] == 0 {
		delete(k.pins, f)
	}
	k.pinMu.Unlock()
	k.mem.put(f)
}

func (k *Kernel) pinned(f frame) bool {
	k.pinMu.Lock()
	defer k.pinMu.Unlock()
	return k.pins[f] > 0
}
