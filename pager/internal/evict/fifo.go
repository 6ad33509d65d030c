// SPDX-License-Identifier: Apache-2.0

package evict

import "github.com/faultline-go/faultline/mem"

// entry is one place in a queue: 16 bytes. It is stale when the caller's
// entry of the page no longer holds the stamp.
type entry struct {
	page  mem.Page
	space uint32
	stamp Stamp
}

func (e entry) key() Key { return Key{e.space, e.page} }

// follows reports whether e is the direct neighbour of k in memory.
func (e entry) follows(k Key) bool {
	return e.space == k.Space && (e.page == k.Page+1 || e.page+1 == k.Page)
}

// chunkLen makes a chunk, with its link, fill 4 KiB.
const chunkLen = 255

type chunk struct {
	next *chunk
	e    [chunkLen]entry
}

// pool holds the chunks that no queue uses. The queues of one Queue share
// it: pages wander between them, so together they need little more than the
// entries that exist.
type pool struct {
	free  *chunk
	nfree int
}

func (p *pool) get() *chunk {
	c := p.free
	if c == nil {
		return new(chunk)
	}
	p.free, c.next = c.next, nil
	p.nfree--
	return c
}

func (p *pool) put(c *chunk) {
	c.next = p.free
	p.free = c
	p.nfree++
}

// trim gives all but keep unused chunks to the garbage collector.
func (p *pool) trim(keep int) {
	for p.nfree > keep {
		p.free = p.free.next
		p.nfree--
	}
}

// fifo is a queue of entries in chunks. The zero fifo is empty.
type fifo struct {
	head, tail *chunk
	hi, ti     int // head entry in head, end of the entries in tail
	n          int // entries, stale ones among them
	live       int // entries that are not stale
}

func (f *fifo) push(p *pool, e entry) {
	if f.tail == nil {
		f.head = p.get()
		f.tail, f.hi, f.ti = f.head, 0, 0
	} else if f.ti == chunkLen {
		f.tail.next = p.get()
		f.tail, f.ti = f.tail.next, 0
	}
	f.tail.e[f.ti] = e
	f.ti++
	f.n++
}

// peek returns the oldest entry. The queue must have one.
func (f *fifo) peek() entry { return f.head.e[f.hi] }

// pop drops the oldest entry. The queue must have one.
func (f *fifo) pop(p *pool) {
	f.hi++
	f.n--
	if f.n > 0 && f.hi < chunkLen {
		return
	}
	c := f.head
	f.head, f.hi = c.next, 0
	p.put(c)
	if f.n == 0 {
		*f = fifo{live: f.live}
	}
}

// compact drops the stale entries and keeps the order of the others.
func (f *fifo) compact(p *pool, live func(Key, Stamp) bool) {
	// The entries move forward in place: the write position never passes
	// the read position, and pop frees only chunks that were read.
	old := *f
	*f = fifo{}
	for old.n > 0 {
		e := old.peek()
		old.pop(p)
		if live(e.key(), e.stamp) {
			f.push(p, e)
		}
	}
	f.live = f.n
}
