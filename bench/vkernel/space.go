// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
	"github.com/faultline-go/faultline/vkernel"
)

const rw = vkernel.ProtRead | vkernel.ProtWrite

// base is where the VMAs of the tree begin; each is four pages, with a hole
// of four after it.
const (
	base   mem.Addr = 0x1000_0000_0000
	stride          = 8 * mem.PageSize
)

// tree measures calls on one VMA among many, at random places.
func tree(n int) (rows []row) {
	small := treeCosts(n / 1000)
	large := treeCosts(n)
	for i, c := range large {
		rows = append(rows, row{
			what:  fmt.Sprintf("%s with %d VMAs (with %d: %.2f µs)", c.what, n, n/1000, small[i].micros),
			goal:  "< 5 µs",
			value: fmt.Sprintf("%.2f µs", c.micros),
			ok:    c.micros < 5,
		})
	}
	return rows
}

type cost struct {
	what   string
	micros float64
}

func treeCosts(n int) []cost {
	m := newMachine(vkernel.WithMaxMaps(4 * n))
	th := m.p.NewThread()
	for i := range n {
		_, errno := th.Mmap(base+mem.Addr(i)*stride, 4*mem.PageSize, rw,
			vkernel.MapPrivate|vkernel.MapAnonymous|vkernel.MapFixed, -1, 0)
		check("mmap", errno)
	}
	const rounds = 100_000
	rng := rand.New(rand.NewPCG(1, 2))
	at := make([]mem.Addr, rounds)
	for i := range at {
		at[i] = base + mem.Addr(rng.IntN(n))*stride
	}
	var out []cost
	measure := func(what string, fn func(a mem.Addr)) {
		start := time.Now()
		for _, a := range at {
			fn(a)
		}
		out = append(out, cost{what, float64(time.Since(start).Microseconds()) / rounds})
	}
	var b [1]byte
	// A hole: the access fails after the look at the tree, and changes
	// nothing.
	measure("lookup", func(a mem.Addr) { _ = th.Load(context.Background(), a+4*mem.PageSize, b[:]) })
	// The two pages in the middle: two splits, and then two merges.
	part := func(a mem.Addr) mem.Range { return mem.MakeRange(a+mem.PageSize, 2*mem.PageSize) }
	measure("register, with two splits", func(a mem.Addr) { check("register", m.d.Register(part(a), uapi.UFFDIO_REGISTER_MODE_MISSING)) })
	measure("unregister, with two merges the first time", func(a mem.Addr) { check("unregister", m.d.Unregister(part(a))) })
	measure("unmap and map again", func(a mem.Addr) {
		check("munmap", th.Munmap(a, 4*mem.PageSize))
		_, errno := th.Mmap(a, 4*mem.PageSize, rw, vkernel.MapPrivate|vkernel.MapAnonymous|vkernel.MapFixed, -1, 0)
		check("mmap", errno)
	})
	m.p.Kill()
	return out
}

// unrelated measures a wake and a copy of one page with nobody else waiting,
// and with many.
func unrelated(n int) (rows []row) {
	wake0, copy0 := wakeCosts(0)
	wakeN, copyN := wakeCosts(n)
	for _, x := range []struct {
		what      string
		none, all float64
	}{{"wake", wake0, wakeN}, {"copy", copy0, copyN}} {
		rows = append(rows, row{
			what:  fmt.Sprintf("%s of a page with %d unrelated waiters (none: %.3f µs)", x.what, n, x.none),
			goal:  "independent of them: < 0.5 µs more",
			value: fmt.Sprintf("%.3f µs", x.all),
			ok:    x.all < x.none+0.5,
		})
	}
	return rows
}

// batches returns the median of what a call of fn takes in each of 51 batches,
// in µs. Those who wait give way to others some times before they sleep: when
// the scheduler takes this goroutine's processor for them, once, that takes a
// thousand times as long as a wake, and is none.
func batches(fn func(i int)) float64 {
	const size = 1000
	took := make([]float64, 51)
	for b := range took {
		start := time.Now()
		for i := range size {
			fn(i)
		}
		took[b] = float64(time.Since(start).Nanoseconds()) / 1e3 / size
	}
	slices.Sort(took)
	return took[len(took)/2]
}

