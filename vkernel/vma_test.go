// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// TestTree compares the tree with a sorted slice, over random insertions and
// removals that make it grow and shrink by some levels.
func TestTree(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const slots = 20000
	var tree vmaTree
	var have [slots]*vma
	check := func(step int) {
		at := rng.IntN(slots)
		a := mem.Addr(at) * 2 * page
		var next, prev *vma
		for i := at; i < slots && next == nil; i++ {
			next = have[i]
		}
		for i := at - 1; i >= 0 && prev == nil; i-- {
			prev = have[i]
		}
		if got := tree.find(a); got != next {
			t.Fatalf("step %d: find(%v) = %v, want %v", step, a, got, next)
		}
		if got := tree.prev(a); got != prev {
			t.Fatalf("step %d: prev(%v) = %v, want %v", step, a, got, prev)
		}
		// The highest hole of three pages: a missing slot, its neighbours'
		// halves around it.
		want, found := mem.Addr(0), false
		for i := slots - 2; i > 0 && !found; i-- {
			if have[i] == nil {
				// [2i-1, 2i+2) is free, and perhaps more above it.
				want, found = mem.Addr(2*i-1)*page, true
				if have[i+1] == nil {
					want += page
				}
			}
		}
		if step%50 != 0 || have[slots-1] == nil || have[0] == nil {
			return
		}
		got, ok := tree.highestGap(mem.Range{Start: 0, End: (2*slots - 1) * page}, 3*page, page)
		if ok != found || found && got != want {
			t.Fatalf("step %d: gap at %v %v, want %v %v", step, got, ok, want, found)
		}
	}
	for step := range 60000 {
		i := rng.IntN(slots)
		full := step < 30000 || step > 50000
		switch {
		case have[i] == nil && (full || rng.IntN(4) == 0):
			have[i] = &vma{start: mem.Addr(2*i) * page, end: mem.Addr(2*i+1) * page}
			tree.insert(have[i])
		case have[i] != nil && (!full || rng.IntN(8) == 0):
			tree.remove(have[i])
			have[i] = nil
		case have[i] != nil:
			// Half a page of it comes or goes, which no hole of whole pages
			// is larger for.
			low := mem.Addr(2*i) * page
			tree.resize(have[i], mem.Range{Start: low + mem.Addr(rng.IntN(2))*page/2, End: low + page})
		}
		check(step)
	}
	n := 0
	tree.all(mem.Range{Start: 0, End: taskSize}, func(*vma) bool { n++; return true })
	if n != tree.count {
		t.Errorf("%d VMAs, count %d", n, tree.count)
	}
}

// layout returns the maps of an area, as starts in pages and permissions.
func (r *rig) smaps(a mem.Addr, n uint64) string {
	var b strings.Builder
	as := r.p.as.Load()
	as.vmas.all(mem.MakeRange(a, n), func(v *vma) bool {
		b.WriteString(as.mapsLine(v)[len("7fffffffffff-7fffffffffff "):][:4])
		b.WriteString(strings.Repeat("#", mem.Range{Start: v.start, End: v.end}.Intersect(mem.MakeRange(a, n)).Pages()))
		b.WriteByte(' ')
		return true
	})
	return strings.TrimSpace(b.String())
}

