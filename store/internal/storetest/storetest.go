// SPDX-License-Identifier: Apache-2.0

package storetest

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/store"
)

// Open returns an empty store. maxBytes is zero for no bound.
type Open func(t testing.TB, c store.Codec, maxBytes int64) store.Store

// Run runs all checks.
func Run(t *testing.T, open Open) {
	for c := store.LZ4; c <= store.None; c++ {
		t.Run("RoundTrip/"+c.String(), func(t *testing.T) { roundTrip(t, open(t, c, 0)) })
		t.Run("Same/"+c.String(), func(t *testing.T) { same(t, open(t, c, 0)) })
		t.Run("DamagedRef/"+c.String(), func(t *testing.T) { damagedRef(t, open(t, c, 0)) })
		// Under the race detector the zstd library's own pool forgets at
		// random.
		if !raceEnabled || c != store.Zstd {
			t.Run("NoAlloc/"+c.String(), func(t *testing.T) { noAlloc(t, open(t, c, 0)) })
		}
	}
	t.Run("Counts", func(t *testing.T) { counts(t, open(t, store.LZ4, 0)) })
	t.Run("WrongLength", func(t *testing.T) { wrongLength(t, open(t, store.LZ4, 0)) })
	t.Run("Full", func(t *testing.T) { full(t, open(t, store.LZ4, fullBound)) })
	t.Run("Concurrent", func(t *testing.T) { concurrent(t, open(t, store.LZ4, 0)) })
	t.Run("GrowthIsBounded", func(t *testing.T) { growth(t, open(t, store.LZ4, 0)) })
	t.Run("Closed", func(t *testing.T) { closed(t, open(t, store.LZ4, 0)) })
	t.Run("CloseWhileUsed", func(t *testing.T) { closeWhileUsed(t, open(t, store.LZ4, 0)) })
}

// Put stores page and fails the test if that fails.
func Put(t testing.TB, s store.Store, page []byte) store.Ref {
	t.Helper()
	var refs [1]store.Ref
	if n, err := s.Put([][]byte{page}, refs[:]); n != 1 || err != nil {
		t.Fatalf("Put = %d, %v", n, err)
	}
	return refs[0]
}

// Want fails the test unless both ways of getting ref give page.
func Want(t testing.TB, s store.Store, ref store.Ref, page []byte) {
	t.Helper()
	dst := bytes.Repeat([]byte{0xa5}, mem.PageSize)
	ok, err := s.TryGet(ref, dst)
	if err != nil {
		t.Fatalf("TryGet %v: %v", ref, err)
	}
	if ok && !bytes.Equal(dst, page) {
		t.Fatalf("TryGet %v: another page", ref)
	}
	if err := s.Get(context.Background(), ref, dst); err != nil {
		t.Fatalf("Get %v: %v", ref, err)
	}
	if !bytes.Equal(dst, page) {
		t.Fatalf("Get %v: another page", ref)
	}
}

func shut(t *testing.T, s store.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func roundTrip(t *testing.T, s store.Store) {
	defer shut(t, s)
	var pages [][]byte
	for _, shape := range Shapes {
		for n := range uint64(40) {
			pages = append(pages, Page(shape, n))
		}
	}
	refs := make([]store.Ref, len(pages))
	if n, err := s.Put(pages, refs); n != len(pages) || err != nil {
		t.Fatalf("Put of %d pages = %d, %v", len(pages), n, err)
	}
	for i, ref := range refs {
		Want(t, s, ref, pages[i])
		if !ref.Valid() || ref.IsZero() {
			t.Errorf("page %d: Put gave %v", i, ref)
		}
	}
	st := s.Stats()
	if st.Zero < 40 || st.SameWord < 40 || st.Raw < 40 || st.Puts != uint64(len(pages)) {
		t.Errorf("counted %+v", st)
	}
	if st.BytesIn != st.Puts*mem.PageSize || st.BytesOut == 0 || st.BytesOut > st.BytesIn {
		t.Errorf("bytes in %d, out %d", st.BytesIn, st.BytesOut)
	}
	if st.Live > st.Puts-80 || st.Live == 0 || st.LiveBytes < st.BytesOut {
		t.Errorf("%d pages live in %d bytes", st.Live, st.LiveBytes)
	}
	for _, ref := range refs {
		s.Free(ref)
	}
	if st := s.Stats(); st.Live != 0 || st.LiveBytes != 0 || st.Misused != 0 {
		t.Errorf("all freed, but %+v", st)
	}
}

// same holds that a page is known by itself alone: a wrong yes would lose what
// a program has written.
func same(t *testing.T, s store.Store) {
	defer shut(t, s)
	for _, shape := range Shapes {
		page := Page(shape, 5)
		ref := Put(t, s, page)
		if !s.Same(ref, bytes.Clone(page)) {
			t.Errorf("%v: not the same as itself", ref)
		}
		for at := range page {
			page[at] ^= 1 << (at % 8)
			if s.Same(ref, page) {
				t.Fatalf("%v: the same with byte %d changed", ref, at)
			}
			page[at] ^= 1 << (at % 8)
		}
		if s.Same(store.Ref{}, page) {
			t.Errorf("%s: the page of the zero Ref", shape)
		}
		s.Free(ref)
	}
}

// H20: a Ref with any bit wrong never yields another page.
func damagedRef(t *testing.T, s store.Store) {
	defer shut(t, s)
	dst := make([]byte, mem.PageSize)
	for _, shape := range Shapes {
		page := Page(shape, 5)
		// Neighbours, so that a wrong place holds another page.
		Put(t, s, Page(shape, 4))
		ref := Put(t, s, page)
		Put(t, s, Page(shape, 6))
		check := func(what string, bad store.Ref) {
			t.Helper()
			err := s.Get(context.Background(), bad, dst)
			if err == nil && !bytes.Equal(dst, page) {
				t.Fatalf("%s: %v for %v gave a wrong page", what, bad, ref)
			}
			var e *store.Error
			if err != nil && (!errors.Is(err, store.ErrCorrupt) || !errors.As(err, &e)) {
				t.Fatalf("%s: %v gave %v, want a *store.Error of ErrCorrupt", what, bad, err)
			}
		}
		for bit := range 64 {
			check("loc", store.MakeRef(ref.Kind(), ref.Loc()^1<<bit, ref.Len(), ref.Sum()))
		}
		for bit := range 32 {
			bad := store.MakeRef(ref.Kind(), ref.Loc(), ref.Len(), ref.Sum()^1<<bit)
			check("sum", bad)
		}
		for n := range mem.PageSize + 2 {
			check("length", store.MakeRef(ref.Kind(), ref.Loc(), n, ref.Sum()))
		}
		for k := range 256 {
			check("kind", store.MakeRef(store.Kind(k), ref.Loc(), ref.Len(), ref.Sum()))
		}
	}
	if err := s.Get(context.Background(), store.Ref{}, dst); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("the zero Ref gave %v", err)
	}
	if st := s.Stats(); st.Corrupt == 0 || st.Errors < st.Corrupt {
		t.Errorf("corrupt %d, errors %d", st.Corrupt, st.Errors)
	}
}

