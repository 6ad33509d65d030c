// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync"
	"testing"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/store/internal/storetest"
)

func encoder(t testing.TB, c store.Codec) *Encoder {
	t.Helper()
	e, err := NewEncoder(c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// decode is what a store does with ref and its blob.
func decode(d *Decoder, ref store.Ref, blob, dst []byte) error {
	if err := Check(ref); err != nil {
		return err
	}
	if ref.Inline() {
		return Inline(ref, dst)
	}
	return d.Decode(ref, blob, dst)
}

func TestRoundTrip(t *testing.T) {
	for c := store.LZ4; c <= store.None; c++ {
		e := encoder(t, c)
		var d Decoder
		for _, shape := range storetest.Shapes {
			for n := range uint64(200) {
				page := storetest.Page(shape, n)
				x := e.Encode(page)
				ref := x.Ref(n * 64)
				dst := bytes.Repeat([]byte{0xa5}, mem.PageSize)
				if err := decode(&d, ref, x.Blob, dst); err != nil {
					t.Fatalf("%v, %s page %d, %v: %v", c, shape, n, ref, err)
				}
				if !bytes.Equal(dst, page) {
					t.Fatalf("%v, %s page %d, %v: another page", c, shape, n, ref)
				}
			}
		}
	}
}

func TestKinds(t *testing.T) {
	for _, tc := range []struct {
		codec store.Codec
		shape string
		want  store.Kind
	}{
		{store.LZ4, "zero", store.KindZero},
		{store.LZ4, "word", store.KindWord},
		{store.LZ4, "half", store.KindLZ4},
		{store.LZ4, "raw", store.KindRaw},
		{store.Zstd, "zero", store.KindZero},
		{store.Zstd, "text", store.KindZstd},
		{store.Zstd, "half", store.KindZstd},
		{store.Zstd, "raw", store.KindRaw},
		{store.None, "zero", store.KindZero},
		{store.None, "word", store.KindWord},
		{store.None, "text", store.KindRaw},
	} {
		x := encoder(t, tc.codec).Encode(storetest.Page(tc.shape, 1))
		if x.Kind != tc.want {
			t.Errorf("%v of a %s page: %v, want %v", tc.codec, tc.shape, x.Kind, tc.want)
		}
		if ref := x.Ref(0); ref.Inline() != (len(x.Blob) == 0) {
			t.Errorf("%v has a blob of %d bytes", ref, len(x.Blob))
		}
	}
	if _, err := NewEncoder(200); err == nil {
		t.Error("an unknown codec has an encoder")
	}
}

func TestRepeatedWord(t *testing.T) {
	var p [mem.PageSize]byte
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], 0x1122334455667788)
	}
	if w, ok := RepeatedWord(&p); !ok || w != 0x1122334455667788 {
		t.Errorf("RepeatedWord = %#x, %v", w, ok)
	}
	for bit := range mem.PageSize * 8 {
		p[bit/8] ^= 1 << (bit % 8)
		if w, ok := RepeatedWord(&p); ok {
			t.Fatalf("with bit %d flipped: %#x", bit, w)
		}
		p[bit/8] ^= 1 << (bit % 8)
	}
}

// H20: no single bit of a blob can change the page unseen.
func TestFlippedBlob(t *testing.T) {
	var d Decoder
	for c := store.LZ4; c <= store.None; c++ {
		e := encoder(t, c)
		for _, shape := range []string{"small", "half", "text"} {
			page := storetest.Page(shape, 3)
			x := e.Encode(page)
			ref, blob := x.Ref(0), bytes.Clone(x.Blob)
			dst := make([]byte, mem.PageSize)
			for bit := range len(blob) * 8 {
				blob[bit/8] ^= 1 << (bit % 8)
				err := decode(&d, ref, blob, dst)
				blob[bit/8] ^= 1 << (bit % 8)
				if err == nil && !bytes.Equal(dst, page) {
					t.Fatalf("%v, bit %d: a wrong page", ref, bit)
				}
				if err == nil && ref.Kind() == store.KindRaw {
					t.Fatalf("%v, bit %d: not seen", ref, bit)
				}
				if err != nil && !errors.Is(err, store.ErrCorrupt) {
					t.Fatalf("%v, bit %d: %v, want ErrCorrupt", ref, bit, err)
				}
			}
			for n := range len(blob) {
				if err := decode(&d, ref, blob[:n], dst); !errors.Is(err, store.ErrCorrupt) {
					t.Fatalf("%v cut to %d bytes: %v", ref, n, err)
				}
			}
		}
	}
}

