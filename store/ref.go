// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"

	"github.com/faultline-go/faultline/mem"
)

// Kind says how the bytes of a page are kept.
type Kind uint8

const (
	// KindNone is the kind of the zero Ref: no page.
	KindNone Kind = iota
	// KindZero is a page of zeros. It lives in its Ref alone.
	KindZero
	// KindWord is a page that repeats one 8-byte word, which lives in the
	// Ref alone.
	KindWord
	// KindRaw is a page stored as it is.
	KindRaw
	// KindLZ4 is a page stored as one LZ4 block.
	KindLZ4
	// KindZstd is a page stored as one Zstandard frame.
	KindZstd

	kindEnd
)

// String returns the kind's name for messages.
func (k Kind) String() string {
	if k < kindEnd {
		return [...]string{"none", "zero", "word", "raw", "lz4", "zstd"}[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Ref says where a page is kept and what it must hash to. It is comparable
// and takes 16 bytes. The zero Ref is "no page".
//
// Refs are made by stores and mean something to the store that made them
// only.
type Ref struct {
	loc  uint64 // offset of the blob, or the word of a KindWord page
	sum  uint32 // part of a hash of the page, before compression
	n    uint16 // length of the blob in bytes
	kind Kind
	fold uint8 // see foldRef: finds a Ref that was damaged in memory
}

// MakeRef returns the Ref of a page of the given kind, for use by stores.
// loc is where its blob of n bytes lies, sum the page's checksum.
func MakeRef(kind Kind, loc uint64, n int, sum uint32) Ref {
	r := Ref{loc: loc, sum: sum, n: uint16(n), kind: kind}
	r.fold = foldRef(r)
	return r
}

// foldRef returns the exclusive or of all other bytes of r, which changes
// with every single bit of them, so that a damaged Ref is found before it
// leads a read astray. It is zero for the zero Ref.
func foldRef(r Ref) uint8 {
	x := r.loc ^ uint64(r.sum)<<32 ^ uint64(r.n)<<8 ^ uint64(r.kind)
	x ^= x >> 32
	x ^= x >> 16
	x ^= x >> 8
	return uint8(x)
}

// IsZero reports whether r is the zero Ref: no page.
func (r Ref) IsZero() bool { return r == Ref{} }

// IsZeroPage reports whether the page holds zeros only, so that it can be
// brought in without reading anything.
func (r Ref) IsZeroPage() bool { return r.kind == KindZero }

// Inline reports whether the page lives in r alone and takes no space in the
// store. Get never waits for such a page.
func (r Ref) Inline() bool { return r.kind == KindZero || r.kind == KindWord }

// Kind returns how the page is kept.
func (r Ref) Kind() Kind { return r.kind }

// Loc returns where the blob lies, or the word of a KindWord page.
func (r Ref) Loc() uint64 { return r.loc }

// Len returns the length of the blob in bytes, zero for Inline pages.
func (r Ref) Len() int { return int(r.n) }

// Sum returns the checksum of the page before compression, which means
// something to the store only.
func (r Ref) Sum() uint32 { return r.sum }

// Valid reports whether r can have come from MakeRef with a kind and a length
// that go together. A store checks this before it follows r. The zero Ref is
// not valid.
func (r Ref) Valid() bool {
	if r.fold != foldRef(r) {
		return false
	}
	switch r.kind {
	case KindZero:
		return r.n == 0 && r.loc == 0
	case KindWord:
		return r.n == 0
	case KindRaw:
		return r.n == mem.PageSize
	case KindLZ4, KindZstd:
		return 0 < r.n && r.n < mem.PageSize
	}
	return false
}

// String returns r for messages: kind, place, length and checksum.
func (r Ref) String() string {
	switch {
	case r.IsZero():
		return "no page"
	case r.kind == KindZero:
		return "zero page"
	case r.kind == KindWord:
		return fmt.Sprintf("page of word %#016x", r.loc)
	}
	return fmt.Sprintf("%s blob [%#x+%#x] sum %08x", r.kind, r.loc, r.n, r.sum)
}
