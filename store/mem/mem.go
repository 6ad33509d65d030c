// SPDX-License-Identifier: Apache-2.0

// Package mem stores pages compressed in this process's own memory.
//
// The blobs lie outside Go's heap, so that the collector neither scans nor
// counts them. On Linux their memory is given back to the kernel as pages are
// freed; elsewhere it is plain memory that is kept for reuse.
package mem

import (
	"context"

	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/store/internal/codec"
	"github.com/faultline-go/faultline/store/internal/core"
	"github.com/faultline-go/faultline/store/internal/nearer"
	"github.com/faultline-go/faultline/store/internal/slab"
)

// Options say how to open a Store. The zero Options is LZ4 without a bound.
type Options struct {
	// Codec compresses the pages.
	Codec store.Codec
	// MaxBytes bounds the memory taken for blobs, zero for no bound. It is
	// rounded down to 64 KiB. Since each size of blob needs a piece of its
	// own, a bound of less than some MiB wastes much of it.
	MaxBytes int64
}

// Store is a store.Store in memory.
type Store struct {
	base  core.Base
	arena arena
	alloc *slab.Allocator
	trim  *core.Trimmer
}

var (
	_ store.Store  = (*Store)(nil)
	_ store.Nearer = (*Store)(nil)
)

// Open returns an empty store. It fails for an unknown codec, or when there is
// no memory.
func Open(o Options) (*Store, error) {
	s := &Store{}
	if err := s.base.Init("mem", o.Codec); err != nil {
		return nil, err
	}
	s.alloc = slab.New(&s.arena, o.MaxBytes)
	s.trim = core.StartTrimmer(s.alloc)
	return s, nil
}

// Put implements store.Store.
func (s *Store) Put(pages [][]byte, refs []store.Ref) (n int, err error) {
	if err := s.base.Enter("put"); err != nil {
		return 0, err
	}
	defer s.base.Leave()
	enc := s.base.Encoders.Get()
	defer s.base.Encoders.Put(enc)
	refs = refs[:len(pages)]
	for i, page := range pages {
		if err := s.base.CheckPage(page); err != nil {
			return i, err
		}
		x := enc.Encode(page)
		var off uint64
		if len(x.Blob) > 0 {
			off, _, err = s.alloc.Alloc(len(x.Blob))
			if err != nil {
				return i, s.base.Fail("put", store.Ref{}, -1, err)
			}
			copy(s.arena.at(off, len(x.Blob)), x.Blob)
		}
		refs[i] = x.Ref(off)
		s.base.Stored(&x)
	}
	return len(pages), nil
}

// TryGet implements store.Store. It always decodes.
func (s *Store) TryGet(ref store.Ref, dst []byte) (ok bool, err error) {
	if err := s.base.Enter("get"); err != nil {
		return false, err
	}
	defer s.base.Leave()
	if done, err := s.base.Begin(ref, dst); done {
		return err == nil, err
	}
	blob := s.arena.at(ref.Loc(), ref.Len())
	if blob == nil {
		return false, s.base.Fail("get", ref, int64(ref.Loc()), core.ErrOutside)
	}
	d := s.base.Decoders.Get()
	err = d.Decode(ref, blob, dst)
	s.base.Decoders.Put(d)
	return err == nil, s.base.Got(ref, err)
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, ref store.Ref, dst []byte) error {
	if err := ctx.Err(); err != nil {
		return s.base.Fail("get", ref, -1, err)
	}
	_, err := s.TryGet(ref, dst)
	return err
}

// Same implements store.Store. It always knows.
func (s *Store) Same(ref store.Ref, page []byte) bool {
	if !ref.Valid() || s.base.Enter("same") != nil {
		return false
	}
	defer s.base.Leave()
	var blob []byte
	if !ref.Inline() {
		blob = s.arena.at(ref.Loc(), ref.Len())
	}
	return codec.Same(ref, blob, page)
}

// Bring implements store.Nearer.
func (s *Store) Bring(ref store.Ref) {
	if ref.Inline() || ref.Len() == 0 {
		return
	}
	// Nil if ref is damaged. That the memory may be unmapped meanwhile does no
	// harm, since it is not read.
	nearer.Bring(s.arena.at(ref.Loc(), ref.Len()))
}

// Share implements store.Store.
func (s *Store) Share(ref store.Ref) {
	if s.base.Counted(ref) {
		if s.base.Enter("share") != nil {
			return
		}
		s.alloc.Share(ref.Loc(), ref.Len())
		s.base.Leave()
	}
}

// Free implements store.Store.
func (s *Store) Free(ref store.Ref) {
	if s.base.Counted(ref) {
		if s.base.Enter("free") != nil {
			return
		}
		if _, trim, _ := s.alloc.Free(ref.Loc(), ref.Len()); trim {
			s.trim.Wake()
		}
		s.base.Leave()
	}
}

// Stats implements store.Store.
func (s *Store) Stats() store.Stats {
	st := s.base.Count(s.alloc.Usage())
	st.Size = s.arena.size()
	return st
}

// Health implements store.Store. Memory has no device that could be down.
func (s *Store) Health() error { return nil }

// Close implements store.Store.
func (s *Store) Close() error {
	if !s.base.Shut() {
		return nil
	}
	s.trim.Stop()
	return s.arena.close()
}
