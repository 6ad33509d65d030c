// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"testing"

	"github.com/faultline-go/faultline/uffd/uapi"
)

// TestMissing is the round trip: fault, message, copy, go on.
func TestMissing(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(4*page, uapi.UFFDIO_REGISTER_MODE_MISSING, 0)
		load, store := r.load(a+5), r.store(a+page+7)
		r.blocked(load)
		r.blocked(store)
		if at, flags := r.fault(); at != a || flags != 0 {
			r.t.Errorf("first fault at %v flags %v", at, flags)
		}
		if at, flags := r.fault(); at != a+page || flags != uapi.UFFD_PAGEFAULT_FLAG_WRITE {
			r.t.Errorf("second fault at %v flags %v", at, flags)
		}
		r.nothing()
		done, errno := r.copy(a, 2*page, 0x11, 0)
		if r.must("copy", errno); done != 2*page {
			r.t.Errorf("copy = %d", done)
		}
		r.got(load, 0x11)
		r.got(store, 0x5a)
		r.nothing()
	})
}
