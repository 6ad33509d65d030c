// SPDX-License-Identifier: Apache-2.0

package mem

import (
	"fmt"
	"sync/atomic"

	"github.com/faultline-go/faultline/store/internal/slab"
)

const (
	// chunkShift is the binary logarithm of the length of a mapping. Large,
	// for the kernel has a bound on their number, which neighbours that it
	// does not merge would reach.
	chunkShift = 26
	chunkSize  = 1 << chunkShift
	chunkMask  = chunkSize - 1
)

// arena is the memory under the slabs. Readers find a slab without a lock:
// the table of chunks is replaced, never changed.
type arena struct {
	chunks atomic.Pointer[[][]byte] // written by Grow only, which has one caller at a time
}

// at returns the n bytes at off, or nil if they are beyond the arena.
func (a *arena) at(off uint64, n int) []byte {
	t := a.chunks.Load()
	if t == nil || off>>chunkShift >= uint64(len(*t)) {
		return nil
	}
	in := off & chunkMask
	if in+uint64(n) > chunkSize {
		return nil
	}
	return (*t)[off>>chunkShift][in : in+uint64(n) : in+uint64(n)]
}

// Grow implements slab.Backing.
func (a *arena) Grow(i int) error {
	off := uint64(i) << slab.Shift
	if a.at(off, slab.Size) == nil {
		var t [][]byte
		if old := a.chunks.Load(); old != nil {
			t = *old
		}
		b, err := mapChunk(chunkSize)
		if err != nil {
			return fmt.Errorf("more memory for pages: %w", err)
		}
		t = append(t[:len(t):len(t)], b)
		a.chunks.Store(&t)
	}
	return populate(a.at(off, slab.Size))
}

// Release implements slab.Backing.
func (a *arena) Release(i int) {
	release(a.at(uint64(i)<<slab.Shift, slab.Size))
}

// size returns how much address space the arena takes.
func (a *arena) size() uint64 {
	t := a.chunks.Load()
	if t == nil {
		return 0
	}
	return uint64(len(*t)) << chunkShift
}

// close unmaps everything. Nobody may use the arena afterwards.
func (a *arena) close() error {
	t := a.chunks.Swap(nil)
	if t == nil {
		return nil
	}
	var first error
	for _, b := range *t {
		if err := unmapChunk(b); err != nil && first == nil {
			first = fmt.Errorf("store mem: give memory back: %w", err)
		}
	}
	return first
}
