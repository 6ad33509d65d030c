// SPDX-License-Identifier: Apache-2.0

package lz4page

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/pierrec/lz4/v4"

	"github.com/faultline-go/faultline/mem"
)

type page = [mem.PageSize]byte

func rng(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

func fillRandom(r *rand.Rand, b []byte) {
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, r.Uint64())
		b = b[8:]
	}
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

// shapes are the kinds of page that the tests and benchmarks use.
var shapes = []struct {
	name string
	make func(r *rand.Rand, p *page)
}{
	{"half", func(r *rand.Rand, p *page) { // random, then repetitive
		fillRandom(r, p[:mem.PageSize/2])
		for i := mem.PageSize / 2; i < mem.PageSize; i++ {
			p[i] = byte(i / 64)
		}
	}},
	{"interleaved", func(r *rand.Rand, p *page) { // 32 random, 32 constant
		for i := 0; i < mem.PageSize; i += 64 {
			fillRandom(r, p[i:i+32])
			copy(p[i+32:i+64], "a constant string of thirty-two!")
		}
	}},
	{"pointers", func(r *rand.Rand, p *page) { // as a heap of objects
		base := r.Uint64() & 0x7fff_ffff_f000
		for i := 0; i < mem.PageSize; i += 32 {
			binary.LittleEndian.PutUint64(p[i:], 1)
			binary.LittleEndian.PutUint64(p[i+8:], base)
			binary.LittleEndian.PutUint64(p[i+16:], base+uint64(r.Uint32()&0xfffff8))
			binary.LittleEndian.PutUint64(p[i+24:], uint64(r.Uint32()&0xffff))
		}
	}},
	{"text", func(r *rand.Rand, p *page) {
		words := []string{"page ", "fault ", "memory ", "the ", "of ", "store ", "resident ", "and ", "outside\n"}
		for i := 0; i < mem.PageSize; {
			i += copy(p[i:], words[r.IntN(len(words))])
		}
	}},
	{"random", func(r *rand.Rand, p *page) { fillRandom(r, p[:]) }},
	{"tail", func(r *rand.Rand, p *page) { // matches up to the last byte
		fillRandom(r, p[:100])
		for i := 100; i < mem.PageSize; i++ {
			p[i] = p[i-100]
		}
	}},
	{"sparse", func(r *rand.Rand, p *page) {
		for range 40 {
			p[r.IntN(mem.PageSize)] = byte(r.Uint32())
		}
	}},
}

func check(t testing.TB, c *Compressor, p *page) {
	t.Helper()
	b := c.Compress(p)
	if b == nil {
		return
	}
	if len(b) > MaxOut {
		t.Fatalf("block of %d bytes, the limit is %d", len(b), MaxOut)
	}
	var back page
	if n, err := lz4.UncompressBlock(b, back[:]); err != nil || n != mem.PageSize {
		t.Fatalf("a block of %d bytes decodes to %d, %v", len(b), n, err)
	}
	if back != *p {
		t.Fatal("a block decodes to another page")
	}
}

func TestRoundTrip(t *testing.T) {
	var c Compressor
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			for seed := range uint64(500) {
				var p page
				s.make(rng(seed), &p)
				check(t, &c, &p)
			}
		})
	}
}

// Pages of every period and of every length of a random head meet each
// boundary of the format: lengths at 15 and 255, matches at the end.
func TestBoundaries(t *testing.T) {
	var c Compressor
	r := rng(7)
	for n := 1; n < mem.PageSize; n++ {
		var p page
		fillRandom(r, p[:n])
		check(t, &c, &p) // a random head, then zeros
		for i := n; i < mem.PageSize; i++ {
			p[i] = p[i-n]
		}
		check(t, &c, &p) // period n
		clear(p[:])
		fillRandom(r, p[mem.PageSize-n:])
		check(t, &c, &p) // a random tail
	}
}

func TestGivesUpOnRandom(t *testing.T) {
	var c Compressor
	var p page
	fillRandom(rng(3), p[:])
	if b := c.Compress(&p); b != nil {
		t.Errorf("random bytes became a block of %d", len(b))
	}
}

// The ratio may not fall much behind the general compressor's.
func TestRatio(t *testing.T) {
	var c Compressor
	var ref lz4.Compressor
	out := make([]byte, lz4.CompressBlockBound(mem.PageSize))
	for _, s := range shapes {
		var ours, theirs int
		for seed := range uint64(50) {
			var p page
			s.make(rng(seed), &p)
			if b := c.Compress(&p); b != nil {
				ours += len(b)
			} else {
				ours += mem.PageSize
			}
			n, err := ref.CompressBlock(p[:], out)
			if err != nil {
				t.Fatal(err)
			}
			theirs += min(n, mem.PageSize)
		}
		t.Logf("%-12s ours %6.1f theirs %6.1f bytes a page", s.name, float64(ours)/50, float64(theirs)/50)
		if ours > theirs*115/100 {
			t.Errorf("%s: %d bytes, the general compressor makes %d", s.name, ours, theirs)
		}
	}
}

func FuzzCompress(f *testing.F) {
	for _, s := range shapes {
		var p page
		s.make(rng(1), &p)
		f.Add(p[:])
	}
	var c Compressor
	f.Fuzz(func(t *testing.T, b []byte) {
		var p page
		for i := 0; len(b) > 0 && i < len(p); {
			i += copy(p[i:], b)
		}
		check(t, &c, &p)
		clear(p[:])
		copy(p[:], b)
		check(t, &c, &p)
	})
}

func BenchmarkCompress(b *testing.B) {
	// FAULTLINE_BENCH_PAGES names a file of real pages, such as a core dump.
	cases := shapes
	if name := os.Getenv("FAULTLINE_BENCH_PAGES"); name != "" {
		raw, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		cases = append(cases, struct {
			name string
			make func(r *rand.Rand, p *page)
		}{"file", func(r *rand.Rand, p *page) {
			for range 1000 {
				copy(p[:], raw[r.IntN(len(raw)/mem.PageSize)*mem.PageSize:])
				if !bytes.Equal(p[8:], p[:mem.PageSize-8]) {
					return
				}
			}
		}})
	}
	for _, s := range cases {
		// As many as a batch of eviction: they are in the second cache.
		pages := make([]page, 128)
		r := rng(1)
		for i := range pages {
			s.make(r, &pages[i])
		}
		var c Compressor
		b.Run("own/"+s.name, func(b *testing.B) {
			total := 0
			for i := 0; b.Loop(); i++ {
				if o := c.Compress(&pages[i%len(pages)]); o != nil {
					total += len(o)
				} else {
					total += mem.PageSize
				}
			}
			b.ReportMetric(float64(total)/float64(b.N), "B/page")
		})
		var ref lz4.Compressor
		out := make([]byte, lz4.CompressBlockBound(mem.PageSize))
		b.Run("general/"+s.name, func(b *testing.B) {
			total := 0
			for i := 0; b.Loop(); i++ {
				n, _ := ref.CompressBlock(pages[i%len(pages)][:], out)
				total += min(n, mem.PageSize)
			}
			b.ReportMetric(float64(total)/float64(b.N), "B/page")
		})
	}
}
