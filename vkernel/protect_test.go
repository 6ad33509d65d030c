// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

const (
	wpOn       = uapi.UFFDIO_WRITEPROTECT_MODE_WP
	wpDontwake = uapi.UFFDIO_WRITEPROTECT_MODE_DONTWAKE
)

// TestWriteProtect covers WRITEPROTECT and H16.
func TestWriteProtect(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(8*page, missing|wp, 0)
		_, errno := r.copy(a, 2*page, 1, uapi.UFFDIO_COPY_MODE_WP)
		r.must("copy", errno)
		r.got(r.load(a), 1)
		store := r.store(a)
		r.blocked(store)
		if at, flags := r.fault(); at != a || flags != 3 {
			r.t.Errorf("fault at %v flags %v", at, flags)
		}
		r.must("unprotect", r.protect(a, page, wpDontwake))
		r.blocked(store)
		r.must("unprotect", r.protect(a, page, 0))
		r.got(store, 0x5a)
		r.want("WP|DONTWAKE", r.protect(a, page, wpOn|wpDontwake), EINVAL)
		r.want("unknown mode", r.protect(a, page, 4), EINVAL)
		// An absent page cannot be protected without WP_UNPOPULATED.
		r.must("protect", r.protect(a+4*page, page, wpOn))
		if r.p.PageState(a + 4*page).WP {
			r.t.Error("an absent page is protected")
		}
		// B.10: what lies before the first VMA without registration changes.
		b := r.mmap(4 * page)
		r.must("mprotect", r.th.Mprotect(b, page, ProtRead))
		r.register(b, page, wp)
		if err := r.th.Load(context.Background(), b, make([]byte, 1)); err != nil {
			r.t.Fatal(err)
		}
		r.want("partly registered", r.protect(b, 4*page, wpOn), ENOENT)
		if !r.p.PageState(b).WP {
			r.t.Error("the registered part is not protected")
		}
		r.want("a hole", r.protect(0x10000, page, wpOn), ENOENT)
		// mprotect keeps the protection; the fault is the descriptor's.
		r.must("mprotect", r.th.Mprotect(b, page, ProtRead|ProtWrite))
		store = r.store(b)
		r.blocked(store)
		// B.8: a waiter of WP alone sleeps on after unregister.
		_, errno = r.ioctl(r.fd, uapi.UFFDIO_UNREGISTER, uint64(b), page)
		r.must("unregister", errno)
		r.blocked(store)
		_, errno = r.ioctl(r.fd, uapi.UFFDIO_WAKE, uint64(b), page)
		r.must("wake", errno)
		r.got(store, 0x5a)
	})
}

// TestMarkers covers WP_UNPOPULATED: a marker is a MISSING fault where that is
// registered, and protects what a fault brings in where it is not.
func TestMarkers(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(4*page, wp, uapi.UFFD_FEATURE_WP_UNPOPULATED)
		r.must("protect", r.protect(a, 2*page, wpOn))
		r.got(r.load(a), 0)
		if st := r.p.PageState(a); !st.WP || !st.Zero {
			r.t.Errorf("a read over the marker: %+v", st)
		}
		store := r.store(a + page)
		r.blocked(store)
		if _, flags := r.fault(); flags != 3 {
			r.t.Errorf("flags %v", flags)
		}
		r.must("unprotect", r.protect(a, 4*page, 0))
		r.got(store, 0x5a)
		r.must("protect", r.protect(a+2*page, page, wpOn))
		r.must("madvise", r.th.Madvise(a+2*page, page, MadvDontNeed))
		if r.p.PageState(a + 2*page).WP {
			r.t.Error("the marker outlives MADV_DONTNEED")
		}
		b := r.mmap(page)
		r.register(b, page, missing|wp)
		r.must("protect", r.protect(b, page, wpOn))
		store = r.store(b)
		r.blocked(store)
		if _, flags := r.fault(); flags != 1 {
			r.t.Errorf("in MISSING|WP: flags %v", flags)
		}
		_, errno := r.ioctl(r.fd, uapi.UFFDIO_UNREGISTER, uint64(b), page)
		r.must("unregister", errno)
		r.got(store, 0x5a)
	})
}

