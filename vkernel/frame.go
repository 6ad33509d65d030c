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
	allFree     = ^uint64(0)
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

// frameAlone is the word of a frame that one page table maps and nobody else
// knows, and of a free one most often: who drops such a frame leaves the word,
// and who allocates it finds it right.
const frameAlone = frameExclusive | 1

// chunk is the content of 64 consecutive frames.
type chunk struct {
	// mu protects content that is mapped. Content that nobody maps yet
	// belongs to whoever has allocated it, and that of a frame that is alone
	// to the lock of its page table.
	mu    sync.Mutex
	first frame                             // immutable
	data  *[chunkFrames * mem.PageSize]byte // nil in memory.bared; changed while free is zero
	word  [chunkFrames]atomic.Uint32
	// free is the bit set of free frames, zero for a chunk that is in
	// memory.spare or memory.bared. It is written for every frame, and so far
	// from what is read for every access.
	free atomic.Uint64
	// listed is whether the chunk is in memory.partial; protected by memory.mu
	listed bool
}

// memory is the content of all pages of a Kernel, small and huge. Frames are
// taken from one chunk and given back to any without the lock, which is for
// the choice of the next chunk.
type memory struct {
	current atomic.Pointer[chunk] // replaced under mu, when nothing of it is free
	mu      sync.Mutex
	chunks  atomic.Pointer[[]*chunk] // replaced under mu
	// partial has every chunk with a free frame but current, and perhaps some
	// without; protected by mu.
	partial []*chunk
	spare   []*chunk // wholly free, with content; protected by mu
	bared   []*chunk // wholly free, without; protected by mu
	bare    bool     // pages have no content; immutable

	huge hugePool
}

func (m *memory) init() {
	zero := &chunk{data: new([chunkFrames * mem.PageSize]byte)}
	zero.free.Store(allFree &^ 1)
	m.chunks.Store(&[]*chunk{zero})
	m.current.Store(zero)
}

// alloc returns a frame with one reference, exclusive to its owner. Its
// content is arbitrary.
func (m *memory) alloc() frame {
	for {
		c := m.current.Load()
		free := c.free.Load()
		if free == 0 {
			m.next()
			continue
		}
		n := bits.TrailingZeros64(free)
		if !c.free.CompareAndSwap(free, free&^(1<<n)) {
			continue
		}
		if c.word[n].Load() != frameAlone {
			c.word[n].Store(frameAlone)
		}
		return c.first + frame(n)
	}
}

// next finds a chunk to allocate from.
func (m *memory) next() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current.Load().free.Load() != 0 {
		return // somebody was faster, or has given a frame back
	}
	for len(m.partial) > 0 {
		c := pop(&m.partial)
		c.listed = false
		if c.free.Load() != 0 {
			m.current.Store(c)
			return
		}
	}
	var c *chunk
	switch {
	case len(m.spare) > 0:
		c = pop(&m.spare)
	case len(m.bared) > 0:
		c = pop(&m.bared)
	default:
		old := *m.chunks.Load()
		c = &chunk{first: frame(len(old)) << chunkShift}
		// Readers index the slice without the lock, and only below the length
		// that they have seen: the array can be shared.
		chunks := append(old, c)
		m.chunks.Store(&chunks)
	}
	if c.data == nil && !m.bare {
		c.data = new([chunkFrames * mem.PageSize]byte)
	}
	c.free.Store(allFree)
	m.current.Store(c)
}

func pop(list *[]*chunk) *chunk {
	l := *list
	c := l[len(l)-1]
	*list = l[:len(l)-1]
	return c
}

func (m *memory) chunk(f frame) (*chunk, int) {
	return (*m.chunks.Load())[f>>chunkShift], int(f & (chunkFrames - 1))
}

// page returns the content of f and the lock of content that is mapped.
func (m *memory) page(f frame) (*[mem.PageSize]byte, *sync.Mutex) {
	c, n := m.chunk(f)
	return (*[mem.PageSize]byte)(c.data[n<<mem.PageShift:]), &c.mu
}

// mapped is page for who holds the lock of a slot that maps f. Nobody else
// comes to a frame that is alone, and no lock is needed.
func (m *memory) mapped(f frame) (*[mem.PageSize]byte, *sync.Mutex) {
	c, n := m.chunk(f)
	page := (*[mem.PageSize]byte)(c.data[n<<mem.PageShift:])
	if c.word[n].Load() == frameAlone {
		return page, nil
	}
	return page, &c.mu
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
	p := putter{m: m}
	p.put(f)
	p.flush()
}

// putter drops references, and frames in batches.
type putter struct {
	m    *memory
	c    *chunk
	free uint64 // frames of c that are dropped
}

func (p *putter) put(f frame) {
	if f == 0 {
		return
	}
	c, n := p.m.chunk(f)
	// A frame that is alone stays so: to take a reference one has to see
	// another, and this is the only one.
	if c.word[n].Load() != frameAlone && c.word[n].Add(^uint32(0))&frameCount != 0 {
		return
	}
	if c != p.c {
		p.flush()
		p.c = c
	}
	p.free |= 1 << n
}

// flush ends a batch.
func (p *putter) flush() {
	if p.free == 0 {
		return
	}
	m, c := p.m, p.c
	before := c.free.Or(p.free)
	now := before | p.free
	p.free = 0
	// Where nothing was free, next may be on its way to another chunk.
	if before != 0 && (now != allFree || c == m.current.Load()) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case c == m.current.Load():
	case now == allFree && c.free.CompareAndSwap(allFree, 0):
		if len(m.spare) < spareChunks {
			m.spare = append(m.spare, c)
		} else {
			c.data = nil
			m.bared = append(m.bared, c)
		}
	case !c.listed:
		c.listed = true
		m.partial = append(m.partial, c)
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
	chunks := *m.chunks.Load()
	n := len(chunks)*chunkFrames - 1 - (len(m.spare)+len(m.bared))*chunkFrames
	for _, c := range chunks {
		n -= bits.OnesCount64(c.free.Load())
	}
	return n
}
