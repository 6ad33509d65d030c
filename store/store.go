// SPDX-License-Identifier: Apache-2.0

// Package store says what a place for pages outside memory must do.
//
// A [Store] keeps pages of [mem.PageSize] bytes under a [Ref], which says
// where the page lies, how it is encoded and what it must hash to. The caller
// keeps the Ref; the store keeps no index of its own and knows nothing of the
// pages' owners.
//
// The trap: a Ref is a reference and must be given back by Free exactly once,
// and never while a Get of it is under way. Freed space is reused at once. A
// stale Ref then yields [ErrCorrupt] in all likelihood, since the checksum of
// the content is part of the Ref, but it is a bug of the caller.
package store

import (
	"context"
	"fmt"
)

// Store keeps pages outside memory. All methods may be called concurrently.
type Store interface {
	// Put stores pages, each of exactly mem.PageSize bytes, and fills refs,
	// which must be at least as long. It keeps no part of pages.
	//
	// It returns the number of pages stored. When that is less than
	// len(pages), err says why: pages[n:] are not stored and take no space,
	// refs[n:] are untouched, and the caller must keep those pages. An error
	// that matches [ErrFull] or is Temporary may go away: back off, retry.
	Put(pages [][]byte, refs []Ref) (n int, err error)

	// TryGet decodes the page of ref into dst, of mem.PageSize bytes, if
	// that needs no waiting for a device. It returns false and no error
	// where [Store.Get] is needed.
	//
	// It allocates nothing and makes no system call that may block, so it
	// may be called from a locked thread on the path of a fault. After an
	// error the content of dst is not defined and must not be used.
	TryGet(ref Ref, dst []byte) (ok bool, err error)

	// Get decodes the page of ref into dst, of mem.PageSize bytes. It may
	// wait for a device; ctx bounds the wait as far as the store can (a
	// read that the kernel has begun on a local disk is not interrupted).
	//
	// It returns an *[Error]. One that matches [ErrCorrupt] means that the
	// page is lost: what was found is not what was stored. After an error
	// the content of dst is not defined and must not be used.
	Get(ctx context.Context, ref Ref, dst []byte) error

	// Same reports whether page, of mem.PageSize bytes, is the page of ref, if
	// that can be told without waiting for a device; else it returns false.
	// It compares the bytes, or a hash of 128 bits. Like TryGet it may be
	// called on the path of a fault.
	Same(ref Ref, page []byte) bool

	// Share adds a reference to the page: it then lives until Free was
	// called once more. The page of the zero Ref, and pages that live in
	// their Ref alone, have no count.
	Share(ref Ref)

	// Free gives a reference back. With the last one the space is reused.
	Free(ref Ref)

	// Stats returns counters. They are read one by one and may be off
	// against each other while calls are under way.
	Stats() Stats

	// Health returns nil, or why pages cannot be written at present. Pages
	// already stored remain readable. Eviction should back off while it is
	// not nil; the store tries again by itself and recovers. A store that is
	// full is healthy: Put says that it is.
	Health() error

	// Close waits for calls under way, gives all space back and makes every
	// later call fail with [ErrClosed]. All pages are lost. Calls after the
	// first do nothing.
	Close() error
}

// Nearer is implemented by stores that keep blobs in memory.
type Nearer interface {
	// Bring begins to bring the blob of ref into the processor's caches, for a
	// TryGet that is about to come. It does not wait and does not fail. ref
	// need not be live.
	Bring(ref Ref)
}

// Stats counts what a store did. Counters only grow, gauges say so.
type Stats struct {
	Puts      uint64 // pages stored, those below included
	Gets      uint64 // pages handed back
	Zero      uint64 // pages stored that held zeros only
	SameWord  uint64 // pages stored that repeated one 8-byte word, not zero
	Raw       uint64 // pages stored as they are: they do not compress
	BytesIn   uint64 // bytes of the pages stored, before compression
	BytesOut  uint64 // bytes of the blobs they became
	Corrupt   uint64 // pages that were not what had been stored
	Errors    uint64 // failed operations, those on corrupt pages included
	Misused   uint64 // Share or Free of a Ref that is not live: caller's bug
	Live      uint64 // gauge: pages that take space now
	LiveBytes uint64 // gauge: bytes of the slots they take
	Allocated uint64 // gauge: bytes of memory or file given to slots
	Size      uint64 // gauge: length of the file or of the address space
	Staged    uint64 // gauge: bytes in memory, not yet safe on the device
}

// Codec says how a store encodes pages. Whatever it is, pages of zeros and of
// one repeated word take no space, and a page that does not shrink is stored
// as it is.
type Codec uint8

const (
	// LZ4 is the default: about 1 µs to decode a page.
	LZ4 Codec = iota
	// Zstd takes less space, up to half of that of LZ4 for text, and some
	// ten times as long.
	Zstd
	// None stores pages as they are.
	None
)

// String returns the codec's name as ParseCodec takes it.
func (c Codec) String() string {
	switch c {
	case LZ4:
		return "lz4"
	case Zstd:
		return "zstd"
	case None:
		return "none"
	}
	return fmt.Sprintf("codec(%d)", uint8(c))
}

// ParseCodec returns the codec called name. The error lists the names.
func ParseCodec(name string) (Codec, error) {
	for c := LZ4; c <= None; c++ {
		if c.String() == name {
			return c, nil
		}
	}
	return 0, fmt.Errorf("unknown compression %q: use lz4, zstd or none", name)
}
