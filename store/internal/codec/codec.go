// SPDX-License-Identifier: Apache-2.0

// Package codec turns pages into blobs and back, for the stores.
//
// A page of zeros, or of one repeated 8-byte word, becomes a Ref and no blob.
// A page that does not shrink to fifteen sixteenths is its own blob, since
// reading it back is then a copy. Every page is hashed by XXH3. 32 bits of the
// hash go into the Ref, and all 128 stand at the end of a compressed blob: both
// are checked on the way back, and by the latter a page is recognised as the
// same without being decoded.
package codec

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/zeebo/xxh3"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/store/internal/lz4page"
)

// print is the hash of a page, by which two pages differ as surely as by their
// bytes. It is the same within one process only.
type print [printLen]byte

// printLen is the length of the hash at the end of a compressed blob, in bytes.
const printLen = 16

// seed keeps anybody from preparing two pages of one hash.
var seed = rand.Uint64()

func printOf(page []byte) print { return xxh3.Hash128Seed(page, seed).Bytes() }

// sum is the part of a hash that goes into the Ref.
func (p *print) sum() uint32 { return binary.BigEndian.Uint32(p[printLen-4:]) }

// Sum returns the sum that goes into the Ref of page.
func Sum(page []byte) uint32 {
	p := printOf(page)
	return p.sum()
}

// Same reports whether page is the page of ref, whose blob is given; it is
// empty for a page that lives in its Ref. Preconditions: ref is valid, page has
// mem.PageSize bytes.
func Same(ref store.Ref, blob, page []byte) bool {
	switch ref.Kind() {
	case store.KindZero, store.KindWord:
		w, ok := RepeatedWord((*[mem.PageSize]byte)(page))
		return ok && w == ref.Loc()
	case store.KindRaw:
		return bytes.Equal(blob, page)
	}
	if len(blob) != ref.Len() || len(blob) < printLen {
		return false
	}
	return print(blob[len(blob)-printLen:]) == printOf(page)
}

// Encoder turns pages into blobs. One goroutine at a time may use it.
type Encoder struct {
	codec store.Codec
	lz    lz4page.Compressor
	zstd  *zstd.Encoder
	buf   []byte // for zstd's output
}

// NewEncoder returns an encoder for c. It fails for an unknown codec.
func NewEncoder(c store.Codec) (*Encoder, error) {
	e := &Encoder{codec: c}
	switch c {
	case store.LZ4, store.None:
	case store.Zstd:
		// Not the fastest level: it strides past the compressible half of a
		// page whose first half is random, and gains little time on others.
		z, err := zstd.NewWriter(nil,
			zstd.WithEncoderLevel(zstd.SpeedDefault),
			zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderCRC(false), // ours covers the page
			zstd.WithSingleSegment(true),
			zstd.WithWindowSize(mem.PageSize),
			zstd.WithLowerEncoderMem(true))
		if err != nil {
			return nil, fmt.Errorf("zstd encoder: %w", err)
		}
		e.zstd = z
		e.buf = make([]byte, 0, mem.PageSize+64)
	default:
		return nil, fmt.Errorf("unknown compression %v", c)
	}
	return e, nil
}

// Encoded is a page ready to be stored.
type Encoded struct {
	Kind store.Kind
	Word uint64 // of a KindWord page
	Sum  uint32
	Blob []byte // empty for a page that its Ref holds; else see Encode
}

// Ref returns the Ref of the page once its blob is at off. For a page
// without a blob, off does not matter.
func (x *Encoded) Ref(off uint64) store.Ref {
	if len(x.Blob) == 0 {
		off = x.Word
	}
	return store.MakeRef(x.Kind, off, len(x.Blob), x.Sum)
}

// Encode encodes page, of mem.PageSize bytes. The blob may be page itself, and
// is otherwise valid until the next call.
func (e *Encoder) Encode(page []byte) Encoded {
	p := (*[mem.PageSize]byte)(page)
	if w, ok := RepeatedWord(p); ok {
		if w == 0 {
			return Encoded{Kind: store.KindZero}
		}
		return Encoded{Kind: store.KindWord, Word: w, Sum: Sum(page)}
	}
	mark := printOf(page)
	x := Encoded{Kind: store.KindRaw, Sum: mark.sum(), Blob: page}
	switch e.codec {
	case store.LZ4:
		if b := e.lz.Compress(p); b != nil {
			x.Kind, x.Blob = store.KindLZ4, append(b, mark[:]...)
		}
	case store.Zstd:
		if b := e.zstd.EncodeAll(page, e.buf[:0]); len(b) <= lz4page.MaxOut {
			x.Kind, x.Blob = store.KindZstd, append(b, mark[:]...)
		}
	}
	return x
}