func noAlloc(t *testing.T, s store.Store) {
	defer shut(t, s)
	dst := make([]byte, mem.PageSize)
	for _, shape := range Shapes {
		ref := Put(t, s, Page(shape, 1))
		run := func() {
			if ok, err := s.TryGet(ref, dst); !ok || err != nil {
				t.Fatalf("TryGet = %v, %v", ok, err)
			}
		}
		for range 100 { // each decoder of the pool has met its first page
			run()
		}
		if n := testing.AllocsPerRun(200, run); n != 0 {
			t.Errorf("TryGet of a %s page allocates %v times", shape, n)
		}
	}
}

func counts(t *testing.T, s store.Store) {
	defer shut(t, s)
	page := Page("half", 1)
	ref := Put(t, s, page)
	for range 3 {
		s.Share(ref)
	}
	for i := range 4 {
		Want(t, s, ref, page)
		if live := s.Stats().Live; live != 1 {
			t.Fatalf("%d live after %d of 4 frees", live, i)
		}
		s.Free(ref)
	}
	if live := s.Stats().Live; live != 0 {
		t.Errorf("%d live after all frees", live)
	}
	if n := s.Stats().Misused; n != 0 {
		t.Errorf("%d calls counted as misuse", n)
	}
	s.Free(ref)
	s.Share(ref)
	if n := s.Stats().Misused; n != 2 {
		t.Errorf("%d calls counted as misuse, want 2", n)
	}
	s.Free(store.Ref{}) // no page: nothing to do
	zero := Put(t, s, Page("zero", 0))
	for range 3 {
		s.Free(zero)
	}
	if n := s.Stats().Misused; n != 2 {
		t.Errorf("%d calls counted as misuse, want 2", n)
	}
}

// fullBound is enough for a slab of each class and as much again.
const fullBound = 8 << 20

func full(t *testing.T, s store.Store) {
	defer shut(t, s)
	type kept struct {
		ref  store.Ref
		page []byte
	}
	var have []kept
	var last error
	for n := uint64(0); last == nil; n++ {
		if n > 5000 {
			t.Fatal("the store never gets full")
		}
		batch := [][]byte{Page("raw", 3*n), Page("half", 3*n+1), Page("any", 3*n+2)}
		refs := make([]store.Ref, 3)
		stored, err := s.Put(batch, refs)
		for i := range stored {
			have = append(have, kept{refs[i], batch[i]})
		}
		for i := stored; i < 3; i++ {
			if !refs[i].IsZero() {
				t.Errorf("a page that was not stored has %v", refs[i])
			}
		}
		if (stored < 3) != (err != nil) {
			t.Fatalf("Put = %d, %v", stored, err)
		}
		last = err
	}
	var e *store.Error
	if !errors.Is(last, store.ErrFull) || !errors.As(last, &e) || !e.Temporary() {
		t.Errorf("Put into a full store: %v, want a temporary *store.Error of ErrFull", last)
	}
	if st := s.Stats(); st.Allocated > fullBound {
		t.Errorf("%d bytes taken, the bound is %d", st.Allocated, fullBound)
	} else if st.Live < 1500 {
		t.Errorf("full with %d pages", st.Live)
	}
	for _, k := range have {
		Want(t, s, k.ref, k.page)
	}
	for _, k := range have[:len(have)/2] {
		s.Free(k.ref)
	}
	Put(t, s, Page("half", 1)) // there is room again
	for _, k := range have[len(have)/2:] {
		Want(t, s, k.ref, k.page)
	}
}
