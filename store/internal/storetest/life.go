// SPDX-License-Identifier: Apache-2.0

package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/store"
)

// concurrent has each goroutine work on pages of its own and on shared ones.
func concurrent(t *testing.T, s store.Store) {
	defer shut(t, s)
	common := make([]store.Ref, 50)
	for i := range common {
		common[i] = Put(t, s, Page("any", uint64(i)))
	}
	var wg sync.WaitGroup
	for w := range uint64(4) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(w, 3))
			own := map[uint64]store.Ref{}
			for step := range 1500 {
				n := w<<32 | uint64(r.IntN(200))
				if ref, ok := own[n]; ok {
					Want(t, s, ref, Page("any", n))
					s.Free(ref)
					delete(own, n)
				} else {
					var refs [1]store.Ref
					if k, err := s.Put([][]byte{Page("any", n)}, refs[:]); k != 1 {
						t.Errorf("Put: %v", err)
						return
					}
					own[n] = refs[0]
				}
				i := r.IntN(len(common))
				s.Share(common[i])
				if step%8 == 0 {
					Want(t, s, common[i], Page("any", uint64(i)))
				}
				s.Free(common[i])
			}
			for _, ref := range own {
				s.Free(ref)
			}
		})
	}
	wg.Wait()
	if st := s.Stats(); st.Live > 50 || st.Misused != 0 {
		t.Errorf("%d live, %d misused", st.Live, st.Misused)
	}
}

// growth replaces pages at random for a long while: the space stays within a
// factor of what is live.
func growth(t *testing.T, s store.Store) {
	defer shut(t, s)
	r := rand.New(rand.NewPCG(1, 2))
	refs := make([]store.Ref, 3000)
	var batch [1]store.Ref
	pages := make([][]byte, 256)
	for i := range pages {
		pages[i] = Page("any", uint64(i))
	}
	var peak uint64
	for step := range 20000 {
		i := r.IntN(len(refs))
		if !refs[i].IsZero() {
			s.Free(refs[i])
		}
		if n, err := s.Put(pages[r.IntN(len(pages)):][:1], batch[:]); n != 1 {
			t.Fatalf("step %d: %v", step, err)
		}
		refs[i] = batch[0]
		if step%500 == 0 {
			peak = max(peak, s.Stats().Allocated)
		}
	}
	st := s.Stats()
	defer shrinks(t, s, refs)
	// 64 classes may each have a slab that is hardly used.
	if bound := st.LiveBytes*13/10 + 64*(64<<10); peak > bound {
		t.Errorf("%d bytes taken for %d live", peak, st.LiveBytes)
	}
}

// shrinks frees all refs: what they took goes back to the system, but for a
// small reserve. Somebody else does that, so it may take a moment.
func shrinks(t *testing.T, s store.Store, refs []store.Ref) {
	for _, ref := range refs {
		s.Free(ref)
	}
	const reserve = 2 << 20
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		st := s.Stats()
		if st.Live == 0 && st.Allocated <= reserve {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("all freed, but %d bytes are taken by %d pages", st.Allocated, st.Live)
		}
	}
}

// wrongLength checks that a buffer that is no page is refused, and nothing
// else is stored or touched.
func wrongLength(t *testing.T, s store.Store) {
	defer shut(t, s)
	good := Page("half", 1)
	for _, n := range []int{0, 1, mem.PageSize - 1, mem.PageSize + 1} {
		refs := make([]store.Ref, 3)
		stored, err := s.Put([][]byte{good, make([]byte, n), good}, refs)
		if stored != 1 || err == nil || !refs[1].IsZero() || !refs[2].IsZero() {
			t.Errorf("Put of %d bytes = %d, %v, refs %v", n, stored, err, refs)
		}
		if ok, err := s.TryGet(refs[0], make([]byte, n)); ok || err == nil || errors.Is(err, store.ErrCorrupt) {
			t.Errorf("TryGet into %d bytes = %v, %v", n, ok, err)
		}
		Want(t, s, refs[0], good)
	}
}

func closed(t *testing.T, s store.Store) {
	ref := Put(t, s, Page("half", 1))
	zero := Put(t, s, Page("zero", 1))
	shut(t, s)
	shut(t, s)
	dst := make([]byte, mem.PageSize)
	var refs [1]store.Ref
	_, putErr := s.Put([][]byte{dst}, refs[:])
	_, tryErr := s.TryGet(ref, dst)
	for what, err := range map[string]error{
		"Put": putErr, "TryGet": tryErr,
		"Get":      s.Get(context.Background(), ref, dst),
		"Get zero": s.Get(context.Background(), zero, dst),
	} {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
	s.Share(ref)
	s.Free(ref)
	s.Stats()
}

// H8: a Close in the middle of calls takes nothing away under them.
func closeWhileUsed(t *testing.T, s store.Store) {
	var refs []store.Ref
	for n := range uint64(64) {
		refs = append(refs, Put(t, s, Page("half", n)))
	}
	var wg sync.WaitGroup
	started := make(chan struct{}, 4)
	for w := range 4 {
		wg.Go(func() {
			dst := make([]byte, mem.PageSize)
			for i := w; ; i++ {
				err := s.Get(context.Background(), refs[i%64], dst)
				if i == w {
					started <- struct{}{}
				}
				if errors.Is(err, store.ErrClosed) {
					return
				}
				if err != nil || !bytes.Equal(dst[:8], Page("half", uint64(i%64))[:8]) {
					t.Error(fmt.Errorf("get during Close: %w", err))
					return
				}
			}
		})
	}
	for range 4 {
		<-started
	}
	shut(t, s)
	wg.Wait()
}
