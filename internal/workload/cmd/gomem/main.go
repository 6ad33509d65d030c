// SPDX-License-Identifier: Apache-2.0

// Command gomem is a Go program that is hard on whatever manages its memory.
//
//	gomem MIB SEED [ROUNDS]
//
// Goroutines build, verify, drop and rebuild slices and maps of about MIB of
// live heap, while the garbage collector runs, the runtime preempts them by
// SIGURG, timers fire and memory is given back to the kernel. It prints
// checksums that depend on its arguments only, and exits with status 1 where
// a value is not what was stored.
package main

import (
	"fmt"
	"hash/crc64"
	"os"
	"runtime"
	"runtime/debug"
	"sort"
	"strconv"
	"sync"
	"time"
)

const (
	goroutines = 64
	block      = 64 << 10 // bytes in a slice
	entries    = 64       // of a map, for each block
)

// A xorshift is a generator small enough to have one for every block.
type xorshift uint64

func (x *xorshift) next() uint64 {
	v := uint64(*x)
	v ^= v << 13
	v ^= v >> 7
	v ^= v << 17
	*x = xorshift(v)
	return v
}

// A holding is what one goroutine keeps alive.
type holding struct {
	blocks [][]uint64
	built  []int // the round in which each block was made
	byKey  map[string]*[8]uint64
	seed   uint64
}

// fill makes b the words that seed leads to.
func fill(b []uint64, seed uint64) {
	x := xorshift(seed | 1)
	for i := range b {
		if i%2 == 0 {
			b[i] = x.next()
		} else {
			b[i] = seed
		}
	}
}

// check verifies that b is what fill made, and returns a sum of it.
func check(b []uint64, seed uint64) (sum uint64, err error) {
	x := xorshift(seed | 1)
	for i, v := range b {
		want := seed
		if i%2 == 0 {
			want = x.next()
		}
		if v != want {
			return 0, fmt.Errorf("word %d of block %#x is %#x, want %#x", i, seed, v, want)
		}
		sum += v
	}
	return sum, nil
}

func key(seed uint64, i int) string {
	return strconv.FormatUint(seed+uint64(i)*0x9e3779b9, 36)
}

// build replaces every nth block and map entry of h, so that garbage lies
// between what lives.
func (h *holding) build(round, nth int) {
	for i := range h.blocks {
		if h.blocks[i] != nil && i%nth != round%nth {
			continue
		}
		h.built[i] = round
		h.blocks[i] = make([]uint64, block/8)
		fill(h.blocks[i], h.blockSeed(i))
		for e := range entries {
			n := i*entries + e
			h.byKey[key(h.seed, n)] = &[8]uint64{h.seed, uint64(n), h.blockSeed(i), 7: ^uint64(n)}
		}
	}
}

// blockSeed differs from round to round, so that an old copy of a block is not
// taken for the new one.
func (h *holding) blockSeed(i int) uint64 {
	return h.seed*1_000_003 + uint64(i)*7919 + uint64(h.built[i])<<40 + 1
}

// verify goes over everything that h holds.
func (h *holding) verify() (sum uint64, err error) {
	for i, b := range h.blocks {
		s, err := check(b, h.blockSeed(i))
		if err != nil {
			return 0, err
		}
		sum += s
	}
	if want := len(h.blocks) * entries; len(h.byKey) != want {
		return 0, fmt.Errorf("map has %d entries, want %d", len(h.byKey), want)
	}
	for i := range len(h.blocks) * entries {
		v := h.byKey[key(h.seed, i)]
		if v == nil || *v != [8]uint64{h.seed, uint64(i), h.blockSeed(i / entries), 7: ^uint64(i)} {
			return 0, fmt.Errorf("map entry %d of %#x is %v", i, h.seed, v)
		}
		sum += v[2] ^ v[7]
	}
	return sum, nil
}

// recurse grows and moves the goroutine's stack.
func recurse(depth int, salt uint64) uint64 {
	var frame [32]uint64
	for i := range frame {
		frame[i] = salt + uint64(depth*i)
	}
	var below uint64
	if depth > 0 {
		below = recurse(depth-1, salt)
	}
	for i := range frame {
		if frame[i] != salt+uint64(depth*i) {
			return 0
		}
	}
	return below + 1
}

// work is one goroutine's share of a round.
func (h *holding) work(round int) (sum uint64, err error) {
	h.build(round, 3)
	if sum, err = h.verify(); err != nil {
		return 0, err
	}
	if d := recurse(2000, h.seed); d != 2001 {
		return 0, fmt.Errorf("recursion returned %d", d)
	}
	keys := make([]string, 0, len(h.byKey))
	for k := range h.byKey {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	c := crc64.New(crc64.MakeTable(crc64.ECMA))
	for _, k := range keys {
		_, _ = c.Write([]byte(k)) // a hash's Write never fails
	}
	return sum ^ c.Sum64(), nil
}

// disturb collects, frees memory and fires timers until done is closed.
func disturb(done <-chan struct{}) {
	for i := 0; ; i++ {
		t := time.AfterFunc(time.Millisecond, func() { _ = make([]byte, block) })
		select {
		case <-done:
			t.Stop()
			return
		case <-time.After(5 * time.Millisecond):
		}
		if i%4 == 0 {
			runtime.GC()
		}
		if i%16 == 0 {
			debug.FreeOSMemory()
		}
	}
}

func run(mib, seed uint64, rounds int) error {
	holdings := make([]*holding, goroutines)
	for i := range holdings {
		n := max(int(mib<<20/goroutines/(block+entries*128)), 1)
		holdings[i] = &holding{
			blocks: make([][]uint64, n),
			built:  make([]int, n),
			byKey:  make(map[string]*[8]uint64, n*entries),
			seed:   seed<<16 + uint64(i),
		}
	}
	done := make(chan struct{})
	var disturber sync.WaitGroup
	disturber.Go(func() { disturb(done) })
	defer disturber.Wait()
	defer close(done)

	for round := range rounds {
		sums := make([]uint64, goroutines)
		errs := make([]error, goroutines)
		var wg sync.WaitGroup
		for i, h := range holdings {
			wg.Go(func() { sums[i], errs[i] = h.work(round) })
		}
		wg.Wait()
		var total uint64
		for i := range sums {
			if errs[i] != nil {
				return fmt.Errorf("round %d, goroutine %d: %w", round, i, errs[i])
			}
			total = total*31 + sums[i]
		}
		fmt.Printf("round %d sum=%016x\n", round, total)
	}
	return nil
}

func main() {
	args := append(os.Args[1:], "4")
	if len(args) < 3 || len(args) > 4 {
		fmt.Fprintln(os.Stderr, "usage: gomem MIB SEED [ROUNDS]")
		os.Exit(2)
	}
	mib, err1 := strconv.ParseUint(args[0], 10, 32)
	seed, err2 := strconv.ParseUint(args[1], 10, 32)
	rounds, err3 := strconv.Atoi(args[2])
	if err1 != nil || err2 != nil || err3 != nil || rounds < 1 {
		fmt.Fprintln(os.Stderr, "gomem: MIB, SEED and ROUNDS must be positive numbers")
		os.Exit(2)
	}
	if err := run(mib, seed, rounds); err != nil {
		fmt.Fprintln(os.Stderr, "gomem:", err)
		os.Exit(1)
	}
}