// TestLayout checks splits and merges as a 6.18 kernel makes them.
func TestLayout(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		base, errno := r.th.Mmap(0, 64*page, ProtNone, MapPrivate|MapAnonymous|MapNoReserve, -1, 0)
		r.must("mmap", errno)
		fixed := func(a mem.Addr, n uint64) {
			_, errno := r.th.Mmap(a, n, ProtRead|ProtWrite, MapPrivate|MapAnonymous|MapFixed, -1, 0)
			r.must("mmap", errno)
		}
		expect := func(what, want string) {
			r.t.Helper()
			if got := r.smaps(base, 16*page); got != want {
				r.t.Errorf("%s: %s, want %s", what, got, want)
			}
		}
		fixed(base+page, 4*page)
		expect("map", "---p# rw-p#### ---p###########")
		fixed(base+5*page, 2*page)
		expect("neighbour", "---p# rw-p###### ---p#########")
		r.must("mprotect", r.th.Mprotect(base+3*page, page, ProtRead))
		expect("protect", "---p# rw-p## r--p# rw-p### ---p#########")
		r.must("mprotect", r.th.Mprotect(base+2*page, page, ProtRead))
		expect("shift", "---p# rw-p# r--p## rw-p### ---p#########")
		r.must("mprotect", r.th.Mprotect(base+page, 6*page, ProtRead|ProtWrite))
		expect("merge", "---p# rw-p###### ---p#########")
		r.must("munmap", r.th.Munmap(base+3*page, page))
		expect("unmap", "---p# rw-p## rw-p### ---p#########")
		// A page that has been touched keeps its offset when it moves, and
		// does not merge with what is there.
		r.got(r.store(base+page), 0x5a)
		fixed(base+10*page, 2*page)
		r.got(r.store(base+10*page), 0x5a)
		_, errno = r.th.Mremap(base+10*page, page, page, MremapMayMove|MremapFixed, base+3*page)
		r.must("mremap", errno)
		expect("move touched", "---p# rw-p## rw-p# rw-p### ---p### rw-p# ---p####")
		r.got(r.load(base+3*page), 0x5a)
		// Linux 6.17 moves several VMAs at once.
		_, errno = r.th.Mremap(base+page, 6*page, 6*page, MremapMayMove|MremapFixed, base+40*page)
		r.must("mremap", errno)
		r.got(r.load(base+42*page), 0x5a)
		_, errno = r.th.Mremap(base+40*page, 6*page, 7*page, MremapMayMove, 0)
		r.want("grow several", errno, EFAULT)
		_, errno = r.th.Mmap(base, page, ProtRead, MapPrivate|MapAnonymous|MapFixedNoReplace, -1, 0)
		r.want("no replace", errno, EEXIST)
	})
}

// TestSmaps checks the text against what a 6.18 kernel prints.
func TestSmaps(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		r.api(0)
		_, a := r.memfd(4*page, 0, MapShared)
		r.register(a, 4*page, missing|wp)
		if s := r.p.Smaps(); !strings.Contains(s, "rw-s 00000000 00:01 ") || !strings.Contains(s, " /memfd:x (deleted)\nVmFlags: rd wr sh mr mw me ms um uw \n") {
			r.t.Errorf("smaps:\n%s", s)
		}
		stack, errno := r.th.Mmap(0x2000_0000_0000, 4*page, ProtRead|ProtWrite, MapPrivate|MapAnonymous|MapGrowsDown|MapFixed, -1, 0)
		r.must("mmap", errno)
		if s := r.p.Smaps(); !strings.Contains(s, "rw-p 00000000 00:00 0 \nVmFlags: rd wr mr mw me gd ac \n") {
			r.t.Errorf("smaps:\n%s", s)
		}
		r.got(r.store(stack-3*page), 0x5a)
		if !strings.HasPrefix(r.p.Maps(), "1fffffffd000-200000004000 rw-p ") {
			r.t.Errorf("the stack has not grown: %s", r.p.Maps())
		}
	})
}

