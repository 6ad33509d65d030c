// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"io"
	"slices"
	"time"

	"github.com/faultline-go/faultline/store"
)

const (
	// runBytes is the longest single write.
	runBytes = 256 << 10
	// After a failed write the writer waits firstPause, then twice as long
	// each time up to maxPause, so that a device that is gone costs nothing
	// and one that comes back is seen soon.
	firstPause = 20 * time.Millisecond
	maxPause   = 2 * time.Second
	// Every moveAfter-th failure of the same blobs they are given other
	// places: parts of a device may be bad for good.
	moveAfter = 3
)

// writer brings staged blobs to the file until the store closes. It is the
// only one that writes to it.
func (s *Store) writer() {
	defer close(s.writerDone)
	w := batchWriter{s: s, buf: make([]byte, 0, runBytes)}
	for {
		select {
		case <-s.stage.quit:
			return
		case <-s.stage.kick:
		}
		// A batch that just ended was kicked for while it ran; what came
		// meanwhile may be too little to be worth a write.
		lo, hi, due := s.stage.batch()
		if due && !s.writeBatch(&w, lo, hi) {
			return
		}
	}
}

// writeBatch writes the entries [lo, hi) until that succeeds. It returns false
// if the store closes first.
func (s *Store) writeBatch(w *batchWriter, lo, hi uint64) bool {
	pause := firstPause
	for fails := 1; ; fails++ {
		err := w.flush(lo, hi)
		if err == nil {
			s.stage.release(lo, hi)
			return true
		}
		s.stage.fail(s.base.Fail("write", store.Ref{}, w.off, err))
		if fails%moveAfter == 0 && !isFull(err) {
			s.move(lo, hi)
		}
		select {
		case <-s.stage.quit:
			return false
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

// move gives the live entries of [lo, hi) other places to be written to. Their
// Refs stay as they are: stage.moved leads from them to the new places. The old
// slots stay taken until they are freed.
func (s *Store) move(lo, hi uint64) {
	g := s.stage
	for ; lo < hi; lo++ {
		g.mu.RLock()
		e := *g.entryLocked(lo)
		g.mu.RUnlock()
		if e.dead {
			continue
		}
		at, size, err := s.alloc.Alloc(int(e.n))
		if err != nil {
			return // no other place: the old one is tried again
		}
		drop := at
		g.mu.Lock()
		if p := g.entryLocked(lo); !p.dead {
			old, again := g.moved[e.loc]
			drop = old
			if !again {
				g.staged.Add(1)
			}
			p.at, p.size = at, uint16(size)
			g.moved[e.loc] = at
			if !again {
				g.mu.Unlock()
				continue
			}
		}
		s.alloc.Free(drop, int(e.n))
		g.mu.Unlock()
	}
}

// batchWriter has what the writer reuses between batches.
type batchWriter struct {
	s     *Store
	order []uint64 // numbers of entries, by where they are written
	buf   []byte
	off   int64 // where the last write was, -1 for the wait after the writes
}

// flush writes the live entries of [lo, hi) and waits until the device has
// them.
func (w *batchWriter) flush(lo, hi uint64) error {
	g := w.s.stage
	w.order = w.order[:0]
	g.mu.RLock()
	for seq := lo; seq < hi; seq++ {
		if !g.entryLocked(seq).dead {
			w.order = append(w.order, seq)
		}
	}
	slices.SortFunc(w.order, func(a, b uint64) int {
		x, y := g.entryLocked(a).at, g.entryLocked(b).at
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	g.mu.RUnlock()

	for next := 0; next < len(w.order); {
		var err error
		if next, err = w.run(next); err != nil {
			return err
		}
	}
	w.off = -1
	return w.s.file.Datasync()
}

// run writes entries that lie in one piece, from the next-th in order on, and
// returns the number of the first that it left.
func (w *batchWriter) run(next int) (int, error) {
	w.s.ioMu.Lock()
	defer w.s.ioMu.Unlock()
	next, start := w.gather(next)
	w.off = place(start)
	for b, off := w.buf, w.off; len(b) > 0; {
		n, err := w.s.file.Pwrite(b, off)
		if err != nil {
			return next, err
		}
		if n == 0 {
			return next, io.ErrShortWrite
		}
		b, off = b[n:], off+int64(n)
	}
	return next, nil
}

// gather fills buf with the blobs of slots that follow on each other.
func (w *batchWriter) gather(next int) (rest int, start uint64) {
	g := w.s.stage
	g.mu.RLock()
	defer g.mu.RUnlock()
	w.buf = w.buf[:0]
	var end uint64 // of the last slot gathered
	for ; next < len(w.order); next++ {
		e := g.entryLocked(w.order[next])
		switch {
		case e.dead:
			// Freed since, and its slot may have another blob by now.
			continue
		case len(w.buf) == 0:
			start = e.at
		case e.at != end || int(e.at-start)+int(e.n) > runBytes:
			return next, start
		}
		// What is left of the slot before is written as zeros.
		w.buf = append(w.buf, make([]byte, int(e.at-start)-len(w.buf))...)
		w.buf = append(w.buf, g.blobLocked(e)...)
		end = e.at + uint64(e.size)
	}
	return next, start
}

// isFull reports whether err says that there is no room for more, rather than
// that the device fails.
func isFull(err error) bool {
	return errors.Is(err, store.ErrFull) || isNoSpace(err)
}
