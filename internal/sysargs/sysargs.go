// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package sysargs

import (
	"sync"

	"github.com/faultline-go/faultline/mem"
)

// Range is memory that a call uses.
type Range struct {
	mem.Range
	// Write says that the kernel writes there. It may read first.
	Write bool
}

// Pointer is an argument of a call that is a pointer into user memory.
type Pointer struct {
	Arg int // which of the six
	// LenArg is the argument that says how many elements there are, -1 if
	// none does. An int or unsigned int counts with its low 32 bits alone.
	LenArg int
	// Size is the bytes of an element, and without a LenArg the most that is
	// used from the pointer on. The kernel never uses more than MaxBytes of
	// one buffer.
	Size uint32
}

// MaxBytes is the most that one call transfers: read(2), NOTES.
const MaxBytes = 0x7ffff000

// maxNr is above all call numbers of both architectures. Numbers are given
// out for all architectures at once, so there is a new one for each call.
const maxNr = 512

// call is what is known of one system call.
type call struct {
	params []param
	// more adds what params cannot say: what depends on other arguments, or
	// lies behind a pointer in memory. It may be nil.
	more     func(*walk)
	indirect bool
}

// with returns c with a function that has pointers in memory to follow.
func (c call) with(more func(*walk)) call {
	c.more, c.indirect = more, true
	return c
}

// also returns c with a function that looks at arguments alone, or at memory
// for lengths alone.
func (c call) also(more func(*walk)) call {
	c.more = more
	return c
}

// calls is the table, immutable once made. It is made on first use: most
// runs of faultline have none.
var calls = sync.OnceValue(func() *[maxNr]call {
	t := new([maxNr]call)
	for _, group := range groups {
		for nr, c := range group() {
			t[nr] = c
		}
	}
	return t
})

// groups are the parts of the table.
var groups = []func() map[uintptr]call{
	fileCalls, dataCalls, socketCalls, waitCalls, timeCalls, processCalls, signalCalls, archCalls,
}

func lookup(nr uintptr) *call {
	if nr >= maxNr {
		return &call{}
	}
	return &calls()[nr]
}

// Calls lists, in order, the numbers of all calls that have pointers.
func Calls() (nrs []uintptr) {
	for nr := range calls() {
		if len(lookup(uintptr(nr)).params) > 0 {
			nrs = append(nrs, uintptr(nr))
		}
	}
	return nrs
}

// Pointers returns the arguments of call nr that may be pointers into user
// memory, so that a filter can compare them. Of calls that do many things
// (fcntl, futex, ioctl, prctl) an argument is listed that is a pointer only
// sometimes.
func Pointers(nr uintptr) (ps []Pointer) {
	for _, p := range lookup(nr).params {
		ptr := Pointer{Arg: int(p.arg), LenArg: int(p.len) - 1, Size: p.size}
		if ptr.LenArg < 0 && p.max > p.size {
			ptr.Size = p.max
		}
		ps = append(ps, ptr)
	}
	return ps
}

// Indirect reports whether what call nr uses is not all seen from its
// arguments, because there are pointers in memory: iovec, msghdr, argv. A
// filter cannot tell whether such a call concerns some memory. Requests of
// ioctl, prctl and setsockopt that are the exception do not make these
// indirect; Ranges knows them nevertheless.
func Indirect(nr uintptr) bool { return lookup(nr).indirect }

// Ranges appends to dst the memory that call nr is about to use, and returns
// the whole. Neighbours that are used in the same way may come as one range.
//
// It calls read to copy memory of the program: structs that hold pointers or
// lengths, and strings. read returns how many bytes it got, from the first
// on, and must stop at memory that is not there. Where it falls short, Ranges
// leaves out what it could not learn, but not the range of what it wanted to
// read. So who makes all ranges present and asks again, until nothing is
// missing, has the whole. That converges, as each time something that could
// not be read now can.
//
// No range wraps, none is empty, and none exceeds MaxBytes, whatever args and
// memory are. There are at most 65,536.
func Ranges(dst []Range, nr uintptr, args [6]uintptr, read func(addr mem.Addr, dst []byte) int) []Range {
	c := lookup(nr)
	if len(c.params) == 0 {
		return dst
	}
	w := walks.Get().(*walk)
	w.begin(dst, args, read)
	for i := range c.params {
		w.param(&c.params[i])
	}
	if c.more != nil {
		c.more(w)
	}
	return w.end()
}

// walks keeps the buffers that read fills, which would be on the heap anew
// for each call: what an unknown function is given escapes.
var walks = sync.Pool{New: func() any { return new(walk) }}