// TestAccess covers what needs no descriptor: protection, copy on write,
// shared memory, advice, the collector's view of frames.
func TestAccess(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		ctx := context.Background()
		a := r.mmap(4 * page)
		before := r.k.PagesInUse()
		r.got(r.store(a), 0x5a)
		child, errno := r.th.Fork()
		r.must("fork", errno)
		if err := child.NewThread().Store(ctx, a, []byte{1}); err != nil {
			r.t.Error(err)
		}
		r.got(r.load(a), 0x5a)
		r.got(r.start(child, a, false), 1)
		child.Kill()
		ok, err := r.th.CompareAndSwap(ctx, a, 0x5a, 7)
		if !ok || err != nil {
			r.t.Errorf("swap: %v, %v", ok, err)
		}
		if ok, err = r.th.CompareAndSwap(ctx, a, 0x5a, 8); ok || err != nil {
			r.t.Errorf("second swap: %v, %v", ok, err)
		}
		r.must("mprotect", r.th.Mprotect(a, page, ProtNone))
		if sig, ok := errors.AsType[*Signal](r.th.Load(ctx, a, make([]byte, 1))); !ok || *sig != (Signal{SIGSEGV, SegvAccErr, a}) {
			r.t.Errorf("load: %v", sig)
		}
		r.must("mprotect", r.th.Mprotect(a, page, ProtRead))
		r.got(r.load(a), 7)
		r.must("munmap", r.th.Munmap(a, 4*page))
		if sig, ok := errors.AsType[*Signal](r.th.Load(ctx, a, make([]byte, 1))); !ok || *sig != (Signal{SIGSEGV, SegvMapErr, a}) {
			r.t.Errorf("load: %v", sig)
		}
		if after := r.k.PagesInUse(); after != before {
			r.t.Errorf("%d pages in use, %d before", after, before)
		}
		// Dropping pages of an object takes them from every mapping, but not
		// from private copies.
		fd, s := r.memfd(4*page, 0, MapShared)
		private, errno := r.th.Mmap(0, 4*page, ProtRead|ProtWrite, MapPrivate, fd, 0)
		r.must("mmap", errno)
		r.got(r.store(s), 0x5a)
		r.got(r.load(private), 0x5a)
		r.got(r.store(private+page), 0x5a)
		r.must("madvise", r.th.Madvise(s, 2*page, MadvRemove))
		r.got(r.load(private), 0)
		r.got(r.load(private+page), 0x5a)
		r.want("remove of anonymous memory", r.th.Madvise(r.scratch, page, MadvRemove), EINVAL)
	})
}

// TestWithoutZeroPage: on a kernel that maps no shared page of zeros who reads fresh
// memory gets a page of its own, which keeps that memory from merging with other.
func TestWithoutZeroPage(t *testing.T) {
	for _, own := range []bool{false, true} {
		var options []Option
		if own {
			options = append(options, WithoutZeroPage())
		}
		inBubble(t, Linux618, func(r *rig) {
			a := r.mmap(page)
			before := r.k.mem.inUse()
			if err := r.th.Load(context.Background(), a, []byte{1}); err != nil {
				t.Fatal(err)
			}
			if got := r.k.mem.inUse() - before; got == 1 != own {
				t.Errorf("own %v: %d pages in use", own, got)
			}
		}, options...)
	}
}

// TestChildHasNoHugePagesReserved: what a private mapping of huge pages has reserved was
// the child's if that was first, and then the parent's write a SIGBUS.
func TestChildHasNoHugePagesReserved(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a, errno := r.th.Mmap(0, HugePageSize, ProtRead|ProtWrite, MapPrivate|MapAnonymous|MapHugetlb, -1, 0)
		r.must("mmap", errno)
		child, errno := r.th.Fork()
		r.must("fork", errno)
		defer child.Kill()
		var sig *Signal
		store := r.start(child, a, true)
		if !store.ended() || !errors.As(store.err, &sig) || sig.Signo != SIGBUS {
			t.Errorf("the child's write: %v, want a SIGBUS", store.err)
		}
		if store := r.start(r.p, a, true); !store.ended() || store.err != nil {
			t.Errorf("the parent's write: %v", store.err)
		}
	}, WithHugePages(1))
}

// TestRegisterPartly covers A.6.11 and B.7.11: where a VMA cannot be split any more, those
// before it stay registered. The seed has stored its result by then.
func TestRegisterPartly(t *testing.T) {
	for p, result := range map[*Profile]uint64{Linux618: 77, Seed: uint64(uapi.UFFDIO_BIT_WAKE)} {
		inBubble(t, p, func(r *rig) {
			r.api(0)
			a := r.mmap(4 * page)
			r.must("mprotect", r.th.Mprotect(a+2*page, 2*page, ProtRead))
			w, errno := r.ioctl(r.fd, uapi.UFFDIO_REGISTER, uint64(a), 3*page, uint64(missing), 77)
			r.want("register", errno, ENOMEM)
			if w[3] != result {
				t.Errorf("%s: the result is %#x, want %#x", p.Name(), w[3], result)
			}
			if load := r.load(a); load.ended() {
				t.Errorf("%s: the first VMA is not registered", p.Name())
			} else {
				load.th.End()
			}
			if load := r.load(a + 2*page); !load.ended() || load.err != nil {
				t.Errorf("%s: the second VMA: ended %v, %v", p.Name(), load.ended(), load.err)
			}
		}, WithMaxMaps(3))
	}
}
