// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"context"
	"errors"
	"syscall"
	"testing"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

func (r *rig) zeropage(dst mem.Addr, n uint64) (int64, syscall.Errno) {
	r.t.Helper()
	w, errno := r.ioctl(r.fd, uapi.UFFDIO_ZEROPAGE, uint64(dst), n, 0, 77)
	return int64(w[3]), errno
}

func (r *rig) poison(dst mem.Addr, n uint64) (int64, syscall.Errno) {
	r.t.Helper()
	w, errno := r.ioctl(r.fd, uapi.UFFDIO_POISON, uint64(dst), n, 0, 77)
	return int64(w[3]), errno
}

func (r *rig) cont(dst mem.Addr, n uint64) (int64, syscall.Errno) {
	r.t.Helper()
	w, errno := r.ioctl(r.fd, uapi.UFFDIO_CONTINUE, uint64(dst), n, 0, 77)
	return int64(w[3]), errno
}

func (r *rig) move(dst, src mem.Addr, n uint64, mode uapi.MoveMode) (int64, syscall.Errno) {
	r.t.Helper()
	w, errno := r.ioctl(r.fd, uapi.UFFDIO_MOVE, uint64(dst), uint64(src), n, uint64(mode), 77)
	return int64(w[4]), errno
}

func (r *rig) protect(a mem.Addr, n uint64, mode uapi.WriteProtectMode) syscall.Errno {
	r.t.Helper()
	_, errno := r.ioctl(r.fd, uapi.UFFDIO_WRITEPROTECT, uint64(a), n, uint64(mode))
	return errno
}

// result is what a fill came to.
type result struct {
	word  int64
	errno syscall.Errno
}

func (r *rig) gives(what string, word int64, errno syscall.Errno, want result) {
	r.t.Helper()
	if (result{word, errno}) != want {
		r.t.Errorf("%s = %d, %s, want %d, %s", what, word, ErrnoName(errno), want.word, ErrnoName(want.errno))
	}
}

// memfd maps an object of n bytes.
func (r *rig) memfd(n uint64, flags, mapFlags int) (int, mem.Addr) {
	r.t.Helper()
	fd, errno := r.th.MemfdCreate("x", flags)
	r.must("memfd_create", errno)
	r.must("ftruncate", r.th.Ftruncate(fd, n))
	a, errno := r.th.Mmap(0, n, ProtRead|ProtWrite, mapFlags, fd, 0)
	r.must("mmap", errno)
	return fd, a
}

// TestExisting is the table of B.10 of what each fill makes of a page that is
// there, checked against a 6.18 kernel.
func TestExisting(t *testing.T) {
	const done, exists = page, -17
	ops := map[string]func(r *rig, a mem.Addr) (int64, syscall.Errno){
		"copy":   func(r *rig, a mem.Addr) (int64, syscall.Errno) { return r.copy(a, page, 1, 0) },
		"zero":   func(r *rig, a mem.Addr) (int64, syscall.Errno) { return r.zeropage(a, page) },
		"poison": func(r *rig, a mem.Addr) (int64, syscall.Errno) { return r.poison(a, page) },
	}
	for _, tc := range []struct {
		state  string
		shared bool
		want   map[string]int64
	}{
		{"none", false, map[string]int64{"copy": done, "zero": done, "poison": done}},
		{"present", false, map[string]int64{"copy": exists, "zero": exists, "poison": exists}},
		{"zero page", false, map[string]int64{"copy": exists, "zero": exists, "poison": exists}},
		{"marker", false, map[string]int64{"copy": done, "zero": exists, "poison": exists}},
		{"poison", false, map[string]int64{"copy": done, "zero": exists, "poison": exists}},
		{"none", true, map[string]int64{"copy": done, "zero": done, "poison": done}},
		{"present", true, map[string]int64{"copy": exists, "zero": exists, "poison": exists}},
		{"marker", true, map[string]int64{"copy": done, "zero": done, "poison": exists}},
		{"poison", true, map[string]int64{"copy": done, "zero": done, "poison": exists}},
	} {
		for name, op := range ops {
			inBubble(t, Linux618, func(r *rig) {
				r.api(uapi.UFFD_FEATURE_WP_UNPOPULATED)
				a := r.mmap(4 * page)
				if tc.shared {
					_, a = r.memfd(4*page, 0, MapShared)
				}
				r.register(a, 4*page, missing|wp)
				var errno syscall.Errno
				switch tc.state {
				case "present":
					_, errno = r.copy(a, page, 9, 0)
				case "zero page":
					_, errno = r.zeropage(a, page)
				case "marker":
					errno = r.protect(a, page, uapi.UFFDIO_WRITEPROTECT_MODE_WP)
				case "poison":
					_, errno = r.poison(a, page)
				}
				r.must(tc.state, errno)
				want := result{tc.want[name], 0}
				if want.word < 0 {
					want.errno = EEXIST
				}
				word, errno := op(r, a)
				r.gives(name+" over "+tc.state, word, errno, want)
				if name == "copy" && want.errno == 0 && r.p.PageState(a).WP {
					r.t.Errorf("copy over %s is protected", tc.state)
				}
			})
		}
	}
}

