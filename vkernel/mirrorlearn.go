// SPDX-License-Identifier: Apache-2.0

package vkernel

import "github.com/faultline-go/faultline/mem"

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
