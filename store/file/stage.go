// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/store/internal/slab"
)

const (
	// stageMeanBlob is the mean length of blob for which the stage has
	// entries enough.
	stageMeanBlob = 512
	// maxWait bounds how long Put waits for room before it gives up on a
	// device that makes no progress.
	maxWait = time.Second
)

// errBehind is why Put stores nothing while the device works, but too slowly.
var errBehind = errors.New("the device takes no writes at present")

// entry is a blob in memory.
type entry struct {
	loc  uint64 // where its Ref says that it is
	at   uint64 // where it is written: loc, unless that failed too often
	pos  uint64 // where it is in the ring, as a count of bytes ever added
	n    uint16
	size uint16 // of the slot
	dead bool   // freed; it must not be written any more
}

// stage holds the blobs that are not known to be on the device: a ring of
// bytes and a ring of entries, both added to at the head by Put and released
// at the tail by the writer.
type stage struct {
	staged atomic.Int64 // entries of index, and of moved: find need not look
	kick   chan struct{}
	quit   chan struct{} // closed by stop

	size  uint64 // of ring, in bytes; immutable
	count uint64 // of entries; immutable

	mu       sync.RWMutex
	ring     []byte            // mu; nil, as entries and index, until the first add
	entries  []entry           // mu
	index    map[uint64]uint64 // mu: loc to the number of its entry
	moved    map[uint64]uint64 // mu: loc to where the blob is instead
	head     uint64            // mu: number of the next entry
	tail     uint64            // mu: number of the oldest
	byteHead uint64            // mu
	byteTail uint64            // mu
	writing  bool              // mu: the writer reads entries from the tail on
	err      error             // mu: why the last write failed, nil if it did not
	progress chan struct{}     // mu: closed and replaced when room was made or a write failed
	waited   bool              // mu: somebody may wait for progress
}

// newStage returns a stage of n bytes. Its memory is made for the first blob:
// most programs never have one, and would start a tenth later for it.
func newStage(n int) *stage {
	return &stage{
		kick:     make(chan struct{}, 1),
		quit:     make(chan struct{}),
		size:     uint64(n),
		count:    uint64(n / stageMeanBlob),
		moved:    make(map[uint64]uint64),
		progress: make(chan struct{}),
	}
}

func (g *stage) entryLocked(seq uint64) *entry { return &g.entries[seq%g.count] }

func (g *stage) blobLocked(e *entry) []byte {
	p := e.pos % g.size
	return g.ring[p : p+uint64(e.n)]
}

// placeLocked returns where n bytes would go, in one piece, and whether there
// is room.
func (g *stage) placeLocked(n int) (pos uint64, ok bool) {
	pos = g.byteHead
	if in := pos % g.size; in+uint64(n) > g.size {
		pos += g.size - in
	}
	return pos, pos+uint64(n)-g.byteTail <= g.size && g.head-g.tail < g.count
}

// room waits until a blob of n bytes fits. It returns an error at once when
// the device fails, and after maxWait when it makes no progress.
func (g *stage) room(n int) error {
	var timer *time.Timer
	for {
		g.mu.Lock()
		_, ok := g.placeLocked(n)
		err, progress := g.err, g.progress
		g.waited = g.waited || !ok
		g.mu.Unlock()
		if ok {
			return nil
		}
		g.wakeWriter()
		if err != nil {
			return err
		}
		if timer == nil {
			timer = time.NewTimer(maxWait)
			defer timer.Stop()
		}
		select {
		case <-progress:
		case <-timer.C:
			g.mu.Lock()
			// Later calls need not wait as long to learn the same.
			if g.err == nil && g.progress == progress {
				g.err = errBehind
			}
			g.mu.Unlock()
			return errBehind
		}
	}
}

// add stages blob, whose slot of size bytes is at off. It returns false when
// there is no room, for another call took it.
func (g *stage) add(off uint64, size int, blob []byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	pos, ok := g.placeLocked(len(blob))
	if !ok {
		return false
	}
	if g.ring == nil {
		g.ring = make([]byte, g.size)
		g.entries = make([]entry, g.count)
		g.index = make(map[uint64]uint64, g.count)
	}
	e := g.entryLocked(g.head)
	*e = entry{loc: off, at: off, pos: pos, n: uint16(len(blob)), size: uint16(size)}
	g.byteHead = pos + uint64(len(blob))
	copy(g.blobLocked(e), blob)
	g.index[off] = g.head
	g.head++
	g.staged.Add(1)
	if g.dueLocked() {
		g.wakeWriter()
	}
	return true
}