// TestPartial covers C.13, C.14 and H4.
func TestPartial(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(4*page, missing, 0)
		_, errno := r.copy(a+page, page, 1, 0)
		r.must("copy", errno)
		word, errno := r.copy(a, 3*page, 2, 0)
		r.gives("copy into a page that is there", word, errno, result{page, EAGAIN})
		word, errno = r.copy(a+page, 2*page, 2, 0)
		r.gives("the rest", word, errno, result{-17, EEXIST})

		src := r.mmap(2 * page)
		r.must("munmap", r.th.Munmap(src+page, page))
		if err := r.th.Store(context.Background(), src, []byte{3}); err != nil {
			r.t.Fatal(err)
		}
		for _, tc := range []struct {
			what     string
			src, n   uint64
			want     result
			dst      mem.Addr
			features uapi.Features
		}{
			{what: "second page of the source unmapped", src: uint64(src), n: 2 * page, dst: a + 2*page, want: result{page, EAGAIN}},
			{what: "source unmapped", src: uint64(src) + page, n: page, dst: a + 3*page, want: result{-14, EFAULT}},
			{what: "source of the kernel", src: 1 << 63, n: page, dst: a + 3*page, want: result{77, EINVAL}},
			{what: "source unaligned", src: uint64(r.scratch) + 3, n: page, dst: a + 3*page, want: result{page, 0}},
			{what: "length zero", src: uint64(src), n: 0, dst: a, want: result{77, EINVAL}},
			{what: "destination unaligned", src: uint64(src), n: page, dst: a + 1, want: result{77, EINVAL}},
			{what: "past the VMA", src: uint64(r.scratch), n: 2 * page, dst: a + 3*page, want: result{-2, ENOENT}},
			{what: "address zero", src: uint64(r.scratch), n: page, dst: 0, want: result{-2, ENOENT}},
		} {
			w, errno := r.ioctl(r.fd, uapi.UFFDIO_COPY, uint64(tc.dst), tc.src, tc.n, 0, 77)
			r.gives(tc.what, int64(w[4]), errno, tc.want)
		}
	})
}

// TestCopySource covers C.35 and H9: a copy whose source is missing itself
// raises a fault and goes on when that is served.
func TestCopySource(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(4*page, missing, 0)
		th := r.p.NewThread()
		scratch := r.mmap(page)
		c := start(func() syscall.Errno {
			w, errno := ioctlBy(r.t, th, scratch, r.fd, uapi.UFFDIO_COPY, uint64(a), uint64(a)+2*page, page, 0, 0)
			if w[4] != page {
				r.t.Errorf("copy = %d", int64(w[4]))
			}
			return errno
		})
		r.sleeps(c, th, InFault)
		if at, _ := r.fault(); at != a+2*page {
			r.t.Errorf("fault at %v", at)
		}
		_, errno := r.copy(a+2*page, page, 6, 0)
		r.must("copy", errno)
		r.ends(c, 0)
		r.got(r.load(a), 6)
	})
}

