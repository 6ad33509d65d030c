// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// TestFramesBelongToOne: of many who allocate frames and drop them, some in
// batches, some after they had another reference, no two have a frame at a
// time, and none is lost.
func TestFramesBelongToOne(t *testing.T) {
	var m memory
	m.init()
	const most = 1 << 14
	var owner [most]atomic.Int32
	var twice atomic.Bool
	var wg sync.WaitGroup
	for id := range int32(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(id)))
			var mine []frame
			for range 150 {
				for range rng.IntN(200) {
					f := m.alloc()
					if f == 0 || f >= most || !owner[f].CompareAndSwap(0, id+1) || m.count(f) != 1 || !m.has(f, frameExclusive) {
						twice.Store(true)
						return
					}
					if rng.IntN(4) == 0 {
						m.get(f)
						m.clear(f, frameExclusive)
						m.put(f)
					}
					mine = append(mine, f)
				}
				keep := rng.IntN(min(len(mine)+1, 1000))
				out := putter{m: &m}
				for _, f := range mine[keep:] {
					owner[f].Store(0)
					if rng.IntN(2) == 0 {
						out.put(f)
					} else {
						m.put(f)
					}
				}
				out.flush()
				mine = mine[:keep]
			}
			for _, f := range mine {
				owner[f].Store(0)
				m.put(f)
			}
		})
	}
	wg.Wait()
	if twice.Load() {
		t.Fatal("a frame that somebody has was given to another, or is not as a new one is")
	}
	if n := m.inUse(); n != 0 {
		t.Errorf("%d frames are in use after all were dropped", n)
	}
	// What is free can all be had again, before there are more chunks.
	chunks := len(*m.chunks.Load())
	for range chunks*chunkFrames - 1 {
		m.alloc()
	}
	if n := len(*m.chunks.Load()); n != chunks {
		t.Errorf("%d chunks, there were %d and frames were free", n, chunks)
	}
}

// TestFreeContentGoes: of chunks that are wholly free some are kept, and the
// others' content goes back to the collector until they are used again.
func TestFreeContentGoes(t *testing.T) {
	var m memory
	m.init()
	frames := make([]frame, (2*spareChunks)*chunkFrames)
	for range 2 {
		for i := range frames {
			frames[i] = m.alloc()
			page, _ := m.page(frames[i])
			page[0] = 1
		}
		for _, f := range frames {
			m.put(f)
		}
		with := 0
		for _, c := range *m.chunks.Load() {
			if c.data != nil {
				with++
			}
		}
		// That of the zero page and the one that is allocated from stay, too.
		if with < spareChunks || with > spareChunks+2 {
			t.Errorf("%d chunks have content, want about %d", with, spareChunks)
		}
	}
	if n := m.inUse(); n != 0 {
		t.Errorf("%d frames are in use", n)
	}
}
