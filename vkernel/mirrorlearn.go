// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"math"

	"github.com/faultline-go/faultline/mem"
)

// unlearnObject forgets pages that the object no longer has of r, a part of v that
// nobody has registered: nothing told when they went.
func (as *space) unlearnObject(v *vma, r mem.Range) {
	if v.obj.kind != kindShmem {
		return
	}
	there := make(map[uint64]bool)
	as.out.Cached(r, func(a mem.Addr) { there[v.offset(a)>>mem.PageShift] = true })
	o := v.obj
	o.mu.Lock()
	defer o.mu.Unlock()
	first := v.offset(r.Start) >> mem.PageShift
	for n := first; n < first+uint64(r.Pages()); n++ {
		if _, has := o.lookupLocked(n); has && !there[n] {
			o.dropLocked(n, n+1)
		}
	}
}

// Sharers calls fn for the memory of processes outside that shows any of the n
// bytes from off on of o.
func (k *Kernel) Sharers(o Object, off, n uint64, fn func(out Outside, r mem.Range)) {
	if obj := k.object(o); obj != nil {
		obj.sharers(off, off+min(n, math.MaxUint64-off), fn)
		obj.put()
	}
}

// Sharers calls fn for the memory of processes outside, p's own included, that shows
// what r shows of objects.
func (p *Process) Sharers(r mem.Range, fn func(out Outside, r mem.Range)) {
	as := p.as.Load()
	var holes []hole
	as.mu.RLock()
	as.vmas.all(r, func(v *vma) bool {
		if v.obj != nil {
			holes = append(holes, holeOf(v, r.Intersect(v.rng())))
		}
		return true
	})
	as.mu.RUnlock()
	for _, h := range holes {
		h.obj.sharers(h.off, h.off+h.n, fn)
		h.obj.put()
	}
}

func (o *object) sharers(from, to uint64, fn func(out Outside, r mem.Range)) {
	type share struct {
		out Outside
		r   mem.Range
	}
	var all []share
	o.mapped(from, to, func(as *space, _ *vma, r mem.Range) {
		if as.out != nil {
			all = append(all, share{as.out, mem.Range{Start: r.Start.Down(), End: r.End.Up()}})
		}
	})
	for _, s := range all {
		fn(s.out, s.r)
	}
}