// TestMove covers the extra rows of MOVE, and D's move.
func TestMove(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(16*page, missing|wp, uapi.UFFD_FEATURE_WP_UNPOPULATED)
		b, other := a+8*page, r.mmap(2*page)
		fill := func(at mem.Addr, v byte) {
			_, errno := r.copy(at, page, v, uapi.UFFDIO_COPY_MODE_WP)
			r.must("copy", errno)
		}
		fill(a, 1)
		load := r.load(b)
		word, errno := r.move(b, a, page, 0)
		r.gives("move", word, errno, result{page, 0})
		r.got(load, 1)
		if r.p.PageState(b).WP || r.p.PageState(a).Present {
			r.t.Error("the page is still protected, or still at the old place")
		}
		fill(a+page, 2)
		r.must("protect", r.protect(b+2*page, page, uapi.UFFDIO_WRITEPROTECT_MODE_WP))
		_, errno = r.poison(a+2*page, page)
		r.must("poison", errno)
		_, errno = r.zeropage(a+3*page, page)
		r.must("zeropage", errno)
		const holes = uapi.UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES
		for _, tc := range []struct {
			what     string
			dst, src mem.Addr
			mode     uapi.MoveMode
			want     result
		}{
			{"onto a page", b, a + page, 0, result{-17, EEXIST}},
			{"onto a marker", b + 2*page, a + page, 0, result{-17, EEXIST}},
			{"onto itself", a + page, a + page, 0, result{-17, EEXIST}},
			{"of poison", b + page, a + 2*page, holes, result{-14, EFAULT}},
			{"of a hole", b + page, a + 5*page, 0, result{-2, ENOENT}},
			{"of a hole that may be", b + page, a + 5*page, holes, result{page, 0}},
			{"of the zero page", b + 3*page, a + 3*page, 0, result{page, 0}},
			{"of no memory", b + page, 0x10000, 0, result{-2, ENOENT}},
			{"to no memory", 0x10000, a + page, 0, result{-2, ENOENT}},
			{"to unregistered memory", other, a + page, 0, result{-22, EINVAL}},
			{"unaligned", b + page, a + 1, 0, result{77, EINVAL}},
			{"unknown mode", b + page, a + page, 4, result{77, EINVAL}},
		} {
			word, errno := r.move(tc.dst, tc.src, page, tc.mode)
			r.gives("move "+tc.what, word, errno, tc.want)
		}
		unpin, errno := r.th.Pin(mem.MakeRange(b, page))
		r.must("pin", errno)
		word, errno = r.move(b+page, b, page, 0)
		r.gives("move of a pinned page", word, errno, result{-16, EBUSY})
		unpin()
		child, errno := r.th.Fork()
		r.must("fork", errno)
		child.Kill()
		word, errno = r.move(b+page, b, page, 0)
		r.gives("move of a page that was shared", word, errno, result{-16, EBUSY})
		r.got(r.store(b), 0x5a)
		word, errno = r.move(b+page, b, page, 0)
		r.gives("move of a page written since", word, errno, result{page, 0})
	})
}

