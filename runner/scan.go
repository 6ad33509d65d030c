// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"cmp"
	"slices"
	"syscall"

	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/mem"
)

// rescan registers all private anonymous memory that is not registered yet.
func (e *engagement) rescan() {
	if !e.scanMu.TryLock() {
		return // the next one comes soon
	}
	defer e.scanMu.Unlock()
	e.scan()
}

// scan is rescan. Preconditions: e.scanMu is held.
func (e *engagement) scan() {
	vmas, err := procmem.Maps(e.pid())
	if err != nil {
		return // it has ended
	}
	if !e.looked && e.user == nil {
		// If it cannot be told, a page that is missing may be one of those.
		n, err := procmem.Freed(e.pid())
		e.looked = true
		e.freed.Store(e.freed.Load() || err != nil || n > 0)
	}
	known := e.pg.Regions()
	var wiped, found []mem.Range
	for _, v := range vmas {
		if v.Name == "[heap]" {
			e.mu.Lock()
			e.brk = max(e.brk, v.End)
			e.mu.Unlock()
		}
		if !v.Anonymous() {
			continue
		}
		for _, part := range e.unknown(v.Range, known) {
			if !e.found(part) {
				continue
			}
			if len(found) == 0 { // it is slow, and there is hardly ever anything new
				if wiped, err = procmem.Flagged(e.pid(), "wf"); err != nil {
					return // it has ended
				}
			}
			found = append(found, part)
			e.wipe(part, wiped)
		}
	}
	if d, ok := e.fd.(*descriptor); ok && len(found) > 0 {
		e.disclaim(d, found)
	}
}

// disclaim gives up what of found is other memory than private anonymous by now. The
// program may have put shared memory there after we had looked, which the kernel registers
// as well.
func (e *engagement) disclaim(d *descriptor, found []mem.Range) {
	unregister := func(r mem.Range) syscall.Errno {
		if errno := d.Unregister(r); errno != syscall.EINVAL {
			return errno
		}
		return 0 // it cannot be registered, and is not
	}
	vmas, err := procmem.Maps(e.pid())
	if err != nil {
		return // it has ended
	}
	for _, v := range vmas {
		for len(found) > 0 && found[0].End <= v.Start {
			found = found[1:] // both are in order
		}
		if v.Anonymous() {
			continue
		}
		for i := 0; i < len(found) && found[i].Start < v.End; i++ {
			// It may be private once more, and then nothing must be lost.
			if err := e.pg.Release(v.Intersect(found[i]), unregister); err != nil && !gone(err) {
				e.r.log.Warn("shared memory stays registered", "pid", e.pid(), "err", err)
			}
		}
	}
}

// wipe tells what of r forked children find zeroed, in memory that was not seen when the
// program said so.
func (e *engagement) wipe(r mem.Range, wiped []mem.Range) {
	for _, w := range wiped {
		part := w.Intersect(r)
		if part.Empty() {
			continue
		}
		_ = e.pg.SetWipe(part, true) // an error means that the space has ended
		if e.user != nil {
			e.user.Wipe(part)
		}
	}
}

// unknown returns the parts of r that are neither in known, which is sorted,
// nor our own.
func (e *engagement) unknown(r mem.Range, known []mem.Range) []mem.Range {
	e.mu.Lock()
	own := slices.Clone(e.private)
	e.mu.Unlock()
	i, _ := slices.BinarySearchFunc(known, r.Start, func(k mem.Range, a mem.Addr) int {
		if k.End <= a {
			return -1
		}
		return 1
	})
	for ; i < len(known) && known[i].Start < r.End; i++ {
		own = append(own, known[i])
	}
	slices.SortFunc(own, func(a, b mem.Range) int { return cmp.Compare(a.Start, b.Start) })
	return mem.Subtract([]mem.Range{r}, own)
}
