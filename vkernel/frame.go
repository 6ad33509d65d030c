// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/faultline-go/faultline/mem"
)

// frame numbers a page of content. Frame zero is the zero page: it always
// reads as zeros, is never written and never counted.
type frame uint32

const (
	chunkShift  = 6
	chunkFrames = 1 << chunkShift
	// spareChunks is how many wholly free chunks are kept for the next
	// allocations; the content of others goes back to the collector.
	spareChunks = 64
)

// What is known of a frame beside its content is one word: 30 bits that count
// references, and these.
const (
	// frameExclusive: the one page table that maps the frame may write to
	// it without asking. Fork takes that away, and only a write by the last
	// user gives it back.
	frameExclusive = 1 << 31
	// frameCached: the frame belongs to an object.
	frameCached = 1 << 30
	frameCount  = frameCached - 1
)

// chunk is the content of 64 consecutive frames.
type chunk struct {
	// mu protects content that is mapped. Content that nobody maps yet
	// belongs to whoever has allocated it.
	mu   sync.Mutex
	word [chunkFrames]atomic.Uint32
	free uint64                            // bit set; protected by memory.mu
	data *[chunkFrames * mem.PageSize]byte // nil while wholly free, perhaps; protected by memory.mu
}

// memory is the content of all pages of a Kernel, small and huge.
type memory struct {
	mu      sync.Mutex
	chunks  atomic.Pointer[[]*chunk] // replaced under mu
	partial []int                    // chunks with a free frame; protected by mu
	bare    bool                     // pages have no content; immutable
	empty   int                      // wholly free chunks with data; protected by mu

	huge hugePool
}

func (m *memory) init() {
	zero := &chunk{data: new([chunkFrames * mem.PageSize]byte), free: ^uint64(1)}
	m.chunks.Store(&[]*chunk{zero})
	m.partial = append(m.partial, 0)
}

// alloc returns a frame with one reference, exclusive to its owner. Its
// content is arbitrary.
func (m *memory) alloc() frame {
	m.mu.Lock()
	if len(m.partial) == 0 {
		m.grow()
	}
	i := m.partial[len(m.partial)-1]
	c := (*m.chunks.Load())[i]
	if m.bare {
		// There is no content to have.
	} else if c.data == nil {
		c.data = new([chunkFrames * mem.PageSize]byte)
	} else if c.free == ^uint64(0) {
		m.empty--
	}
	n := bits.TrailingZeros64(c.free)
	c.free &^= 1 << n
	if c.free == 0 {
		m.partial = m.partial[:len(m.partial)-1]
	}
	m.mu.Unlock()
	c.word[n].Store(1 | frameExclusive)
	return frame(i<<chunkShift | n)
}

// grow adds a chunk. Preconditions: m.mu is held.
func (m *memory) grow() {
	old := *m.chunks.Load()
	// Readers index the slice without the lock, and only below the length
	// that they have seen: the array can be shared.
	chunks := append(old, &chunk{free: ^uint64(0)})
	m.chunks.Store(&chunks)
	m.partial = append(m.partial, len(old))
}

func (m *memory) chunk(f frame) (*chunk, int) {
	return (*m.chunks.Load())[f>>chunkShift], int(f & (chunkFrames - 1))
}

// page returns the content of f and the lock of content that is mapped.
func (m *memory) page(f frame) (*[mem.PageSize]byte, *sync.Mutex) {
	c, n := m.chunk(f)
	return (*[mem.PageSize]byte)(c.data[n<<mem.PageShift:]), &c.mu
}

// get adds a reference. Preconditions: the caller can see that somebody has
// one that stays.
func (m *memory) get(f frame) {
	if f != 0 {
		c, n := m.chunk(f)
		c.word[n].Add(1)
	}
}

// put drops a reference, and the frame with the last.
func (m *memory) put(f frame) {
	if f == 0 {
		return
	}
	c, n := m.chunk(f)
	if c.word[n].Add(^uint32(0))&frameCount != 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.free == 0 {
		m.partial = append(m.partial, int(f>>chunkShift))
	}
	c.free |= 1 << n
	if c.free == ^uint64(0) && !m.bare {
		if m.empty++; m.empty > spareChunks {
			c.data = nil
			m.empty--
		}
	}
}

// count returns the number of references of f.
func (m *memory) count(f frame) int {
	c, n := m.chunk(f)
	return int(c.word[n].Load() & frameCount)
}

func (m *memory) has(f frame, flag uint32) bool {
	if f == 0 {
		return false
	}
	c, n := m.chunk(f)
	return c.word[n].Load()&flag != 0
}

func (m *memory) set(f frame, flag uint32) {
	c, n := m.chunk(f)
	c.word[n].Or(flag)
}

func (m *memory) clear(f frame, flag uint32) {
	if f != 0 {
		c, n := m.chunk(f)
		c.word[n].And(^flag)
	}
}

// allocZero returns a frame of zeros.
func (m *memory) allocZero() frame {
	f := m.alloc()
	if !m.bare {
		p, _ := m.page(f)
		clear(p[:])
	}
	return f
}

// duplicate returns a new frame with the content of f.
func (m *memory) duplicate(f frame) frame {
	n := m.alloc()
	if m.bare {
		return n
	}
	dst, _ := m.page(n)
	if f == 0 {
		clear(dst[:])
		return n
	}
	src, mu := m.page(f)
	mu.Lock()
	*dst = *src
	mu.Unlock()
	return n
}

// inUse returns the number of frames in use, the zero page aside.
func (m *memory) inUse() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := -1
	for _, c := range *m.chunks.Load() {
		n += chunkFrames - bits.OnesCount64(c.free)
	}
	return n
}