// dueLocked reports whether there is enough to write: one half is written
// while the other fills.
func (g *stage) dueLocked() bool {
	return g.byteHead-g.byteTail >= g.size/2 || g.head-g.tail >= g.count/2
}

// find returns the blob of ref if it is staged, copied to buf; else nil, and
// where it is in the file.
func (g *stage) find(ref store.Ref, buf []byte) (blob []byte, at uint64) {
	at = ref.Loc()
	// A blob is staged before its Ref is handed out, so whoever has the Ref
	// and sees none staged may look in the file.
	if g.staged.Load() == 0 {
		return nil, at
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	if seq, ok := g.index[at]; ok {
		e := g.entryLocked(seq)
		return buf[:copy(buf, g.blobLocked(e))], at
	}
	if m, ok := g.moved[at]; ok {
		at = m
	}
	return nil, at
}

// free takes one from the count of the slot of n bytes at off, and with the
// last one forgets the blob. trim says that the allocator has something to
// trim.
func (g *stage) free(a *slab.Allocator, off uint64, n int) (trim bool) {
	// Under the lock, so that a new blob in the same slot cannot be staged
	// before the old one is forgotten.
	g.mu.Lock()
	defer g.mu.Unlock()
	gone, trim, _ := a.Free(off, n)
	if !gone {
		return trim
	}
	if seq, ok := g.index[off]; ok {
		g.entryLocked(seq).dead = true
		delete(g.index, off)
		g.staged.Add(-1)
		if seq == g.tail && !g.writing {
			g.skipDeadLocked(g.head)
		}
	}
	if m, ok := g.moved[off]; ok {
		_, t, _ := a.Free(m, n)
		trim = trim || t
		delete(g.moved, off)
		g.staged.Add(-1)
	}
	return trim
}

// wakeWriter makes the writer look. It never waits.
func (g *stage) wakeWriter() {
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// batch returns the entries [lo, hi) to be written, if there are enough to be
// worth it. They stay as they are until release.
func (g *stage) batch() (lo, hi uint64, due bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.writing = g.dueLocked()
	return g.tail, g.head, g.writing
}

// release forgets the entries [lo, hi) of the batch, which are on the device.
func (g *stage) release(lo, hi uint64) {
	for lo < hi {
		lo = g.releaseSome(lo, hi)
	}
}

// releaseSome forgets the first of the entries [lo, hi) and returns the number
// of the next: not all at once, for a thread that serves a fault may be
// waiting for the lock.
func (g *stage) releaseSome(lo, hi uint64) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	for end := min(lo+64, hi); lo < end; lo++ {
		e := g.entryLocked(lo)
		if !e.dead {
			e.dead = true
			delete(g.index, e.loc)
			g.staged.Add(-1)
		}
	}
	g.err = nil
	if g.writing = lo < hi; g.writing {
		// Not further: what is freed behind lo may be dead as well, and its
		// entry must not be reused before lo is past it.
		g.skipDeadLocked(lo)
	} else {
		g.skipDeadLocked(g.head)
	}
	return lo
}

// skipDeadLocked makes room of what nobody needs at the tail, up to end.
func (g *stage) skipDeadLocked(end uint64) {
	for g.tail < end && g.entryLocked(g.tail).dead {
		g.tail++
	}
	g.byteTail = g.byteHead
	if g.tail < g.head {
		g.byteTail = g.entryLocked(g.tail).pos
	}
	g.signalLocked()
}

// fail notes why a write failed, so that nobody waits for room.
func (g *stage) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = err
	g.signalLocked()
}

// signalLocked wakes those that wait for room: there may be some, or no hope
// for it.
func (g *stage) signalLocked() {
	if g.waited {
		close(g.progress)
		g.progress = make(chan struct{})
		g.waited = false
	}
}

func (g *stage) health() error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.err == nil {
		return nil
	}
	return fmt.Errorf("pages stay in memory until the device takes them: %w", g.err)
}

func (g *stage) used() uint64 {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.byteHead - g.byteTail
}

func (g *stage) stop() { close(g.quit) }
