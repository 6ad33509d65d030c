// SPDX-License-Identifier: Apache-2.0

// Package core holds what the local stores have in common: their life cycle,
// their codecs, their counters, and the giving back of free space.
package core

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/store/internal/codec"
	"github.com/faultline-go/faultline/store/internal/slab"
)

// ErrOutside is the cause when a Ref points beyond what the store ever had.
var ErrOutside = fmt.Errorf("%w: it lies outside the store", store.ErrCorrupt)

// shut is the bit of Base.calls that is set by Shut; the others count calls.
const shut = 1 << 62

// Base is embedded by a store.
type Base struct {
	name     string // immutable after Init
	Encoders codec.Pool[codec.Encoder]
	Decoders codec.Pool[codec.Decoder]

	calls atomic.Int64
	idle  chan struct{} // has room for the signal that the last call ended
	stats counters
}

// counters are those of store.Stats that are kept here.
type counters struct {
	puts, zero, word, raw, out, gets, corrupt, errors, misused atomic.Uint64
}

// Init makes b ready for use. name is what errors call the store.
func (b *Base) Init(name string, c store.Codec) error {
	if _, err := codec.NewEncoder(c); err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	b.name = name
	b.idle = make(chan struct{}, 1)
	b.Encoders.New = func() *codec.Encoder {
		e, err := codec.NewEncoder(c)
		if err != nil {
			panic("store: an encoder that could be made before: " + err.Error())
		}
		return e
	}
	b.Decoders.New = func() *codec.Decoder { return new(codec.Decoder) }
	b.Encoders.Fill(1)
	b.Decoders.Fill(2 * runtime.GOMAXPROCS(0))
	return nil
}

// Enter begins a call. Unless it fails, Leave must end it.
func (b *Base) Enter(op string) error {
	if b.calls.Add(1)&shut == 0 {
		return nil
	}
	b.Leave()
	return &store.Error{Store: b.name, Op: op, Off: -1, Err: store.ErrClosed}
}

// Leave ends a call.
func (b *Base) Leave() {
	if b.calls.Add(-1) == shut {
		// Shut waits. A call refused after it may signal once more, into
		// the room that nobody waits for.
		select {
		case b.idle <- struct{}{}:
		default:
		}
	}
}

// Shut refuses new calls and waits for those under way. It returns false if
// it was called before.
func (b *Base) Shut() bool {
	for {
		n := b.calls.Load()
		if n&shut != 0 {
			return false
		}
		if !b.calls.CompareAndSwap(n, n|shut) {
			continue
		}
		// The signal may come from a call that was refused while others
		// are still under way: no, for Leave counts those too.
		if n > 0 {
			<-b.idle
		}
		return true
	}
}

// Name returns what errors call the store.
func (b *Base) Name() string { return b.name }

// Fail counts err and wraps it as a *store.Error. An error that says that the
// store is full is Temporary.
func (b *Base) Fail(op string, ref store.Ref, off int64, err error) error {
	b.stats.errors.Add(1)
	if errors.Is(err, store.ErrCorrupt) {
		b.stats.corrupt.Add(1)
	}
	return &store.Error{
		Store: b.name, Op: op, Ref: ref, Off: off, Err: err,
		Retry: errors.Is(err, store.ErrFull),
	}
}

// CheckPage returns the error of a put of something that is not a page.
func (b *Base) CheckPage(page []byte) error {
	if len(page) == mem.PageSize {
		return nil
	}
	return b.Fail("put", store.Ref{}, -1, fmt.Errorf("%d bytes are not a page", len(page)))
}

// Begin does what every get begins with. done says that the get is over: the
// page lived in ref, or err says why it cannot be had.
func (b *Base) Begin(ref store.Ref, dst []byte) (done bool, err error) {
	if len(dst) != mem.PageSize {
		return true, b.Fail("get", ref, -1, fmt.Errorf("the buffer has %d bytes, not a page", len(dst)))
	}
	if err := codec.Check(ref); err != nil {
		return true, b.Fail("get", ref, -1, err)
	}
	if ref.Inline() {
		return true, b.Got(ref, codec.Inline(ref, dst))
	}
	return false, nil
}

// Got counts the end of a get and wraps its error, if any.
func (b *Base) Got(ref store.Ref, err error) error {
	if err != nil {
		return b.Fail("get", ref, int64(ref.Loc()), err)
	}
	b.stats.gets.Add(1)
	return nil
}

// Stored counts a page put.
func (b *Base) Stored(x *codec.Encoded) {
	b.stats.puts.Add(1)
	b.stats.out.Add(uint64(len(x.Blob)))
	switch x.Kind {
	case store.KindZero:
		b.stats.zero.Add(1)
	case store.KindWord:
		b.stats.word.Add(1)
	case store.KindRaw:
		b.stats.raw.Add(1)
	}
}

// Counted reports whether ref has a count of references. A damaged ref has
// none: its space stays taken, which is better than freeing another page's.
func (b *Base) Counted(ref store.Ref) bool {
	if ref.Valid() {
		return !ref.Inline()
	}
	if !ref.IsZero() {
		b.stats.misused.Add(1)
	}
	return false
}

// Count returns the counters, with the gauges that u gives.
func (b *Base) Count(u slab.Usage) store.Stats {
	c := &b.stats
	return store.Stats{
		Puts:      c.puts.Load(),
		Gets:      c.gets.Load(),
		Zero:      c.zero.Load(),
		SameWord:  c.word.Load(),
		Raw:       c.raw.Load(),
		BytesIn:   c.puts.Load() * mem.PageSize,
		BytesOut:  c.out.Load(),
		Corrupt:   c.corrupt.Load(),
		Errors:    c.errors.Load(),
		Misused:   c.misused.Load() + uint64(u.Misuse),
		Live:      uint64(u.Slots),
		LiveBytes: uint64(u.Bytes),
		Allocated: uint64(u.Backed) * slab.Size,
	}
}

// Trimmer gives free space back behind its user's back, since that takes
// system calls that a freeing thread should not wait for.
type Trimmer struct {
	wake chan struct{}
	stop sync.Once
	done chan struct{}
}

// StartTrimmer returns a trimmer of a.
func StartTrimmer(a *slab.Allocator) *Trimmer {
	t := &Trimmer{wake: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		defer close(t.done)
		for range t.wake {
			a.Trim()
		}
	}()
	return t
}

// Wake makes the trimmer look. It never waits.
func (t *Trimmer) Wake() {
	select {
	case t.wake <- struct{}{}:
	default: // it has yet to look, and will see what we saw
	}
}

// Stop ends the trimmer and waits for it. Wake must not be called afterwards.
func (t *Trimmer) Stop() {
	t.stop.Do(func() { close(t.wake) })
	<-t.done
}