func wakeCosts(n int) (wake, copied float64) {
	m := newMachine()
	th := m.p.NewThread()
	crowd := m.area(th, uint64(n+1)*mem.PageSize)
	mine := m.area(th, 64*mem.PageSize)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range n {
		sleeper := m.p.NewThread()
		wg.Go(func() { _ = sleeper.Load(ctx, crowd.Start+mem.Addr(i)*mem.PageSize, make([]byte, 1)) })
		if i%1000 == 999 || i == n-1 {
			check("sleeper", sleeper.WaitState(ctx, vkernel.InFault))
		}
	}
	// The stacks of the sleepers are no part of the question.
	runtime.GC()
	page := make([]byte, mem.PageSize)
	wake = batches(func(int) { check("wake", m.d.Wake(mem.MakeRange(mine.Start, mem.PageSize))) })
	copied = batches(func(i int) {
		if i%64 == 0 {
			check("madvise", th.Madvise(mine.Start, mine.Len(), vkernel.MadvDontNeed))
		}
		_, errno := m.d.Copy(mine.Start+mem.Addr(i)%64*mem.PageSize, page, 0)
		check("copy", errno)
	})
	cancel()
	wg.Wait()
	m.p.Kill()
	return wake, copied
}

// heap returns the bytes that are in use.
func heap() float64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return float64(s.HeapAlloc)
}

// memory measures what is kept for a page beside its content, and for memory
// that is mapped and empty.
func memory() []row {
	const pages = 64 << 10
	m := newMachine()
	th := m.p.NewThread()
	r := m.area(th, pages*mem.PageSize)
	page := make([]byte, mem.PageSize)
	before := heap()
	for a := r.Start; a < r.End; a += mem.PageSize {
		_, errno := m.d.Copy(a, page, 0)
		check("copy", errno)
	}
	perPage := (heap()-before)/pages - mem.PageSize
	// The same of pages that are far from each other.
	const apart = 2 << 20
	far := m.area(th, pages*apart)
	before = heap()
	for a := far.Start; a < far.End; a += apart {
		_, errno := m.d.Copy(a, page, 0)
		check("copy", errno)
	}
	perFar := (heap()-before)/pages - mem.PageSize
	before = heap()
	const size = 64 << 40 >> 10 // 64 GiB
	big, errno := th.Mmap(0, 1<<46, rw, vkernel.MapPrivate|vkernel.MapAnonymous|vkernel.MapNoReserve, -1, 0)
	check("mmap", errno)
	check("register", m.d.Register(mem.MakeRange(big, 1<<46), uapi.UFFDIO_REGISTER_MODE_MISSING))
	check("unregister", m.d.Unregister(mem.MakeRange(big+1<<40, size)))
	perGiB := (heap() - before) / (1 << 16)
	// The same when it has had pages and was told to drop them. The frames of these are
	// kept for others, so that there are as many before.
	check("unregister", m.d.Unregister(mem.MakeRange(big, 1<<46)))
	touch := func(gib, every mem.Addr) {
		for i := range gib * 8 {
			check("store", th.Store(context.Background(), big+i*every, page[:1]))
		}
		check("madvise", th.Madvise(big, 1<<46, vkernel.MadvDontNeed))
	}
	touch(64, mem.PageSize)
	before = heap()
	touch(64, 1<<27)
	perDropped := (heap() - before) / 64
	runtime.KeepAlive(m)
	return []row{
		{"memory a page beside its content", "≤ 16 bytes", fmt.Sprintf("%.1f bytes", perPage), perPage <= 16},
		{"memory a page beside its content, one in 2 MiB", "", fmt.Sprintf("%.1f bytes", perFar), true},
		{"memory a mapped and empty GiB, VMAs included", "≤ 64 bytes", fmt.Sprintf("%.2f bytes", perGiB), perGiB <= 64},
		{"memory a GiB that had pages and dropped them", "≤ 64 bytes", fmt.Sprintf("%.2f bytes", perDropped), perDropped <= 64},
	}
}
