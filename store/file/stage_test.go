// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/store/internal/slab"
)

// endless is a backing without a bottom.
type endless struct{}

func (endless) Grow(int) error { return nil }
func (endless) Release(int)    {}

func blobOf(n uint64) []byte { return fmt.Appendf(nil, "blob %032d", n) }

// Entries freed in the middle of a release are not reused before it has
// passed them: it would take the new ones for the old ones.
func TestReuseDuringRelease(t *testing.T) {
	g := newStage(64 << 10)
	a := slab.New(endless{}, 0)
	refs := map[uint64]store.Ref{}
	add := func(n uint64) bool {
		b := blobOf(n)
		off, size, err := a.Alloc(len(b))
		if err != nil {
			t.Fatal(err)
		}
		if !g.add(off, size, b) {
			a.Free(off, len(b))
			return false
		}
		refs[n] = store.MakeRef(store.KindLZ4, off, len(b), uint32(n))
		return true
	}
	var n uint64
	for ; uint64(len(refs)) < g.count; n++ {
		if !add(n) {
			t.Fatalf("no room for blob %d of %d", n, g.count)
		}
	}
	if add(n) {
		t.Fatal("more entries than there are")
	}
	lo, hi, due := g.batch()
	if !due || lo != 0 || hi != n {
		t.Fatalf("batch = %d, %d, %v", lo, hi, due)
	}
	// All but the first few are freed while they are written.
	for i := uint64(10); i < n; i++ {
		g.free(a, refs[i].Loc(), refs[i].Len())
		delete(refs, i)
	}
	for lo < hi {
		lo = g.releaseSome(lo, hi)
		for end := n + 100; n < end && add(n); n++ {
		}
	}
	for i := range uint64(10) {
		if b, _ := g.find(refs[i], make([]byte, 4096)); b != nil {
			t.Errorf("blob %d is still staged", i)
		}
		delete(refs, i)
	}
	if len(refs) < 100 {
		t.Fatalf("only %d blobs were added meanwhile", len(refs))
	}
	for i, ref := range refs {
		if b, _ := g.find(ref, make([]byte, 4096)); !bytes.Equal(b, blobOf(i)) {
			t.Fatalf("blob %d of those added meanwhile: %q", i, b)
		}
	}
	if got := int(g.staged.Load()); got != len(refs) {
		t.Errorf("%d staged, want %d", got, len(refs))
	}
}