// RepeatedWord reports whether p repeats its first 8 bytes, and returns them.
// It ends at the first difference.
func RepeatedWord(p *[mem.PageSize]byte) (word uint64, ok bool) {
	word = binary.LittleEndian.Uint64(p[:])
	// Most pages that are not uniform differ early: a few words are cheaper
	// than the call below. They lie at both ends, because zeros at one end of
	// a page are common.
	if binary.LittleEndian.Uint64(p[8:]) != word ||
		binary.LittleEndian.Uint64(p[mem.PageSize-8:]) != word {
		return 0, false
	}
	return word, bytes.Equal(p[8:], p[:mem.PageSize-8])
}

// Decoder turns blobs into pages. One goroutine at a time may use it. The
// zero value is ready.
type Decoder struct {
	zstd *zstd.Decoder
}

// Check returns an error that matches store.ErrCorrupt if ref cannot have come
// from a store: it was damaged, or is the zero Ref.
func Check(ref store.Ref) error {
	if ref.Valid() {
		return nil
	}
	if ref.IsZero() {
		return fmt.Errorf("%w: the reference is to no page", store.ErrCorrupt)
	}
	return fmt.Errorf("%w: the reference itself is damaged", store.ErrCorrupt)
}

// Inline fills dst, of mem.PageSize bytes, with the page of ref, for which
// ref.Inline and ref.Valid hold.
func Inline(ref store.Ref, dst []byte) error {
	p := (*[mem.PageSize]byte)(dst)
	if ref.IsZeroPage() {
		clear(p[:])
		return nil
	}
	binary.LittleEndian.PutUint64(p[:], ref.Loc())
	for n := 8; n < mem.PageSize; n *= 2 {
		copy(p[n:], p[:n])
	}
	return verify(ref, p[:])
}

// Decode fills dst, of mem.PageSize bytes, with the page of ref, whose blob
// is given. It allocates nothing after its first zstd page, writes nothing
// outside dst, and returns an error that matches store.ErrCorrupt unless the
// outcome is the page that was encoded.
func (d *Decoder) Decode(ref store.Ref, blob, dst []byte) error {
	dst = dst[:mem.PageSize:mem.PageSize]
	if len(blob) != ref.Len() {
		return fmt.Errorf("%w: the blob has %d bytes, not %d", store.ErrCorrupt, len(blob), ref.Len())
	}
	if ref.Kind() == store.KindRaw {
		copy(dst, blob)
		return verify(ref, dst)
	}
	if len(blob) <= printLen {
		return fmt.Errorf("%w: the blob has %d bytes", store.ErrCorrupt, len(blob))
	}
	tail := len(blob) - printLen
	want := print(blob[tail:])
	blob = blob[:tail]
	switch ref.Kind() {
	case store.KindLZ4:
		n, err := lz4.UncompressBlock(blob, dst)
		if err != nil || n != mem.PageSize {
			return fmt.Errorf("%w: it does not decompress (lz4)", store.ErrCorrupt)
		}
	case store.KindZstd:
		if err := d.decodeZstd(blob, dst); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: no blob of kind %v", store.ErrCorrupt, ref.Kind())
	}
	if got := printOf(dst); got != want || got.sum() != ref.Sum() {
		return wrongSum(got.sum(), ref)
	}
	return nil
}

func (d *Decoder) decodeZstd(blob, dst []byte) error {
	if d.zstd == nil {
		z, err := zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(1<<20),
			zstd.WithDecoderMaxWindow(1<<20),
			zstd.IgnoreChecksum(true),        // there is none
			zstd.WithDecodeAllCapLimit(true)) // never grow dst
		if err != nil {
			return fmt.Errorf("zstd decoder: %w", err)
		}
		d.zstd = z
	}
	out, err := d.zstd.DecodeAll(blob, dst[:0])
	if err != nil || len(out) != mem.PageSize {
		return fmt.Errorf("%w: it does not decompress (zstd)", store.ErrCorrupt)
	}
	return nil
}

func verify(ref store.Ref, page []byte) error {
	if sum := Sum(page); sum != ref.Sum() {
		return wrongSum(sum, ref)
	}
	return nil
}

func wrongSum(sum uint32, ref store.Ref) error {
	return fmt.Errorf("%w: its checksum is %08x, not %08x", store.ErrCorrupt, sum, ref.Sum())
}
