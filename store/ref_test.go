// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"io"
	"reflect"
	"testing"

	"github.com/faultline-go/faultline/mem"
)

func TestRefIsSmall(t *testing.T) {
	if n := reflect.TypeFor[Ref]().Size(); n != 16 {
		t.Errorf("a Ref takes %d bytes, want 16", n)
	}
}

func goodRefs() []Ref {
	return []Ref{
		MakeRef(KindZero, 0, 0, 0),
		MakeRef(KindWord, 0x0123456789abcdef, 0, 0xdeadbeef),
		MakeRef(KindRaw, 1<<40, mem.PageSize, 1),
		MakeRef(KindLZ4, 0, 1, 0xffffffff),
		MakeRef(KindZstd, 64, mem.PageSize-1, 7),
	}
}

// H20: a Ref with one bit flipped is known to be damaged.
func TestFlippedRefIsInvalid(t *testing.T) {
	for _, r := range goodRefs() {
		if !r.Valid() || r.IsZero() {
			t.Errorf("%v is not valid", r)
		}
		for bit := range 128 {
			bad := r
			switch {
			case bit < 64:
				bad.loc ^= 1 << bit
			case bit < 96:
				bad.sum ^= 1 << (bit - 64)
			case bit < 112:
				bad.n ^= 1 << (bit - 96)
			case bit < 120:
				bad.kind ^= 1 << (bit - 112)
			default:
				bad.fold ^= 1 << (bit - 120)
			}
			if bad.Valid() {
				t.Errorf("%v is valid with bit %d flipped", r, bit)
			}
		}
	}
}

func TestImplausibleRefIsInvalid(t *testing.T) {
	for _, r := range []Ref{
		{},
		MakeRef(KindNone, 1, 1, 1),
		MakeRef(KindZero, 1, 0, 0),
		MakeRef(KindZero, 0, 1, 0),
		MakeRef(KindWord, 1, 8, 0),
		MakeRef(KindRaw, 0, mem.PageSize-1, 0),
		MakeRef(KindLZ4, 0, 0, 0),
		MakeRef(KindLZ4, 0, mem.PageSize, 0),
		MakeRef(KindZstd, 0, mem.PageSize+1, 0),
		MakeRef(kindEnd, 0, 10, 0),
		MakeRef(255, 0, 10, 0),
	} {
		if r.Valid() {
			t.Errorf("%v (kind %v, length %d) is valid", r, r.Kind(), r.Len())
		}
	}
}

func TestInline(t *testing.T) {
	for _, r := range goodRefs() {
		if got, want := r.Inline(), r.kind == KindZero || r.kind == KindWord; got != want {
			t.Errorf("%v: Inline() = %v", r, got)
		}
		if got, want := r.IsZeroPage(), r.kind == KindZero; got != want {
			t.Errorf("%v: IsZeroPage() = %v", r, got)
		}
	}
	if !(Ref{}).IsZero() || (Ref{}).IsZeroPage() {
		t.Error("the zero Ref is no page, not a page of zeros")
	}
}

func TestCodecNames(t *testing.T) {
	for c := LZ4; c <= None; c++ {
		if got, err := ParseCodec(c.String()); got != c || err != nil {
			t.Errorf("ParseCodec(%q) = %v, %v", c, got, err)
		}
	}
	for _, s := range []string{"", "LZ4", "gzip", "codec(0)"} {
		if c, err := ParseCodec(s); err == nil {
			t.Errorf("ParseCodec(%q) = %v", s, c)
		}
	}
}

func TestErrorText(t *testing.T) {
	for _, tc := range []struct {
		err  Error
		want string
	}{
		{Error{Store: "mem", Op: "put", Off: -1, Err: ErrFull}, "store mem: put: store is full"},
		{Error{Store: "file x", Op: "write", Off: 4096, Err: io.ErrShortWrite}, "store file x: write at offset 0x1000: short write"},
		{
			Error{Store: "mem", Op: "get", Ref: MakeRef(KindLZ4, 64, 9, 10), Off: 64, Err: ErrCorrupt},
			"store mem: get lz4 blob [0x40+0x9] sum 0000000a: page is corrupt",
		},
	} {
		if got := tc.err.Error(); got != tc.want {
			t.Errorf("got  %q\nwant %q", got, tc.want)
		}
		if !errors.Is(&tc.err, tc.err.Err) {
			t.Errorf("%v does not unwrap", &tc.err)
		}
	}
}
