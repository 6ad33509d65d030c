// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package sysargs

import (
	"bytes"
	"encoding/binary"

	"github.com/faultline-go/faultline/mem"
)

// Bounds of one call, whatever a program passes.
const (
	maxRanges  = 1 << 16
	maxReads   = 1 << 18 // strings and structs that are looked at
	maxStrings = 6 << 20 // bytes of strings: the most that execve(2) takes
	pathMax    = 4096
	iovMax     = 1024 // readv(2), sendmmsg(2)
	nfdMax     = 1 << 20
)

// userTop is above all addresses of user memory, with five levels of tables.
const userTop = 1 << 56

// param is one argument that is a pointer.
type param struct {
	arg   uint8
	len   uint8 // one more than the argument that counts elements, 0 if none
	kind  kind
	write bool
	size  uint32 // of an element
	max   uint32 // most bytes, 0 for MaxBytes
}

type kind uint8

const (
	buffer  kind = iota // size bytes, or as many elements as another argument says
	buffer4             // the same, and that argument is an int
	text                // a string that a zero byte ends
	pointer             // it depends, and call.more knows on what
)

func in(arg uint8, size uint32) param  { return param{arg: arg, size: size} }
func out(arg uint8, size uint32) param { return param{arg: arg, size: size, write: true} }

// inN and outN are arrays whose length is a size_t.
func inN(arg, n uint8, size uint32) param { return param{arg: arg, len: n + 1, size: size} }
func outN(arg, n uint8, size uint32) param {
	return param{arg: arg, len: n + 1, size: size, write: true}
}

// inI and outI are arrays whose length is an int.
func inI(arg, n uint8, size uint32) param {
	return param{arg: arg, len: n + 1, kind: buffer4, size: size}
}
func outI(arg, n uint8, size uint32) param {
	return param{arg: arg, len: n + 1, kind: buffer4, size: size, write: true}
}

func path(arg uint8) param          { return str(arg, pathMax) }
func str(arg uint8, n uint32) param { return param{arg: arg, kind: text, size: 1, max: n} }

// maybe is a pointer, used up to size bytes, that call.more decides on.
func maybe(arg uint8, size uint32) param { return param{arg: arg, kind: pointer, size: size} }

// array is maybe with a length in another argument.
func array(arg, n uint8, size uint32) param {
	return param{arg: arg, len: n + 1, kind: pointer, size: size}
}

func (p param) most(n uint32) param {
	p.max = n
	return p
}

func of(params ...param) call { return call{params: params} }

// walk is one run of Ranges.
type walk struct {
	args  [6]uintptr
	read  func(addr mem.Addr, dst []byte) int
	dst   []Range
	base  int // dst[base:] is ours
	reads int // how many are left
	chars int // of strings, how many are left

	// What is read. One for each level that is looked at: the elements of an
	// array are in use while what they point to is read.
	outer [512]byte
	mid   [64]byte
	inner [pathMax]byte
}

func (w *walk) begin(dst []Range, args [6]uintptr, read func(mem.Addr, []byte) int) {
	w.args, w.read, w.dst, w.base = args, read, dst, len(dst)
	w.reads, w.chars = maxReads, maxStrings
}

// end gives w back, without what belongs to the caller.
func (w *walk) end() []Range {
	dst := w.dst
	w.dst, w.read = nil, nil
	walks.Put(w)
	return dst
}

func (w *walk) param(p *param) {
	n := uint64(p.size)
	if p.len > 0 {
		count := uint64(w.args[p.len-1])
		if p.kind == buffer4 {
			count = uint64(max(int32(count), 0))
		}
		// The size is at most some kilobytes, so this is cut but never wraps.
		n *= min(count, MaxBytes)
	}
	if p.max > 0 {
		n = min(n, uint64(p.max))
	}
	switch p.kind {
	case buffer, buffer4:
		w.add(uint64(w.args[p.arg]), n, p.write)
	case text:
		w.text(uint64(w.args[p.arg]), int(p.max))
	}
}

func (w *walk) in(at, n uint64)  { w.add(at, n, false) }
func (w *walk) out(at, n uint64) { w.add(at, n, true) }

// add adds n bytes from at on, cut where user memory ends.
func (w *walk) add(at, n uint64, write bool) {
	at = untag(at)
	if at == 0 || n == 0 || at >= userTop {
		return
	}
	n = min(n, MaxBytes, userTop-at)
	r := Range{mem.MakeRange(mem.Addr(at), n), write}
	if last := len(w.dst) - 1; last >= w.base {
		l := &w.dst[last]
		if l.Write == write && l.End == r.Start && l.Len()+n <= MaxBytes {
			l.End = r.End
			return
		}
		if *l == r {
			return
		}
	}
	if len(w.dst)-w.base < maxRanges {
		w.dst = append(w.dst, r)
	}
}

// load reads into buf and returns what it got. It does not add a range.
func (w *walk) load(at uint64, buf []byte) []byte {
	at = untag(at)
	if at == 0 || at >= userTop-uint64(len(buf)) || w.reads == 0 || len(w.dst)-w.base >= maxRanges {
		return nil
	}
	w.reads--
	n := w.read(mem.Addr(at), buf)
	return buf[:max(0, min(n, len(buf)))]
}

// whole reads a struct of n bytes into the middle buffer, and reports whether
// all of it is there.
func (w *walk) whole(at uint64, n int) ([]byte, bool) {
	b := w.load(at, w.mid[:n])
	return b, len(b) == n
}

// u32 reads a number.
func (w *walk) u32(at uint64) (uint32, bool) {
	b, ok := w.whole(at, 4)
	if !ok {
		return 0, false
	}
	return binary.LittleEndian.Uint32(b), true
}

// text adds a string with its zero byte, and returns its length with it, or
// less if it is longer than limit or cannot be read.
func (w *walk) text(at uint64, limit int) int {
	limit = min(limit, w.chars)
	n := 0
	for n < limit {
		a := untag(at) + uint64(n)
		want := min(limit-n, mem.PageSize-int(a%mem.PageSize))
		b := w.load(a, w.inner[:want])
		if end := bytes.IndexByte(b, 0); end >= 0 {
			n += end + 1
			break
		}
		n += len(b)
		if len(b) < want {
			// The kernel looks at this byte next.
			n++
			break
		}
	}
	w.chars -= min(n, w.chars)
	w.in(at, uint64(n))
	return n
}

// each calls do with the elements of size bytes of an array, up to count. It
// ends where one cannot be read, or when do returns false. The array itself
// is not added.
func (w *walk) each(at, count uint64, size int, buf []byte, do func(*walk, []byte) bool) {
	per := uint64(len(buf) / size)
	for count > 0 {
		n := int(min(count, per)) * size
		b := w.load(at, buf[:n])
		for i := 0; i+size <= len(b); i += size {
			if !do(w, b[i:i+size]) {
				return
			}
		}
		if len(b) < n {
			return
		}
		at += uint64(n)
		count -= uint64(n / size)
	}
}

func u64(b []byte, off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
func u32(b []byte, off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }

// untag drops what a pointer may carry above its address.
func untag(a uint64) uint64 { return a &^ tagMask }
