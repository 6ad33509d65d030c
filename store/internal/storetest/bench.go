// SPDX-License-Identifier: Apache-2.0

package storetest

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/store"
)

// Bench measures Put in batches of 64 and TryGet at random, per page.
func Bench(b *testing.B, open Open) {
	const batch, keep = 64, 16384
	for _, shape := range []string{"zero", "half", "text", "raw"} {
		pages := make([][]byte, 4*batch)
		for i := range pages {
			pages[i] = Page(shape, uint64(i))
		}
		b.Run("Put/"+shape, func(b *testing.B) {
			s := open(b, store.LZ4, 0)
			defer s.Close()
			refs := make([]store.Ref, keep)
			for i := 0; i < b.N; i += batch {
				at := i % keep
				for _, r := range refs[at : at+batch] {
					s.Free(r)
				}
				if _, err := s.Put(pages[i%len(pages):][:batch], refs[at:at+batch]); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("TryGet/"+shape, func(b *testing.B) {
			s := open(b, store.LZ4, 0)
			defer s.Close()
			refs := make([]store.Ref, keep)
			for i := 0; i < keep; i += batch {
				if _, err := s.Put(pages[i%len(pages):][:batch], refs[i:i+batch]); err != nil {
					b.Fatal(err)
				}
			}
			dst := make([]byte, mem.PageSize)
			r := rand.New(rand.NewPCG(1, 1))
			b.ResetTimer()
			b.ReportAllocs()
			waits := 0
			for range b.N {
				ref := refs[r.IntN(keep)]
				ok, err := s.TryGet(ref, dst)
				if !ok && err == nil {
					waits++
					err = s.Get(context.Background(), ref, dst)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(waits)/float64(b.N), "waits/page")
		})
	}
}