// TestAsync covers B.14.
func TestAsync(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(4*page, wp, uapi.UFFD_FEATURE_WP_ASYNC)
		scan := PagemapScan{Flags: ScanWPMatching | ScanCheckWPAsync, Range: mem.MakeRange(a, 4*page), Mask: PageWritten, Return: PageWritten}
		all := mem.MakeRange(a, 4*page)
		expect := func(arg PagemapScan, want ...mem.Range) {
			r.t.Helper()
			got, end, errno := r.th.PagemapScan(r.p, arg)
			r.must("scan", errno)
			if len(got) != len(want) || end != arg.Range.End {
				r.t.Fatalf("scan = %v to %v, want %v", got, end, want)
			}
			for i := range want {
				if got[i].Range != want[i] {
					r.t.Fatalf("scan = %v, want %v", got, want)
				}
			}
		}
		expect(scan, all) // unpopulated pages count as written at first
		expect(scan)
		r.got(r.store(a+page), 0x5a)
		r.got(r.load(a+2*page), 0)
		r.nothing()
		expect(scan, mem.MakeRange(a+page, page))
		expect(scan)
		other := r.mmap(page)
		foreign := PagemapScan{Flags: ScanWPMatching | ScanCheckWPAsync, Range: mem.MakeRange(other, page), Mask: PageWritten}
		_, _, errno := r.th.PagemapScan(r.p, foreign)
		r.want("scan of other memory", errno, EPERM)
		foreign.Flags = ScanWPMatching
		expect(foreign)
		foreign.Flags = 0
		expect(foreign, foreign.Range)
		// B.7: protection alone is for any memory there.
		fd, errno := r.th.RegularFile("/file", page)
		r.must("open", errno)
		file, errno := r.th.Mmap(0, page, ProtRead|ProtWrite, MapShared, fd, 0)
		r.must("mmap", errno)
		r.register(file, page, wp)
	})
}

// TestSigbus covers the feature SIGBUS.
func TestSigbus(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(4*page, missing|wp, uapi.UFFD_FEATURE_SIGBUS)
		load := r.load(a + 5)
		if sig, ok := errors.AsType[*Signal](load.err); !load.ended() || !ok || *sig != (Signal{SIGBUS, BusAdrErr, a + 5}) {
			r.t.Errorf("load: %v", load.err)
		}
		_, errno := r.th.Ioctl(r.fd, uapi.UFFDIO_WAKE, a)
		r.want("argument", errno, EFAULT)
		r.want("mlock", r.th.Mlock(a, page), ENOMEM)
		r.must("munlock", r.th.Munlock(a, page))
		r.want("populate", r.th.Madvise(a, page, MadvPopulateRead), EFAULT)
		_, errno = r.copy(a, page, 1, uapi.UFFDIO_COPY_MODE_WP)
		r.must("copy", errno)
		r.got(r.load(a), 1)
		if store := r.store(a); !store.ended() || store.err == nil {
			r.t.Error("a protected page can be written to")
		}
		r.nothing()
	})
}

// TestUserModeOnly covers H17: a system call fails, nobody hears of it.
func TestUserModeOnly(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		fd, errno := r.th.Userfaultfd(ONonblock | uapi.UFFD_USER_MODE_ONLY)
		r.must("userfaultfd", errno)
		r.fd = fd
		a := r.area(page, missing, uapi.UFFD_FEATURE_THREAD_ID|uapi.UFFD_FEATURE_EXACT_ADDRESS)
		_, errno = r.th.Ioctl(fd, uapi.UFFDIO_WAKE, a)
		r.want("argument", errno, EFAULT)
		r.nothing()
		load := r.load(a + 123)
		msgs, errno := r.read(1)
		r.must("read", errno)
		if at, _, tid := msgs[0].Fault(); at != a+123 || int(tid) != load.th.TID() {
			r.t.Errorf("fault at %v of %d", at, tid)
		}
		_, errno = r.copy(a, page, 2, 0)
		r.must("copy", errno)
		r.got(load, 2)
	})
}

