// SPDX-License-Identifier: Apache-2.0

// Package lz4page compresses single pages into LZ4 blocks.
//
// It exists because compression is the hottest loop of eviction and a general
// compressor pays for inputs of any length: a table of 128 KiB that does not
// stay in the nearest cache, and its clearing for each call. A page needs 12
// bits of position and a table of 8 KiB. The output is a plain LZ4 block,
// which any decoder of the format reads.
package lz4page

import (
	"math/bits"
	"unsafe"

	"github.com/faultline-go/faultline/mem"
)

const (
	hashLog = 12
	// hashShift keeps the top hashLog bits of a 64-bit product.
	hashShift = 64 - hashLog
	// hashMul spreads the low five bytes of a word. Any odd number with
	// well-mixed high bits does; this one is 2^64 divided by the golden
	// ratio, shifted so that three of the eight bytes fall out at the top.
	hashMul = 0x9e3779b97f4a7c15 << 24 & (1<<64 - 1)

	minMatch = 4
	// The format wants the last five bytes as literals and no match to
	// begin in the last twelve.
	matchStartEnd = mem.PageSize - 12
	matchEnd      = mem.PageSize - 5

	// skipLog sets how soon the search strides over bytes that do not
	// match: after 1<<skipLog misses it looks at every second position,
	// after twice as many at every third, and so on.
	skipLog = 4

	// slack is room behind the limit of the output, so that one sequence
	// may be written before the limit is tested: a run of literals that is
	// the whole page, its length bytes, the token, an offset, the length
	// bytes of a match, and the 16 bytes that a short copy may overshoot.
	slack = mem.PageSize + 2*(mem.PageSize/255+1) + 3 + 16
)

// MaxOut is the largest block that Compress returns. A page that needs more
// is better kept as it is: reading it back is then a copy.
const MaxOut = mem.PageSize * 15 / 16

// Compressor has the state that one goroutine reuses between pages. The zero
// value is ready.
//
// The table is never cleared. An entry left by an earlier page is but a
// position in this one, and a candidate counts only if it lies before the
// current position and the bytes there are equal, which is all that a match
// needs. So what the block decodes to never depends on earlier pages, though
// in rare cases its length does.
type Compressor struct {
	table [1 << hashLog]uint16
	out   [MaxOut + slack]byte
}

// Compress returns page as an LZ4 block, or nil if that would be longer than
// MaxOut. The block is valid until the next call.
//
// It is one long function on purpose: with the search apart, its state went
// through memory once for each match, which cost a tenth.
func (c *Compressor) Compress(page *[mem.PageSize]byte) []byte {
	var (
		src    = unsafe.Pointer(page)
		dst    = unsafe.Pointer(&c.out)
		table  = &c.table
		di     uintptr // bytes written
		anchor uintptr // start of the literals not yet written
		pos    uintptr // where the search is
		match  uintptr // an earlier position with the same four bytes
	)
	for di <= MaxOut {
		tries := uintptr(1 << skipLog)
		for {
			if pos >= matchStartEnd-1 {
				goto last
			}
			// Two neighbours at a time: the loads of the second do not
			// wait for the outcome of the first.
			w := load64(src, pos)
			h0, h1 := hash(w), hash(w>>8)
			m0, m1 := uintptr(table[h0]), uintptr(table[h1])
			table[h0] = uint16(pos)
			table[h1] = uint16(pos + 1)
			if m0 < pos && load32(src, m0) == uint32(w) {
				match = m0
				break
			}
			if m1 <= pos && load32(src, m1) == uint32(w>>8) {
				match = m1
				pos++
				break
			}
			pos += 1 + tries>>skipLog
			tries += 2
		}
		// A match often began earlier than where the stride found it.
		for pos > anchor && match > 0 && load8(src, pos-1) == load8(src, match-1) {
			pos--
			match--
		}
		end := matchLen(src, pos+minMatch, match+minMatch)
		di = emit(dst, di, src, anchor, pos, pos-match, end-pos-minMatch)
		pos, anchor = end, end
		if pos >= matchStartEnd {
			break
		}
		table[hash(load64(src, pos-2))] = uint16(pos - 2)
	}
last:
	if di > MaxOut {
		return nil
	}
	di = emitLast(dst, di, src, anchor)
	if di > MaxOut {
		return nil
	}
	return c.out[:di]
}