// Decode writes nothing beyond the page, whatever the blob.
func TestDecodeStaysInside(t *testing.T) {
	var d Decoder
	buf := bytes.Repeat([]byte{0x5a}, 3*mem.PageSize)
	for c := store.LZ4; c <= store.Zstd; c++ {
		// A blob of a page with garbage appended to it decodes to more.
		x := encoder(t, c).Encode(storetest.Page("small", 1))
		for n := 1; n < 200; n++ {
			blob := append(bytes.Clone(x.Blob), x.Blob[:min(n, len(x.Blob))]...)
			ref := store.MakeRef(x.Kind, 0, len(blob), x.Sum)
			_ = d.Decode(ref, blob, buf[mem.PageSize:2*mem.PageSize])
		}
	}
	for i, b := range buf {
		if b != 0x5a && (i < mem.PageSize || i >= 2*mem.PageSize) {
			t.Fatalf("byte %d of the neighbourhood was written", i-mem.PageSize)
		}
	}
}

// Garbage never panics, and passes only where it is the right page.
func FuzzDecode(f *testing.F) {
	for c := store.LZ4; c <= store.None; c++ {
		for _, shape := range storetest.Shapes {
			x := encoder(f, c).Encode(storetest.Page(shape, 1))
			f.Add(uint8(x.Kind), x.Word, x.Sum, bytes.Clone(x.Blob))
		}
	}
	var d Decoder
	f.Fuzz(func(t *testing.T, kind uint8, word uint64, sum uint32, blob []byte) {
		dst := make([]byte, mem.PageSize)
		ref := store.MakeRef(store.Kind(kind), word, len(blob), sum)
		err := decode(&d, ref, blob, dst)
		switch {
		case err != nil:
			if !errors.Is(err, store.ErrCorrupt) {
				t.Errorf("%v: %v, want ErrCorrupt", ref, err)
			}
		case ref.IsZeroPage():
			if !bytes.Equal(dst, make([]byte, mem.PageSize)) {
				t.Errorf("%v is not zeros", ref)
			}
		case Sum(dst) != ref.Sum():
			t.Errorf("%v: the page has sum %08x", ref, Sum(dst))
		}
	})
}

func FuzzEncode(f *testing.F) {
	for _, shape := range storetest.Shapes {
		f.Add(storetest.Page(shape, 1))
	}
	var es [store.None + 1]*Encoder
	for c := range es {
		es[c] = encoder(f, store.Codec(c))
	}
	var d Decoder
	f.Fuzz(func(t *testing.T, b []byte) {
		page := make([]byte, mem.PageSize)
		for i := 0; len(b) > 0 && i < len(page); {
			i += copy(page[i:], b)
		}
		for _, e := range es {
			x := e.Encode(page)
			dst := make([]byte, mem.PageSize)
			if err := decode(&d, x.Ref(0), x.Blob, dst); err != nil || !bytes.Equal(dst, page) {
				t.Errorf("%v: %v", x.Ref(0), err)
			}
		}
	})
}

func TestPool(t *testing.T) {
	type token struct{ busy bool }
	var mu sync.Mutex
	made := 0
	p := Pool[token]{New: func() *token {
		mu.Lock()
		defer mu.Unlock()
		made++
		return new(token)
	}}
	p.Fill(3)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5000 {
				v := p.Get()
				if v.busy { // a race, should two have it
					t.Error("a value was given out twice")
					return
				}
				v.busy = true
				v.busy = false
				p.Put(v)
			}
		})
	}
	wg.Wait()
	before := made
	if n := testing.AllocsPerRun(100, func() { p.Put(p.Get()) }); n != 0 || made != before {
		t.Errorf("%v allocations though values lie there", n)
	}
	// More than it keeps are made and dropped.
	for range 2 * poolSize {
		p.Put(new(token))
	}
	for range 3 * poolSize {
		if p.Get() == nil {
			t.Fatal("no value")
		}
	}
}

func BenchmarkParts(b *testing.B) {
	const count = 128
	dst := make([]byte, mem.PageSize)
	for _, shape := range []string{"zero", "half", "text", "raw"} {
		pages := make([][]byte, count)
		for i := range pages {
			pages[i] = storetest.Page(shape, uint64(i))
		}
		b.Run("uniform/"+shape, func(b *testing.B) {
			for i := range b.N {
				RepeatedWord((*[mem.PageSize]byte)(pages[i%count]))
			}
		})
		b.Run("crc/"+shape, func(b *testing.B) {
			for i := range b.N {
				Sum(pages[i%count])
			}
		})
		for c := store.LZ4; c <= store.None; c++ {
			e := encoder(b, c)
			b.Run("encode/"+c.String()+"/"+shape, func(b *testing.B) {
				for i := range b.N {
					e.Encode(pages[i%count])
				}
			})
			refs := make([]store.Ref, count)
			blobs := make([][]byte, count)
			for i := range pages {
				x := e.Encode(pages[i])
				refs[i], blobs[i] = x.Ref(0), bytes.Clone(x.Blob)
			}
			var d Decoder
			b.Run("decode/"+c.String()+"/"+shape, func(b *testing.B) {
				for i := range b.N {
					if err := decode(&d, refs[i%count], blobs[i%count], dst); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
