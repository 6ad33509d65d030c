// SPDX-License-Identifier: Apache-2.0

package codec

import "sync/atomic"

// poolSize is how many values a Pool keeps: more than the threads that decode
// or encode at the same moment on most machines. Past it, values are made and
// dropped.
const poolSize = 32

// Pool keeps values for reuse. Unlike a sync.Pool it keeps them across
// collections, so that a thread that must not allocate finds one, and it never
// takes a lock. The zero value with New set is ready.
type Pool[T any] struct {
	New   func() *T
	hint  atomic.Uint32
	slots [poolSize]struct {
		v atomic.Pointer[T]
		_ [56]byte // one cache line each: threads do not share them
	}
}

// Get returns a value for the caller alone, to be given back by Put.
func (p *Pool[T]) Get() *T {
	from := p.hint.Load()
	for i := range uint32(poolSize) {
		s := &p.slots[(from-i)%poolSize]
		if s.v.Load() == nil {
			continue
		}
		if v := s.v.Swap(nil); v != nil {
			return v
		}
	}
	return p.New()
}

// Put gives v back.
func (p *Pool[T]) Put(v *T) {
	from := p.hint.Load()
	for i := range uint32(poolSize) {
		k := (from + i) % poolSize
		if p.slots[k].v.Load() == nil && p.slots[k].v.CompareAndSwap(nil, v) {
			p.hint.Store(k)
			return
		}
	}
}

// Fill makes n values ahead, so that the first users allocate nothing.
func (p *Pool[T]) Fill(n int) {
	for range n {
		p.Put(p.New())
	}
}