func hash(w uint64) uint32 { return uint32((w * hashMul) >> hashShift) }

// matchLen returns the first position from p on, at most matchEnd, that
// differs from the bytes from q on, where q < p.
func matchLen(src unsafe.Pointer, p, q uintptr) uintptr {
	for p+8 <= matchEnd {
		if x := load64(src, p) ^ load64(src, q); x != 0 {
			return p + uintptr(bits.TrailingZeros64(x)>>3)
		}
		p += 8
		q += 8
	}
	for p < matchEnd && load8(src, p) == load8(src, q) {
		p++
		q++
	}
	return p
}

// emit writes one sequence: the literals [anchor, si) and a match of more
// bytes beyond the minimum. It returns the new length of the output.
func emit(dst unsafe.Pointer, di uintptr, src unsafe.Pointer, anchor, si, offset, more uintptr) uintptr {
	lit := si - anchor
	token := di
	di++
	tok := uintptr(0)
	if lit < 15 {
		tok = lit << 4
		// si is at most matchStartEnd, so that 16 bytes from anchor may
		// lie beyond the page by a few bytes only when lit is small.
		if anchor <= mem.PageSize-16 {
			store64(dst, di, load64(src, anchor))
			store64(dst, di+8, load64(src, anchor+8))
		} else {
			copyBytes(dst, di, src, anchor, lit)
		}
	} else {
		tok = 15 << 4
		di = emitLen(dst, di, lit-15)
		if lit <= 64 && anchor <= mem.PageSize-64 {
			// Cheaper than a call, which most runs are too short for.
			for i := uintptr(0); i < lit; i += 16 {
				store64(dst, di+i, load64(src, anchor+i))
				store64(dst, di+i+8, load64(src, anchor+i+8))
			}
		} else {
			copyBytes(dst, di, src, anchor, lit)
		}
	}
	di += lit
	store8(dst, di, byte(offset))
	store8(dst, di+1, byte(offset>>8))
	di += 2
	if more < 15 {
		tok |= more
	} else {
		tok |= 15
		di = emitLen(dst, di, more-15)
	}
	store8(dst, token, byte(tok))
	return di
}

// emitLast writes the literals from anchor to the end of the page.
func emitLast(dst unsafe.Pointer, di uintptr, src unsafe.Pointer, anchor uintptr) uintptr {
	lit := uintptr(mem.PageSize) - anchor
	if lit < 15 {
		store8(dst, di, byte(lit<<4))
		di++
	} else {
		store8(dst, di, 15<<4)
		di = emitLen(dst, di+1, lit-15)
	}
	copyBytes(dst, di, src, anchor, lit)
	return di + lit
}

// emitLen writes the part of a length that its token does not hold.
func emitLen(dst unsafe.Pointer, di, n uintptr) uintptr {
	for ; n >= 255; n -= 255 {
		store8(dst, di, 255)
		di++
	}
	store8(dst, di, byte(n))
	return di + 1
}

// The helpers below trade the bounds check for the caller's promise. The
// format is little-endian; so is every architecture that we serve pages on,
// and the words are only compared and hashed, except for the count of equal
// bytes, which load64 makes right by being little-endian everywhere.

func load8(p unsafe.Pointer, i uintptr) byte { return *(*byte)(unsafe.Add(p, i)) }

func store8(p unsafe.Pointer, i uintptr, v byte) { *(*byte)(unsafe.Add(p, i)) = v }

func copyBytes(dst unsafe.Pointer, di uintptr, src unsafe.Pointer, si, n uintptr) {
	copy(unsafe.Slice((*byte)(unsafe.Add(dst, di)), n), unsafe.Slice((*byte)(unsafe.Add(src, si)), n))
}
