// SPDX-License-Identifier: Apache-2.0

package uffdtrace

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// MaxArgument is the size of the largest argument of an ioctl in bytes.
const MaxArgument = 40

// form is how a word is written.
type form uint8

const (
	asSize form = iota // in decimal
	asHex
	asResult // a count, or a negated errno
	asFeatures
	asIoctls
	asRegister
	asCopy
	asZeropage
	asMove
	asProtect
	asContinue
	asPoison
)

// word describes one of the 64-bit words of which all arguments consist.
type word struct {
	name  string
	form  form
	given bool // the kernel reads it
	told  bool // the kernel writes it
}

func given(name string, f form) word { return word{name, f, true, false} }
func told(name string, f form) word  { return word{name, f, false, true} }

// layouts has the argument of each request.
var layouts = map[uint32][]word{
	uapi.UFFDIO_API:          {given("api", asHex), {"features", asFeatures, true, true}, told("ioctls", asIoctls)},
	uapi.UFFDIO_REGISTER:     {given("start", asHex), given("len", asSize), given("mode", asRegister), told("ioctls", asIoctls)},
	uapi.UFFDIO_UNREGISTER:   {given("start", asHex), given("len", asSize)},
	uapi.UFFDIO_WAKE:         {given("start", asHex), given("len", asSize)},
	uapi.UFFDIO_COPY:         {given("dst", asHex), given("src", asHex), given("len", asSize), given("mode", asCopy), told("copy", asResult)},
	uapi.UFFDIO_ZEROPAGE:     {given("start", asHex), given("len", asSize), given("mode", asZeropage), told("zeropage", asResult)},
	uapi.UFFDIO_MOVE:         {given("dst", asHex), given("src", asHex), given("len", asSize), given("mode", asMove), told("move", asResult)},
	uapi.UFFDIO_WRITEPROTECT: {given("start", asHex), given("len", asSize), given("mode", asProtect)},
	uapi.UFFDIO_CONTINUE:     {given("start", asHex), given("len", asSize), given("mode", asContinue), told("mapped", asResult)},
	uapi.UFFDIO_POISON:       {given("start", asHex), given("len", asSize), given("mode", asPoison), told("updated", asResult)},
}

// ArgumentSize returns the size in bytes of what an ioctl request points to, 0
// for one that is not of a userfaultfd or has its argument by value.
func ArgumentSize(request uint32) int { return 8 * len(layouts[request]) }

// field is a word of an argument.
type field struct {
	word
	value uint64
}

// String returns the value as it is written.
func (f field) String() string {
	v := f.value
	switch f.form {
	case asHex:
		return fmt.Sprintf("%#x", v)
	case asResult:
		if n := int64(v); n < 0 && n > -4096 {
			return "-" + Errno(-n).String()
		}
		return strconv.FormatInt(int64(v), 10)
	case asFeatures:
		return uapi.Features(v).String()
	case asIoctls:
		return uapi.Ioctls(v).String()
	case asRegister:
		return uapi.RegisterMode(v).String()
	case asCopy:
		return uapi.CopyMode(v).String()
	case asZeropage:
		return uapi.ZeropageMode(v).String()
	case asMove:
		return uapi.MoveMode(v).String()
	case asProtect:
		return uapi.WriteProtectMode(v).String()
	case asContinue:
		return uapi.ContinueMode(v).String()
	case asPoison:
		return uapi.PoisonMode(v).String()
	}
	return strconv.FormatUint(v, 10)
}

// argument is what an ioctl was given and what it was told. The latter is empty
// if it could not be read.
type argument struct {
	given, told []field
	same        []bool // of told: the word was the same before the call
}

// decode takes an argument apart. It returns false if the request is unknown
// or what was given could not be read.
func decode(request uint32, before, after []byte) (a argument, ok bool) {
	words := layouts[request]
	if len(words) == 0 || len(before) < 8*len(words) {
		return a, false
	}
	for i, w := range words {
		v := binary.LittleEndian.Uint64(before[8*i:])
		if w.given {
			a.given = append(a.given, field{w, v})
		}
		if !w.told || len(after) < 8*len(words) {
			continue
		}
		now := binary.LittleEndian.Uint64(after[8*i:])
		a.told, a.same = append(a.told, field{w, now}), append(a.same, now == v)
	}
	return a, true
}

// argument decodes the argument of an ioctl.
func (c *Call) argument() (argument, bool) {
	request, ok := c.request()
	if !ok {
		return argument{}, false
	}
	return decode(request, c.Before, c.After)
}

// answer returns the words of a that the kernel has written. After most errors
// it has written none, and what is as before the call is left out; after EAGAIN
// it has.
func (c *Call) answer(a *argument) (told []field) {
	for i, f := range a.told {
		if !c.Ended && (c.Errno == 0 || !a.same[i] || c.Errno == eagain && f.form == asResult) {
			told = append(told, f)
		}
	}
	return told
}

// word returns a word of what was given, 0 if there is none of the name.
func (a *argument) word(name string) uint64 {
	for _, f := range a.given {
		if f.name == name {
			return f.value
		}
	}
	return 0
}

// done returns the bytes that a fill has done: all that it was asked for if
// the answer could not be read.
func (a *argument) done(errno Errno) uint64 {
	for _, f := range a.told {
		if f.form == asResult {
			return uint64(max(int64(f.value), 0))
		}
	}
	if errno != 0 {
		return 0
	}
	return a.word("len")
}

// effect is what a call has done to memory and to who waits for it.
type effect struct {
	filled uint64    // bytes of pages that were installed
	woken  mem.Range // who waits for it was woken
	// missing is set if only those were woken that wait for a missing page.
	missing bool
}

// effect returns it, of a call that has ended.
func (c *Call) effect() (e effect) {
	request, _ := c.request()
	a, ok := c.argument()
	if !ok || c.Ended {
		return e
	}
	mode := a.word("mode")
	switch request {
	case uapi.UFFDIO_COPY, uapi.UFFDIO_MOVE:
		return fill(&a, "dst", c.Errno)
	case uapi.UFFDIO_ZEROPAGE, uapi.UFFDIO_CONTINUE, uapi.UFFDIO_POISON:
		return fill(&a, "start", c.Errno)
	case uapi.UFFDIO_WRITEPROTECT:
		if mode != 0 {
			return e // it protects, or does not wake
		}
	case uapi.UFFDIO_WAKE:
	case uapi.UFFDIO_UNREGISTER:
		e.missing = true
	default:
		return e
	}
	if c.Errno == 0 {
		e.woken = mem.MakeRange(mem.Addr(a.word("start")), a.word("len"))
	}
	return e
}

// fill returns the effect of an ioctl that installs pages.
func fill(a *argument, at string, errno Errno) (e effect) {
	const dontWake = 1 // of all of them
	// EAGAIN with a positive count means that it has stopped half way, and
	// has woken whom it could.
	if errno == 0 || errno == eagain {
		e.filled = min(a.done(errno), a.word("len"))
	}
	if a.word("mode")&dontWake == 0 {
		e.woken = mem.MakeRange(mem.Addr(a.word(at)), e.filled)
	}
	return e
}