// TestSignals covers C.31 and B.12.
func TestSignals(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(4*page, missing, 0)
		load := r.load(a)
		load.th.Signal(10) // unread: no other message
		r.blocked(load)
		r.fault()
		r.nothing()
		load.th.Signal(10) // read: one more
		r.blocked(load)
		r.fault()
		r.p.Ignore(12, true)
		load.th.Signal(12)
		r.blocked(load)
		r.nothing()
		if n := load.th.Handled(); n != 2 {
			r.t.Errorf("%d handlers ran", n)
		}
		_, errno := r.copy(a, page, 1, 0)
		r.must("copy", errno)
		r.got(load, 1)

		// In a system call the handler waits, and the fault comes again
		// whenever it is read.
		th := r.p.NewThread()
		c := start(func() syscall.Errno { _, errno := th.Ioctl(r.fd, uapi.UFFDIO_WAKE, a+page); return errno })
		r.sleeps(c, th, InFault)
		th.Signal(10)
		for range 5 {
			r.sleeps(c, th, InFault)
			r.fault()
		}
		if th.Handled() != 0 {
			r.t.Error("the handler ran in the call")
		}
		_, errno = r.copy(a+page, page, 0, 0)
		r.must("copy", errno)
		r.ends(c, EINVAL)
		if th.Handled() != 1 {
			r.t.Error("the handler did not run after the call")
		}

		// C.36: ptrace does not wait, process_vm_readv does.
		b := make([]byte, 1)
		_, errno = r.th.PtracePeek(r.p, a+2*page, b)
		r.want("peek", errno, EIO)
		c = start(func() syscall.Errno { _, errno := th.ProcessVMRead(r.p, a+2*page, b); return errno })
		r.sleeps(c, th, InFault)
		r.fault()
		_, errno = r.copy(a+2*page, page, 9, 0)
		r.must("copy", errno)
		if r.ends(c, 0); b[0] != 9 {
			r.t.Errorf("read %d", b[0])
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := th.Load(ctx, a+3*page, b); !errors.Is(err, context.DeadlineExceeded) {
			r.t.Errorf("load: %v", err)
		}
		if info := r.p.Fdinfo(r.fd)[:20]; info != "pending:\t0\ntotal:\t0\n" {
			r.t.Errorf("waiters are left: %q", info)
		}
	})
}

// TestHugetlb covers C.34, H15 and the rows of B about huge pages.
func TestHugetlb(t *testing.T) {
	for _, flags := range []int{MapShared, MapPrivate} {
		inBubble(t, Linux618, func(r *rig) {
			const huge = HugePageSize
			r.api(uapi.UFFD_FEATURE_EXACT_ADDRESS)
			a, errno := r.th.Mmap(0, 3*huge, ProtRead|ProtWrite, flags|MapAnonymous|MapHugetlb, -1, 0)
			r.must("mmap", errno)
			_, errno = r.th.Mmap(0, 2*huge, ProtRead|ProtWrite, flags|MapAnonymous|MapHugetlb, -1, 0)
			r.want("mmap beyond the pool", errno, ENOMEM)
			for mode, want := range map[uapi.RegisterMode]uint64{missing: 0x10c, missing | wp: 0x14c, missing | minor: 0x18c, missing | wp | minor: 0x1cc} {
				w, errno := r.ioctl(r.fd, uapi.UFFDIO_REGISTER, uint64(a), 3*huge, uint64(mode), 0)
				if r.must("register", errno); w[3] != want {
					r.t.Errorf("mode %v: ioctls %#x, want %#x", mode, w[3], want)
				}
				_, errno = r.ioctl(r.fd, uapi.UFFDIO_UNREGISTER, uint64(a), 3*huge)
				r.must("unregister", errno)
			}
			for _, bad := range [][2]uint64{{uint64(a) + page, huge}, {uint64(a), page}} {
				_, errno = r.ioctl(r.fd, uapi.UFFDIO_REGISTER, bad[0], bad[1], uint64(missing), 0)
				r.want("part of a page", errno, EINVAL)
			}
			r.register(a, 3*huge, missing|wp)
			load := r.load(a + 5*page)
			if at, _ := r.fault(); at != a+5*page {
				r.t.Errorf("fault at %v", at)
			}
			word, errno := r.copy(a, page, 1, 0)
			r.gives("copy of a part", word, errno, result{-22, EINVAL})
			word, errno = r.zeropage(a, huge)
			r.gives("zeropage", word, errno, result{-22, EINVAL})
			r.want("protect a part", r.protect(a, page, wpOn), EINVAL)
			word, errno = r.copy(a, huge, 1, 0)
			r.gives("copy", word, errno, result{huge, 0})
			r.got(load, 1)
			word, errno = r.copy(a, huge, 1, 0)
			r.gives("copy again", word, errno, result{-17, EEXIST})
			r.must("protect", r.protect(a, huge, wpOn))
			store := r.store(a + 7)
			r.blocked(store)
			r.must("unprotect", r.protect(a, huge, 0))
			r.got(store, 0x5a)
			word, errno = r.poison(a+huge, huge)
			r.gives("poison", word, errno, result{huge, 0})
			if load := r.load(a + huge); !load.ended() || load.err == nil {
				r.t.Error("poison can be read")
			}
			r.want("unmap a part", r.th.Munmap(a, page), EINVAL)
			r.must("unmap", r.th.Munmap(a, 3*huge))
			if h := &r.k.mem.huge; h.used() != 0 || h.reserved != 0 {
				r.t.Errorf("%d huge pages in use, %d reserved", h.used(), h.reserved)
			}
		}, WithHugePages(4))
	}
}
