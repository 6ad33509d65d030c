// SPDX-License-Identifier: Apache-2.0

package uapi_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/faultline-go/faultline/mem"
	. "github.com/faultline-go/faultline/uffd/uapi"
)

// wire builds a message from spec B.1 by offsets, without the package.
func wire(kind byte, words ...uint64) []byte {
	b := make([]byte, 32)
	b[0] = kind
	for i, w := range words {
		binary.LittleEndian.PutUint64(b[8+8*i:], w)
	}
	return b
}

var eventCases = []struct {
	name  string
	wire  []byte
	event Event
	text  string
}{
	{"missing read", wire(0x12, 0, 0x7f00_0000_1000, 0), PageFault{Addr: 0x7f00_0000_1000},
		"PAGEFAULT 0x7f0000001000 flags 0 tid 0"},
	{"wp with tid", wire(0x12, 3, 0x2000, 4242), PageFault{0x2000, UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP, 4242},
		"PAGEFAULT 0x2000 flags WRITE|WP tid 4242"},
	{"unknown flag", wire(0x12, 1<<50, 0x2000, 0xffffffff), PageFault{0x2000, 1 << 50, 0xffffffff},
		"PAGEFAULT 0x2000 flags 0x4000000000000 tid 4294967295"},
	{"fork", wire(0x13, 17), Fork{17}, "FORK fd 17"},
	{"remap", wire(0x14, 0x1000, 0x9000, 0x3000), Remap{0x1000, 0x9000, 0x3000}, "REMAP 0x1000 to 0x9000 len 0x3000"},
	{"remove", wire(0x15, 0x1000, 0x4000), Remove{mem.Range{Start: 0x1000, End: 0x4000}}, "REMOVE [0x1000+0x3000]"},
	{"unmap", wire(0x16, 0x1000, 0x4000), Unmap{mem.Range{Start: 0x1000, End: 0x4000}}, "UNMAP [0x1000+0x3000]"},
	{"future", wire(0x17, 1, 2, 3), Unknown{Msg{Event: 0x17, Word: [3]uint64{1, 2, 3}}},
		"event 0x17 reserved 00000000000000 words [0x1 0x2 0x3]"},
	{"zero", wire(0), Unknown{}, "event 0x0 reserved 00000000000000 words [0x0 0x0 0x0]"},
}

func TestEvents(t *testing.T) {
	var all []byte
	var want []Event
	for _, tc := range eventCases {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Decode(tc.wire)
			if err != nil || got != tc.event {
				t.Fatalf("Decode = %v, %v, want %v", got, err, tc.event)
			}
			if got.String() != tc.text {
				t.Errorf("prints as %q, want %q", got, tc.text)
			}
			prefix := []byte("before")
			if b := tc.event.AppendTo(prefix); !bytes.Equal(b, append(prefix, tc.wire...)) {
				t.Errorf("AppendTo = %x, want %x", b[len(prefix):], tc.wire)
			}
		})
		all = append(all, tc.wire...)
		want = append(want, tc.event)
	}
	got, err := DecodeAll(all)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("DecodeAll: %v, difference: %s", err, diff)
	}
	// H10: the read buffer is used again while its events still are.
	clear(all)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events changed with the buffer: %s", diff)
	}
}

func TestDecodeSizes(t *testing.T) {
	fork := wire(0x13, 5)
	for n := range 100 {
		b := bytes.Repeat(fork, 4)[:n]
		ev, err := Decode(b)
		if _, ok := errors.AsType[*SizeError](err); (n == MsgSize) != (err == nil) || ok != (err != nil) || (ev == nil) != (err != nil) {
			t.Errorf("Decode of %d bytes = %v, %v", n, ev, err)
		}
		events, err := DecodeAll(b)
		if _, ok := errors.AsType[*SizeError](err); (n%MsgSize == 0) != (err == nil) || ok != (err != nil) {
			t.Errorf("DecodeAll of %d bytes: error %v", n, err)
		}
		if len(events) != n/MsgSize {
			t.Errorf("DecodeAll of %d bytes = %d events", n, len(events))
		}
	}
}

