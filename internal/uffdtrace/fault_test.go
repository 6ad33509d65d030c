// SPDX-License-Identifier: Apache-2.0

package uffdtrace

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// TestEffect holds what each call does to who waits to what the kernel does
// (B.8 to B.10).
func TestEffect(t *testing.T) {
	at := func(start mem.Addr, n uint64) mem.Range { return mem.MakeRange(start, n) }
	for _, tc := range []struct {
		name    string
		request uint32
		before  []byte
		after   []byte
		errno   Errno
		want    effect
	}{
		{"copy", uapi.UFFDIO_COPY, words(0x1000, 0, 0x3000, 0, 0), words(0, 0, 0, 0, 0x3000), 0,
			effect{filled: 0x3000, woken: at(0x1000, 0x3000)}},
		{"copy, the answer cannot be read", uapi.UFFDIO_COPY, words(0x1000, 0, 0x3000, 0, 0), nil, 0,
			effect{filled: 0x3000, woken: at(0x1000, 0x3000)}},
		{"copy, stopped half way (C.13)", uapi.UFFDIO_COPY, words(0x1000, 0, 0x3000, 0, 0x1000), words(0, 0, 0, 0, 0x1000), eagain,
			effect{filled: 0x1000, woken: at(0x1000, 0x1000)}},
		{"copy, not begun", uapi.UFFDIO_COPY, words(0x1000, 0, 0x3000, 0, 0), words(0, 0, 0, 0, neg(eagain)), eagain,
			effect{woken: at(0x1000, 0)}},
		{"copy, stopped, the answer cannot be read", uapi.UFFDIO_COPY, words(0x1000, 0, 0x3000, 0, 0), nil, eagain,
			effect{woken: at(0x1000, 0)}},
		{"copy that claims too much", uapi.UFFDIO_COPY, words(0x1000, 0, 0x1000, 0, 0), words(0, 0, 0, 0, 0x9000), 0,
			effect{filled: 0x1000, woken: at(0x1000, 0x1000)}},
		{"copy that does not wake", uapi.UFFDIO_COPY, words(0x1000, 0, 0x1000, 1, 0), words(0, 0, 0, 0, 0x1000), 0,
			effect{filled: 0x1000}},
		{"copy of what is there (H3)", uapi.UFFDIO_COPY, words(0x1000, 0, 0x1000, 0, 0), words(0, 0, 0, 0, neg(17)), 17,
			effect{woken: at(0x1000, 0)}},
		{"zeropage", uapi.UFFDIO_ZEROPAGE, words(0x1000, 0x1000, 0, 0), words(0, 0, 0, 0x1000), 0,
			effect{filled: 0x1000, woken: at(0x1000, 0x1000)}},
		{"move", uapi.UFFDIO_MOVE, words(0x1000, 0x9000, 0x1000, 2, 0), words(0, 0, 0, 0, 0x1000), 0,
			effect{filled: 0x1000, woken: at(0x1000, 0x1000)}},
		{"continue", uapi.UFFDIO_CONTINUE, words(0x1000, 0x1000, 2, 0), words(0, 0, 0, 0x1000), 0,
			effect{filled: 0x1000, woken: at(0x1000, 0x1000)}},
		{"poison", uapi.UFFDIO_POISON, words(0x1000, 0x1000, 0, 0), words(0, 0, 0, 0x1000), 0,
			effect{filled: 0x1000, woken: at(0x1000, 0x1000)}},
		{"wake", uapi.UFFDIO_WAKE, words(0x1000, 0x2000), words(0x1000, 0x2000), 0, effect{woken: at(0x1000, 0x2000)}},
		{"wake of a bad range", uapi.UFFDIO_WAKE, words(0x1001, 0x2000), words(0x1001, 0x2000), 22, effect{}},
		{"unregister", uapi.UFFDIO_UNREGISTER, words(0x1000, 0x2000), words(0x1000, 0x2000), 0,
			effect{woken: at(0x1000, 0x2000), missing: true}},
		{"unprotect", uapi.UFFDIO_WRITEPROTECT, words(0x1000, 0x1000, 0), nil, 0, effect{woken: at(0x1000, 0x1000)}},
		{"unprotect that does not wake", uapi.UFFDIO_WRITEPROTECT, words(0x1000, 0x1000, 2), nil, 0, effect{}},
		{"protect", uapi.UFFDIO_WRITEPROTECT, words(0x1000, 0x1000, 1), nil, 0, effect{}},
		{"register", uapi.UFFDIO_REGISTER, words(0x1000, 0x1000, 1, 0), nil, 0, effect{}},
		{"argument that cannot be read", uapi.UFFDIO_WAKE, nil, nil, 0, effect{}},
		{"another request", 0x541b, words(0x1000, 0x1000, 0, 0, 0), nil, 0, effect{}},
	} {
		c := Call{Name: "ioctl", Args: [6]uint64{3, uint64(tc.request)}, Before: tc.before, After: tc.after, Errno: tc.errno}
		if got := c.effect(); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
		c.Ended = true
		if got := c.effect(); got != (effect{}) {
			t.Errorf("%s, ended: %+v, want nothing", tc.name, got)
		}
	}
}

