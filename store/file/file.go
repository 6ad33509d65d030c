// SPDX-License-Identifier: Apache-2.0

// Package file stores pages compressed in a local file.
//
// Put never waits for the device while there is room: blobs are staged in a
// bounded piece of memory, and a writer of its own brings them to the file in
// long runs. A blob leaves memory only when fdatasync(2) has said that it is on
// the device, because buffered writes may fail long after they were accepted.
// When they fail, nothing is lost: the blobs stay, are served from memory and
// written again, to other places in the end, and Put refuses more until that
// works. Nothing is written before there is much to write: what comes back
// soon never reaches the device.
//
// The file is of no use to anyone once the store is closed. It is readable by
// its owner only.
//
// Lock order:
//
//	Store.ioMu (held across writes and the release of slabs)
//		stage.mu
//			the allocator's
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/store/internal/codec"
	"github.com/faultline-go/faultline/store/internal/core"
	"github.com/faultline-go/faultline/store/internal/disk"
	"github.com/faultline-go/faultline/store/internal/slab"
)

// stageBytes is how much may be in memory and not yet on the device.
const stageBytes = 8 << 20

// Options say how to open a Store. The zero Options is LZ4 in a temporary
// file without a bound.
type Options struct {
	// Path names the file. Empty means a file without a name in $TMPDIR or
	// /var/tmp, whichever is on a disk. A named file is created with mode
	// 0600, or emptied if an earlier faultline left it, and removed by
	// Close. Any other file is refused.
	Path string
	// Codec compresses the pages.
	Codec store.Codec
	// MaxBytes bounds the space that the file takes, zero for no bound. It
	// is rounded down to 64 KiB. Since each size of blob needs a piece of
	// its own, a bound of less than some MiB wastes much of it.
	MaxBytes int64
}

// Store is a store.Store in a file.
type Store struct {
	base    core.Base
	file    disk.File
	alloc   *slab.Allocator
	trim    *core.Trimmer
	stage   *stage
	scratch codec.Pool[disk.Scratch]

	// ioMu keeps a slab from being released while a blob that was freed a
	// moment ago is still on its way to it.
	ioMu sync.Mutex

	// extent is where the space ever given to pages ends, written by Grow.
	extent atomic.Uint64

	writerDone chan struct{}
}

var _ store.Store = (*Store)(nil)

// Open opens the file and returns an empty store. Its error says what is
// wrong with the path.
func Open(o Options) (*Store, error) {
	if o.Path != "" {
		f, err := disk.OpenNamed(o.Path)
		if err != nil {
			return nil, fmt.Errorf("store file: %w", err)
		}
		return newStore(f, "file "+o.Path, o, stageBytes)
	}
	f, dir, err := disk.OpenTemp(tempDirs())
	if err != nil {
		return nil, fmt.Errorf("store file: %w", err)
	}
	return newStore(f, "file (unnamed, in "+dir+")", o, stageBytes)
}

// tempDirs returns where to look for room for a temporary file. The usual
// directory for it is last, for it is often in memory.
func tempDirs() []string {
	var dirs []string
	if d := os.Getenv("TMPDIR"); d != "" {
		dirs = append(dirs, d)
	}
	return append(dirs, "/var/tmp", os.TempDir())
}

// newStore returns a store in f, which it closes even when it fails.
func newStore(f disk.File, name string, o Options, stageBytes int) (*Store, error) {
	s := &Store{file: f, writerDone: make(chan struct{})}
	if err := s.base.Init(name, o.Codec); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s.alloc = slab.New((*backing)(s), o.MaxBytes)
	s.trim = core.StartTrimmer(s.alloc)
	s.stage = newStage(stageBytes)
	s.scratch.New = func() *disk.Scratch { return new(disk.Scratch) }
	s.scratch.Fill(4)
	go s.writer()
	return s, nil
}

// backing is the file as the allocator sees it.
type backing Store

// Grow implements slab.Backing. It reserves the space, so that a full file
// system is known before anything is promised.
func (b *backing) Grow(i int) error {
	err := b.file.Reserve(disk.DataStart+int64(i)<<slab.Shift, slab.Size)
	if isFull(err) {
		return fmt.Errorf("%w: reserve space: %w", store.ErrFull, err)
	} else if err != nil {
		return fmt.Errorf("reserve space: %w", err)
	}
	b.extent.Store(max(b.extent.Load(), uint64(i+1)<<slab.Shift))
	return nil
}

// Release implements slab.Backing. A refusal costs space, which is reused, but
// nothing else.
func (b *backing) Release(i int) {
	b.ioMu.Lock()
	defer b.ioMu.Unlock()
	_ = b.file.Punch(disk.DataStart+int64(i)<<slab.Shift, slab.Size)
}

// Put implements store.Store. It waits for the device only while the device
// works but is slower than Put is called, and then not for long.
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
			if off, err = s.keep(x.Blob); err != nil {
				return i, err
			}
		}
		refs[i] = x.Ref(off)
		s.base.Stored(&x)
	}
	return len(pages), nil
}

// keep takes a slot for blob and stages it.
func (s *Store) keep(blob []byte) (off uint64, err error) {
	if err := s.stage.room(len(blob)); err != nil {
		return 0, s.temporary(err)
	}
	off, size, err := s.alloc.Alloc(len(blob))
	if err != nil {
		return 0, s.temporary(err)
	}
	for !s.stage.add(off, size, blob) {
		if err := s.stage.room(len(blob)); err != nil {
			s.freeSlot(off, len(blob))
			return 0, s.temporary(err)
		}
	}
	return off, nil
}

