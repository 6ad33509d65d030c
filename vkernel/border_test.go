// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"context"
	"errors"
	"testing"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// TestPinOfHugePages: pinning them looked for small pages and went on for ever.
// The child of a fork has a copy of a pinned one.
func TestPinOfHugePages(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		const huge = HugePageSize
		a, errno := r.th.Mmap(0, 2*huge, ProtRead|ProtWrite, MapPrivate|MapAnonymous|MapHugetlb|MapNoReserve, -1, 0)
		r.must("mmap", errno)
		unpin, errno := r.th.Pin(mem.MakeRange(a+3*page, huge))
		r.must("pin", errno)
		r.got(r.store(a), 0x5a)
		child, errno := r.th.Fork()
		r.must("fork", errno)
		mine, its := r.p.PageState(a), child.PageState(a)
		if !mine.Pinned || !mine.Writable || !mine.Exclusive || its.Pinned || !its.Present {
			t.Errorf("the page is %+v, the child's %+v", mine, its)
		}
		r.got(r.start(child, a, false), 0x5a)
		child.Kill()
		unpin()
		if st := r.p.PageState(a + huge); st.Pinned {
			t.Error("the page is pinned for ever")
		}
		_, errno = r.th.Pin(mem.MakeRange(a, 3*huge))
		r.want("pin of more than there is", errno, EFAULT)
		if st := r.p.PageState(a); st.Pinned {
			t.Error("the page is pinned after a pin that failed")
		}
		// All that the machine has comes back.
		r.must("munmap", r.th.Munmap(a, 2*huge))
		_, errno = r.th.Mmap(0, 4*huge, ProtRead|ProtWrite, MapPrivate|MapAnonymous|MapHugetlb, -1, 0)
		r.must("mmap", errno)
		_, errno = r.th.Mmap(0, huge, ProtRead|ProtWrite, MapPrivate|MapAnonymous|MapHugetlb, -1, 0)
		r.want("mmap of one more", errno, ENOMEM)
	}, WithHugePages(4))
}

// TestForkWithoutAPageForAPinnedOne: parent and child shared a pinned page where there
// was none to copy it to. On Linux 6.18 fork(2) fails with ENOMEM. Nothing is left of the
// child, and the descriptor that was about to be told of it fills again.
func TestForkWithoutAPageForAPinnedOne(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		const huge = HugePageSize
		b := r.area(page, missing, uapi.UFFD_FEATURE_EVENT_FORK)
		a, errno := r.th.Mmap(0, huge, ProtRead|ProtWrite, MapPrivate|MapAnonymous|MapHugetlb|MapNoReserve, -1, 0)
		r.must("mmap", errno)
		r.got(r.store(a), 0x5a)
		unpin, errno := r.th.Pin(mem.MakeRange(a, huge))
		r.must("pin", errno)
		before := r.k.PagesInUse()
		_, errno = r.th.Fork()
		r.want("fork", errno, ENOMEM)
		if got := r.k.PagesInUse(); got != before {
			t.Errorf("%d pages in use, %d before", got, before)
		}
		_, errno = r.copy(b, page, 7, 0)
		r.must("copy", errno)
		unpin()
		// What is not pinned is shared.
		r.must("munmap", r.th.Munmap(b, page))
		child, errno := r.th.Fork()
		r.must("fork", errno)
		r.got(r.start(child, a, false), 0x5a)
		child.Kill()
	}, WithHugePages(1))
}

// TestGrowsDownToTheFirstAddresses: memory grew down to address zero, where a
// kernel lets nothing be that was not put there.
func TestGrowsDownToTheFirstAddresses(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		const flags = MapPrivate | MapAnonymous | MapGrowsDown | MapFixed
		load := func(a mem.Addr) error { return r.th.Load(context.Background(), a, make([]byte, 1)) }
		_, errno := r.th.Mmap(0x40000, page, ProtRead|ProtWrite, flags, -1, 0)
		r.must("mmap", errno)
		for _, a := range []mem.Addr{0, page, hintMin - 1} {
			var s *Signal
			if err := load(a); !errors.As(err, &s) || s.Signo != SIGSEGV || s.Code != SegvMapErr {
				t.Errorf("load of %v: %v", a, err)
			}
		}
		if err := load(hintMin); err != nil {
			t.Errorf("load of the first address: %v", err)
		}
		// What is below already stays there, and does not grow.
		_, errno = r.th.Mmap(0x8000, page, ProtRead|ProtWrite, flags, -1, 0)
		r.must("mmap", errno)
		if err := load(0x8000); err != nil {
			t.Error(err)
		}
		if err := load(0x7fff); err == nil {
			t.Error("it has grown")
		}
	})
}
