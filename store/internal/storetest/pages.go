// SPDX-License-Identifier: Apache-2.0

// Package storetest checks that a store does what package store promises.
// The tests of every store run it.
package storetest

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/faultline-go/faultline/mem"
)

// Page returns page number n of the given shape. It is the same each time.
func Page(shape string, n uint64) []byte {
	p := make([]byte, mem.PageSize)
	r := rand.New(rand.NewPCG(n, 99))
	switch shape {
	case "zero":
	case "word":
		for i := 0; i < len(p); i += 8 {
			binary.LittleEndian.PutUint64(p[i:], n*0x9e3779b97f4a7c15|1)
		}
	case "half": // half random, half repetitive
		random(r, p[:mem.PageSize/2])
		for i := mem.PageSize / 2; i < mem.PageSize; i++ {
			p[i] = byte(i / 64)
		}
	case "text":
		words := []string{"page ", "fault ", "memory ", "the ", "of ", "store ", "and ", "outside\n"}
		for i := 0; i < len(p); {
			i += copy(p[i:], words[r.IntN(len(words))])
		}
	case "raw":
		random(r, p)
	case "small": // compresses to next to nothing
		binary.LittleEndian.PutUint64(p[r.IntN(500)*8:], n|1)
	case "any": // compresses to anything between
		random(r, p[:r.IntN(mem.PageSize+1)])
	default:
		panic("storetest: no such shape: " + shape)
	}
	return p
}

// Shapes are the names that Page knows.
var Shapes = []string{"zero", "word", "half", "text", "raw", "small", "any"}

func random(r *rand.Rand, b []byte) {
	for ; len(b) >= 8; b = b[8:] {
		binary.LittleEndian.PutUint64(b, r.Uint64())
	}
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}