// TestMinor covers MINOR and CONTINUE on shared memory.
func TestMinor(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		r.api(0)
		fd, a := r.memfd(4*page, 0, MapShared)
		alias, errno := r.th.Mmap(0, 4*page, ProtRead|ProtWrite, MapShared, fd, 0)
		r.must("mmap", errno)
		r.register(a, 4*page, minor)
		r.got(r.load(a+page), 0) // not in the object: an ordinary fault
		if err := r.th.Store(context.Background(), alias, []byte{4}); err != nil {
			r.t.Fatal(err)
		}
		store := r.store(a)
		r.blocked(store)
		if at, flags := r.fault(); at != a || flags != uapi.UFFD_PAGEFAULT_FLAG_MINOR|uapi.UFFD_PAGEFAULT_FLAG_WRITE {
			r.t.Errorf("fault at %v flags %v", at, flags)
		}
		word, errno := r.cont(a, page)
		r.gives("continue", word, errno, result{page, 0})
		r.got(store, 0x5a)
		r.got(r.load(alias), 0x5a)
		word, errno = r.cont(a, page)
		r.gives("continue again", word, errno, result{-17, EEXIST})
		word, errno = r.cont(a+2*page, page)
		r.gives("continue of a hole", word, errno, result{-14, EFAULT})
		r.must("ftruncate", r.th.Ftruncate(fd, 2*page))
		word, errno = r.cont(a+2*page, page)
		r.gives("continue beyond the end", word, errno, result{-22, EINVAL})
		word, errno = r.copy(a+3*page, page, 1, 0)
		r.gives("copy beyond the end", word, errno, result{-14, EFAULT})
		if sig, ok := errors.AsType[*Signal](r.th.Load(context.Background(), a+3*page, make([]byte, 1))); !ok || sig.Signo != SIGBUS {
			r.t.Errorf("load beyond the end: %v", sig)
		}
	})
}

// TestPoison covers POISON: it wakes, kills, survives unregister, fork and
// mremap, and goes with DONTNEED.
func TestPoison(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(4*page, missing, 0)
		dies := func(what string, c *touch) {
			r.t.Helper()
			ended := c.ended()
			sig, ok := errors.AsType[*Signal](c.err)
			if !ended || !ok || *sig != (Signal{SIGBUS, BusAdrErr, sig.Addr}) {
				r.t.Fatalf("%s: %v", what, c.err)
			}
		}
		load := r.load(a + 9)
		r.blocked(load)
		_, errno := r.poison(a, page)
		r.must("poison", errno)
		dies("waiter", load)
		if load.err.(*Signal).Addr != a+9 {
			r.t.Errorf("signal at %v", load.err)
		}
		_, errno = r.th.Ioctl(r.fd, uapi.UFFDIO_WAKE, a)
		r.want("an argument in poison", errno, EFAULT)
		child, errno := r.th.Fork()
		r.must("fork", errno)
		dies("child", r.start(child, a, false))
		child.Kill()
		_, errno = r.ioctl(r.fd, uapi.UFFDIO_UNREGISTER, uint64(a), 4*page)
		r.must("unregister", errno)
		dies("unregistered", r.store(a))
		b, errno := r.th.Mremap(a, 4*page, 4*page, MremapMayMove|MremapDontUnmap, 0)
		r.must("mremap", errno)
		dies("moved", r.store(b))
		r.must("madvise", r.th.Madvise(b, page, MadvDontNeed))
		r.got(r.load(b), 0)
	})
}

// TestOtherDescriptor covers C.20: fills work through any descriptor of the
// address space, and wake only its own.
func TestOtherDescriptor(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(4*page, missing, 0)
		owner := r.fd
		fd, errno := r.th.Userfaultfd(ONonblock)
		r.must("userfaultfd", errno)
		r.fd = fd
		r.api(0)
		_, errno = r.ioctl(fd, uapi.UFFDIO_REGISTER, uint64(a), page, uint64(missing), 0)
		r.want("register", errno, EBUSY)
		_, errno = r.ioctl(fd, uapi.UFFDIO_UNREGISTER, uint64(a), page)
		r.want("unregister", errno, EINVAL)
		load := r.load(a)
		word, errno := r.copy(a, page, 1, 0)
		r.gives("copy", word, errno, result{page, 0})
		r.blocked(load)
		word, errno = r.move(a+page, a, page, 0)
		r.gives("move", word, errno, result{-22, EINVAL})
		_, errno = r.ioctl(owner, uapi.UFFDIO_WAKE, uint64(a), page)
		r.must("wake", errno)
		r.got(load, 1)
	})
}