// TestWaiting: whom a wake finds goes by the address of the message, which is
// that of a huge page, or of the access itself (B.9).
func TestWaiting(t *testing.T) {
	var w waiting
	for i, addr := range []mem.Addr{0x1000, 0x1008, 0x2000, 0x40000, 0x200000} {
		if !w.add(fault{waiter: waiter{addr, 0}, kind: kind(i % 2), read: time.Duration(i), seq: uint64(i)}) {
			t.Fatalf("%v is there already", addr)
		}
	}
	if w.add(fault{waiter: waiter{0x1008, 0}}) {
		t.Error("the same waiter twice")
	}
	end := func(r mem.Range, missing bool) (addrs []mem.Addr) {
		for _, f := range w.end(&effect{woken: r, missing: missing}, 10) {
			if want := 10 - f.read; f.after != want {
				t.Errorf("%v after %v, want %v", f.addr, f.after, want)
			}
			addrs = append(addrs, f.addr)
		}
		return addrs
	}
	for _, tc := range []struct {
		r       mem.Range
		missing bool
		want    []mem.Addr
	}{
		{mem.MakeRange(0x200000+mem.PageSize, mem.PageSize), false, nil},
		{mem.Range{}, false, nil},
		{mem.Range{Start: 0x9000, End: 0x1000}, false, nil},
		{mem.MakeRange(0x1000, mem.PageSize), true, []mem.Addr{0x1000}}, // the other one is minor
		{mem.MakeRange(0x1000, mem.PageSize), false, []mem.Addr{0x1008}},
		{mem.Range{Start: 0, End: math.MaxUint64}, false, []mem.Addr{0x2000, 0x40000, 0x200000}},
	} {
		if got := end(tc.r, tc.missing); !slices.Equal(got, tc.want) {
			t.Errorf("wake of %v: %v, want %v", tc.r, got, tc.want)
		}
	}
	if w.n != 0 || len(w.pages) != 0 {
		t.Errorf("%d faults on %d pages are left", w.n, len(w.pages))
	}
}

// TestFaultsAddUp plays reads and wakes at random. Every fault that is read is
// either another message of one, or woken, or neither; and no two faults of one
// waiter wait.
func TestFaultsAddUp(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		tr := New(io.Discard, false)
		var now time.Duration
		waits := map[File]map[waiter]bool{1: {}, 2: {}}
		page := rapid.Custom(func(rt *rapid.T) mem.Addr { return mem.Addr(rapid.IntRange(1, 6).Draw(rt, "page")) << mem.PageShift })
		again, woken := 0, 0
		rt.Repeat(map[string]func(*rapid.T){
			"read": func(rt *rapid.T) {
				now++
				c := Call{Name: "read", Start: now, End: now, File: File(rapid.IntRange(1, 2).Draw(rt, "file"))}
				for range rapid.IntRange(1, 4).Draw(rt, "messages") {
					w := waiter{page.Draw(rt, "at"), uint32(rapid.IntRange(0, 2).Draw(rt, "tid"))}
					m := uapi.PageFault{Addr: w.addr, TID: w.tid}.Msg()
					c.Messages = append(c.Messages, m)
					if waits[c.File][w] {
						again++
					}
					waits[c.File][w] = true
				}
				tr.Call(&c)
			},
			"wake": func(rt *rapid.T) {
				now++
				at, n := page.Draw(rt, "at"), uint64(rapid.IntRange(1, 3).Draw(rt, "pages"))<<mem.PageShift
				c := Call{Name: "ioctl", Args: [6]uint64{3, uapi.UFFDIO_WAKE}, Start: now, End: now,
					File: File(rapid.IntRange(1, 2).Draw(rt, "file")), Before: words(uint64(at), n)}
				for w := range waits[c.File] {
					if mem.MakeRange(at, n).Contains(w.addr) {
						woken++
						delete(waits[c.File], w)
					}
				}
				tr.Call(&c)
			},
		})
		f := &tr.stat.faults[missing]
		never := len(waits[1]) + len(waits[2])
		if f.again != int64(again) || f.woken != int64(woken) || f.read-f.again-f.woken != int64(never) || f.latency.Read().Count != f.woken {
			rt.Errorf("%d read, %d again, %d woken; want %d again, %d woken, %d never", f.read, f.again, f.woken, again, woken, never)
		}
		if n := tr.file(1).n + tr.file(2).n; n != never {
			rt.Errorf("%d wait, want %d", n, never)
		}
	})
}