// temporary wraps an error of Put. All of them may go away: space is freed, a
// device comes back.
func (s *Store) temporary(err error) error {
	wrapped := s.base.Fail("put", store.Ref{}, -1, err)
	if e, ok := errors.AsType[*store.Error](wrapped); ok {
		e.Retry = true
	}
	return wrapped
}

// begin is Base.Begin, and refuses what never was in the file.
func (s *Store) begin(ref store.Ref, dst []byte) (done bool, err error) {
	if done, err := s.base.Begin(ref, dst); done {
		return true, err
	}
	if end := s.extent.Load(); ref.Loc() >= end || end-ref.Loc() < uint64(ref.Len()) {
		return true, s.base.Fail("read", ref, -1, core.ErrOutside)
	}
	return false, nil
}

// TryGet implements store.Store.
func (s *Store) TryGet(ref store.Ref, dst []byte) (ok bool, err error) {
	if err := s.base.Enter("get"); err != nil {
		return false, err
	}
	defer s.base.Leave()
	if done, err := s.begin(ref, dst); done {
		return err == nil, err
	}
	sc := s.scratch.Get()
	defer s.scratch.Put(sc)
	blob, at := s.stage.find(ref, sc.Buf[:])
	if blob == nil {
		blob, ok, err = s.file.TryPread(sc, ref.Len(), place(at))
		if err != nil {
			return false, s.base.Fail("read", ref, place(at), err)
		}
		if !ok {
			return false, nil
		}
	}
	err = s.decode(ref, blob, dst)
	return err == nil, err
}

// Same implements store.Store. It knows of what is staged, and of what the
// kernel has of the file in memory.
func (s *Store) Same(ref store.Ref, page []byte) bool {
	if !ref.Valid() || s.base.Enter("same") != nil {
		return false
	}
	defer s.base.Leave()
	if ref.Inline() {
		return codec.Same(ref, nil, page)
	}
	if end := s.extent.Load(); ref.Loc() >= end || end-ref.Loc() < uint64(ref.Len()) {
		return false
	}
	sc := s.scratch.Get()
	defer s.scratch.Put(sc)
	blob, at := s.stage.find(ref, sc.Buf[:])
	if blob == nil {
		var ok bool
		// An error will be told when the page is wanted.
		if blob, ok, _ = s.file.TryPread(sc, ref.Len(), place(at)); !ok {
			return false
		}
	}
	return codec.Same(ref, blob, page)
}

// Get implements store.Store. The read itself is not interrupted by ctx.
func (s *Store) Get(ctx context.Context, ref store.Ref, dst []byte) error {
	if err := s.base.Enter("get"); err != nil {
		return err
	}
	defer s.base.Leave()
	if err := ctx.Err(); err != nil {
		return s.base.Fail("get", ref, -1, err)
	}
	if done, err := s.begin(ref, dst); done {
		return err
	}
	sc := s.scratch.Get()
	defer s.scratch.Put(sc)
	blob, at := s.stage.find(ref, sc.Buf[:])
	if blob == nil {
		blob = sc.Buf[:ref.Len()]
		if err := readFull(s.file, blob, place(at)); err != nil {
			return s.base.Fail("read", ref, place(at), err)
		}
	}
	return s.decode(ref, blob, dst)
}

// place returns the offset in the file of what the allocator put at off.
func place(off uint64) int64 { return disk.DataStart + int64(off) }

func (s *Store) decode(ref store.Ref, blob, dst []byte) error {
	d := s.base.Decoders.Get()
	err := d.Decode(ref, blob, dst)
	s.base.Decoders.Put(d)
	return s.base.Got(ref, err)
}

// readFull fills b from off. A file that ends before was truncated by somebody
// else, and never reads as zeros.
func readFull(f disk.File, b []byte, off int64) error {
	for done := 0; done < len(b); {
		n, err := f.Pread(b[done:], off+int64(done))
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("%w: the file ends before it: %w", store.ErrCorrupt, io.ErrUnexpectedEOF)
		}
		done += n
	}
	return nil
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

// Free implements store.Store. A blob that was not written yet never is.
func (s *Store) Free(ref store.Ref) {
	if s.base.Counted(ref) {
		if s.base.Enter("free") != nil {
			return
		}
		s.freeSlot(ref.Loc(), ref.Len())
		s.base.Leave()
	}
}

// freeSlot takes one from the count of a slot and forgets the blob with the
// last one.
func (s *Store) freeSlot(off uint64, n int) {
	if s.stage.free(s.alloc, off, n) {
		s.trim.Wake()
	}
}

// Stats implements store.Store.
func (s *Store) Stats() store.Stats {
	st := s.base.Count(s.alloc.Usage())
	st.Staged = s.stage.used()
	if s.base.Enter("stats") == nil {
		if n, err := s.file.Size(); err == nil {
			st.Size = uint64(n)
		}
		s.base.Leave()
	}
	return st
}

// Name returns what errors call the store: "file" and where it is, which for
// an unnamed file is its directory.
func (s *Store) Name() string { return s.base.Name() }

// Health implements store.Store.
func (s *Store) Health() error { return s.stage.health() }

// Close implements store.Store. What is staged is not written any more: the
// file goes away. It waits for a write that is under way.
func (s *Store) Close() error {
	if !s.base.Shut() {
		return nil
	}
	s.stage.stop()
	<-s.writerDone
	s.trim.Stop()
	if err := s.file.Close(); err != nil {
		return fmt.Errorf("store %s: close: %w", s.base.Name(), err)
	}
	return nil
}