// TestAccessors checks the union members against raw words, and that the hot
// path allocates nothing.
func TestAccessors(t *testing.T) {
	m, err := ParseMsg(wire(0x12, 7, 0x5000, 0xdead_0000_0001))
	if err != nil {
		t.Fatal(err)
	}
	if addr, flags, tid := m.Fault(); addr != 0x5000 || flags != 7 || tid != 1 {
		t.Errorf("Fault = %v %v %v: ptid is 32 bits", addr, flags, tid)
	}
	m, _ = ParseMsg(wire(0x13, 0xffff_ffff_0000_0009))
	if fd := m.ForkFD(); fd != 9 {
		t.Errorf("ForkFD = %d: ufd is 32 bits", fd)
	}
	var sum uint64
	allocs := testing.AllocsPerRun(100, func() {
		addr, flags, tid := m.Fault()
		from, to, n := m.Remap()
		r := m.Range()
		sum += uint64(addr) + uint64(flags) + uint64(tid) + uint64(from+to) + n + r.Len() + uint64(m.ForkFD())
	})
	if allocs != 0 {
		t.Errorf("accessors allocate %v times (sum %d)", allocs, sum)
	}
}

func addSeeds(f *testing.F) {
	var all []byte
	for _, tc := range eventCases {
		f.Add(tc.wire)
		all = append(all, tc.wire...)
	}
	f.Add(all)
	f.Add(all[:len(all)-1])
	f.Add([]byte{})
	f.Add([]byte{0x12})
	f.Add(bytes.Repeat([]byte{0xff}, 33))
	f.Add(append([]byte{0x99, 1, 2, 3, 4, 5, 6, 7}, bytes.Repeat([]byte{0xaa}, 24)...))
}

// FuzzDecodeAll checks on any bytes that decoding loses nothing but what the
// kind of a message leaves unused: encode and decode again is the identity,
// and an unknown message keeps every byte.
func FuzzDecodeAll(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		events, err := DecodeAll(b)
		if (len(b)%MsgSize == 0) != (err == nil) || len(events) != len(b)/MsgSize {
			t.Fatalf("%d bytes: %d events, error %v", len(b), len(events), err)
		}
		var encoded []byte
		for i, ev := range events {
			if ev.String() == "" {
				t.Errorf("event %d prints as nothing", i)
			}
			encoded = ev.AppendTo(encoded)
			at := i * MsgSize
			if _, ok := ev.(Unknown); ok && !bytes.Equal(encoded[at:], b[at:at+MsgSize]) {
				t.Errorf("unknown event %x became %x", b[at:at+MsgSize], encoded[at:])
			}
			if encoded[at] != b[at] {
				t.Errorf("kind %#x became %#x", b[at], encoded[at])
			}
		}
		again, err := DecodeAll(encoded)
		if err != nil {
			t.Fatalf("own encoding: %v", err)
		}
		if diff := cmp.Diff(events, again); diff != "" {
			t.Errorf("second decode differs: %s", diff)
		}
		if !bytes.Equal(b, before) {
			t.Error("decoding changed its input")
		}
	})
}

// FuzzPageFault and FuzzRanges start from values instead of bytes.
func FuzzPageFault(f *testing.F) {
	f.Add(uint64(0x1000), uint64(3), uint32(7))
	f.Add(^uint64(0), ^uint64(0), ^uint32(0))
	f.Fuzz(func(t *testing.T, addr, flags uint64, tid uint32) {
		roundTrip(t, PageFault{mem.Addr(addr), FaultFlags(flags), tid})
		roundTrip(t, Fork{int32(tid)})
	})
}

func FuzzRanges(f *testing.F) {
	f.Add(uint64(0x1000), uint64(0x2000), uint64(0x1000))
	f.Add(^uint64(0), uint64(0), ^uint64(0))
	f.Fuzz(func(t *testing.T, a, b, n uint64) {
		roundTrip(t, Remap{mem.Addr(a), mem.Addr(b), n})
		roundTrip(t, Remove{mem.Range{Start: mem.Addr(a), End: mem.Addr(b)}})
		roundTrip(t, Unmap{mem.Range{Start: mem.Addr(a), End: mem.Addr(b)}})
	})
}

func roundTrip(t *testing.T, ev Event) {
	t.Helper()
	got, err := Decode(ev.AppendTo(nil))
	if err != nil || got != ev {
		t.Errorf("%v came back as %v, %v", ev, got, err)
	}
}