// TestClosed: who waits when the last descriptor is closed is woken by no call,
// and a new file with the same faults is another one.
func TestClosed(t *testing.T) {
	tr := New(io.Discard, false)
	m := uapi.PageFault{Addr: 0x1000}.Msg()
	read := Call{Name: "read", File: 1, Messages: []uapi.Msg{m}}
	wake := Call{Name: "ioctl", Args: [6]uint64{3, uapi.UFFDIO_WAKE}, File: 1, Before: words(0x1000, 0x1000)}
	tr.Call(&read)
	tr.Descriptor(&Descriptor{File: 1, Closed: true}) // a duplicate is left
	tr.Call(&read)
	tr.Descriptor(&Descriptor{File: 1, Closed: true, Last: true})
	tr.Call(&wake)
	read.File = 2
	tr.Call(&read)
	if f := &tr.stat.faults[missing]; f.read != 3 || f.again != 1 || f.woken != 0 || tr.stat.files != 2 {
		t.Errorf("%d read, %d again, %d woken of %d files", f.read, f.again, f.woken, tr.stat.files)
	}
}

// FuzzCall feeds the decoder of arguments: whatever a program passes, the line
// is one line, the object is one, and nothing is claimed of more bytes than it
// asked for.
func FuzzCall(f *testing.F) {
	for request := range layouts {
		f.Add("ioctl", uint64(request), words(1, 2, 3, 4, 5), words(5, 4, 3, 2, 1), uint16(0))
		f.Add("ioctl", uint64(request), words(1, 2, 3, 4), []byte{1, 2, 3}, uint16(eagain))
	}
	f.Add("read", uint64(0), bytes.Repeat([]byte{0x12}, 64), []byte{}, uint16(512))
	f.Add("recvmmsg", ^uint64(0), []byte{0x13}, []byte{0xff}, uint16(4095))
	f.Add("", uint64(1), []byte{}, []byte{}, uint16(1))
	f.Fuzz(func(t *testing.T, name string, arg uint64, before, after []byte, errno uint16) {
		if strings.ContainsFunc(name, func(r rune) bool { return r < ' ' }) {
			t.Skip("no name of a system call")
		}
		c := Call{Name: name, Args: [6]uint64{arg >> 32, arg, arg, arg, arg, arg}, File: 1,
			Before: before, After: after, Errno: Errno(errno)}
		for b := before; len(b) >= uapi.MsgSize; b = b[uapi.MsgSize:] {
			m, err := uapi.ParseMsg(b[:uapi.MsgSize])
			if err != nil {
				t.Fatal(err)
			}
			c.Messages = append(c.Messages, m)
		}
		for _, asJSON := range []bool{false, true} {
			var b bytes.Buffer
			tr := New(&b, asJSON)
			tr.Call(&c)
			if b.Len() < 2 || bytes.Count(b.Bytes(), []byte("\n")) != 1 || b.Bytes()[b.Len()-1] != '\n' {
				t.Errorf("not one line: %q", &b)
			}
			if err := tr.Finish(0); err != nil {
				t.Error(err)
			}
		}
		if e := c.effect(); e.filled > 0 || !e.woken.Empty() {
			a, ok := c.argument()
			if n := a.word("len"); !ok || e.filled > n || e.woken.Len() > n {
				t.Errorf("%+v of %d bytes", e, n)
			}
		}
		if a, ok := decode(uint32(arg), before, after); ok {
			if len(a.given)+len(a.told) < ArgumentSize(uint32(arg))/8 && len(after) >= ArgumentSize(uint32(arg)) {
				t.Errorf("words are missing in %+v", a)
			}
			for i, f := range a.given {
				if v := binary.LittleEndian.Uint64(before[8*i:]); f.value != v {
					t.Errorf("%s is %#x, want %#x", f.name, f.value, v)
				}
			}
		}
	})
}
