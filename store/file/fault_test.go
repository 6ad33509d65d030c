// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/store/internal/disk"
	"github.com/faultline-go/faultline/store/internal/storetest"
)

const testStage = 256 << 10

// openFaulty returns a store with a small stage on a disk that can be made to
// fail.
func openFaulty(t *testing.T) (*Store, *faulty) {
	t.Helper()
	f, dir, err := disk.OpenTemp([]string{t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	d := &faulty{File: f}
	s, err := newStore(d, "file in "+dir, Options{}, testStage)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s, d
}

// eventually waits until ok, which must come true by the work of other
// goroutines.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: never", what)
		}
	}
}

// drain waits until all but the last half of the stage is on the disk.
func drain(t *testing.T, s *Store) {
	t.Helper()
	eventually(t, "the stage is written", func() bool { return s.stage.used() < testStage/2 })
}

type held struct {
	n   uint64
	ref store.Ref
}

// fill puts pages from n on until Put fails or count are stored.
func fill(t *testing.T, s *Store, n, count uint64) (pages []held, err error) {
	t.Helper()
	for end := n + count; n < end; n++ {
		var refs [1]store.Ref
		if k, err := s.Put([][]byte{storetest.Page("half", n)}, refs[:]); k != 1 {
			return pages, err
		}
		pages = append(pages, held{n, refs[0]})
	}
	return pages, nil
}

func wantAll(t *testing.T, s *Store, pages []held) {
	t.Helper()
	for _, p := range pages {
		storetest.Want(t, s, p.ref, storetest.Page("half", p.n))
	}
}

// backoff checks that a failing device stops Put, loses nothing, is reported,
// and that all goes on once it works again.
func backoff(t *testing.T, s *Store, d *faulty, want error, heal func()) {
	t.Helper()
	pages, err := fill(t, s, 0, 10000)
	var e *store.Error
	if !errors.Is(err, want) || !errors.As(err, &e) || !e.Temporary() {
		t.Fatalf("Put over a failing device: %v, want a temporary *store.Error of %v", err, want)
	}
	if err := s.Health(); !errors.Is(err, want) {
		t.Errorf("Health() = %v, want %v", err, want)
	}
	if len(pages) < testStage/4096 {
		t.Errorf("only %d pages stored before", len(pages))
	}
	wantAll(t, s, pages)
	d.set(heal)
	eventually(t, "Health recovers", func() bool { return s.Health() == nil })
	more, err := fill(t, s, uint64(len(pages)), 2000)
	if err != nil {
		t.Fatalf("Put over a device that works again: %v", err)
	}
	drain(t, s)
	wantAll(t, s, pages)
	wantAll(t, s, more)
	for _, p := range append(pages, more...) {
		s.Free(p.ref)
	}
	if st := s.Stats(); st.Live != 0 || st.Misused != 0 || st.Corrupt != 0 {
		t.Errorf("all freed, but %+v", st)
	}
	if n := s.stage.staged.Load(); n != 0 {
		t.Errorf("%d entries left in the stage", n)
	}
}

func TestWriteEIO(t *testing.T) {
	s, d := openFaulty(t)
	d.pwrite = func([]byte, int64) (int, error) { return 0, syscall.EIO }
	backoff(t, s, d, syscall.EIO, func() { d.pwrite = nil })
}

// A device may take the writes and say only at the end that it lost them.
func TestSyncEIO(t *testing.T) {
	s, d := openFaulty(t)
	d.sync = func() error { return syscall.EIO }
	backoff(t, s, d, syscall.EIO, func() { d.sync = nil })
}

func TestWriteENOSPC(t *testing.T) {
	s, d := openFaulty(t)
	d.pwrite = func([]byte, int64) (int, error) { return 0, syscall.ENOSPC }
	backoff(t, s, d, syscall.ENOSPC, func() { d.pwrite = nil })
	if n := len(s.stage.moved); n != 0 {
		t.Errorf("%d blobs moved for a full disk", n)
	}
}

// A part of the device that is bad for good is left for another.
func TestBadRegionIsLeft(t *testing.T) {
	s, d := openFaulty(t)
	d.pwrite = func(b []byte, off int64) (int, error) {
		if off < disk.DataStart+64<<10 {
			return 0, syscall.EIO
		}
		return -1, nil
	}
	pages, _ := fill(t, s, 0, 60)
	_, err := fill(t, s, 1000, 10)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "blobs move", func() bool {
		s.stage.mu.RLock()
		defer s.stage.mu.RUnlock()
		return s.stage.err == nil && len(s.stage.moved) > 0
	})
	drain(t, s)
	// Out of the stage, so that they are read from where they moved.
	more, err := fill(t, s, 2000, 1000)
	if err != nil {
		t.Fatal(err)
	}
	drain(t, s)
	wantAll(t, s, pages)
	wantAll(t, s, more)
	for _, p := range pages {
		s.Free(p.ref)
	}
	if n := len(s.stage.moved); n > 10 {
		t.Errorf("%d blobs still moved after they were freed", n)
	}
}

func TestPartialWrites(t *testing.T) {
	s, d := openFaulty(t)
	r := rand.New(rand.NewPCG(1, 1))
	d.pwrite = func(b []byte, off int64) (int, error) { return 1 + r.IntN(len(b)), nil }
	pages, err := fill(t, s, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	drain(t, s)
	wantAll(t, s, pages)
}

func TestWriteOfNothingIsAnError(t *testing.T) {
	s, d := openFaulty(t)
	d.pwrite = func(b []byte, off int64) (int, error) { return 0, nil }
	if _, err := fill(t, s, 0, 10000); err == nil {
		t.Error("Put goes on though nothing is ever written")
	}
}

// A hung device holds Put up for a bounded time only.
func TestHungDevice(t *testing.T) {
	s, d := openFaulty(t)
	hang := make(chan struct{})
	d.sync = func() error { <-hang; return nil }
	pages, err := fill(t, s, 0, 10000)
	if !errors.Is(err, errBehind) || !errors.Is(s.Health(), errBehind) {
		t.Errorf("Put on a hung device: %v, health %v", err, s.Health())
	}
	wantAll(t, s, pages)
	d.set(func() { d.sync = nil })
	close(hang)
	eventually(t, "Health recovers", func() bool { return s.Health() == nil })
	if _, err := fill(t, s, 10000, 1000); err != nil {
		t.Error(err)
	}
}

func TestReserveENOSPC(t *testing.T) {
	s, d := openFaulty(t)
	d.set(func() { d.reserve = func() error { return syscall.ENOSPC } })
	var refs [1]store.Ref
	n, err := s.Put([][]byte{storetest.Page("half", 1)}, refs[:])
	var e *store.Error
	if n != 0 || !errors.Is(err, store.ErrFull) || !errors.Is(err, syscall.ENOSPC) || !errors.As(err, &e) || !e.Temporary() {
		t.Errorf("Put = %d, %v; want a temporary ErrFull that is ENOSPC too", n, err)
	}
	if st := s.Stats(); st.Live != 0 || st.Staged != 0 {
		t.Errorf("something is kept: %+v", st)
	}
	if n, err := s.Put([][]byte{storetest.Page("zero", 1)}, refs[:]); n != 1 {
		t.Errorf("a page of zeros needs no room, but: %v", err)
	}
	d.set(func() { d.reserve = nil })
	pages, err := fill(t, s, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	wantAll(t, s, pages)
}

func TestReadErrors(t *testing.T) {
	s, d := openFaulty(t)
	pages, err := fill(t, s, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	drain(t, s)
	d.set(func() { d.noTry = true; d.pread = func(int64) error { return syscall.EIO } })
	dst := make([]byte, mem.PageSize)
	err = s.Get(context.Background(), pages[0].ref, dst)
	var e *store.Error
	if !errors.Is(err, syscall.EIO) || !errors.As(err, &e) || e.Off != place(pages[0].ref.Loc()) || e.Temporary() {
		t.Errorf("Get = %v, want EIO at its offset", err)
	}
	if errors.Is(err, store.ErrCorrupt) {
		t.Error("a page that cannot be read is called corrupt")
	}
	d.set(func() { d.pread = nil })
	wantAll(t, s, pages)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Get(ctx, pages[0].ref, dst); !errors.Is(err, context.Canceled) {
		t.Errorf("Get with a context that ended: %v", err)
	}
}

// What comes back soon never reaches the device.
func TestFreedBeforeWritten(t *testing.T) {
	s, d := openFaulty(t)
	for n := range uint64(100) {
		pages, err := fill(t, s, n*10, 10)
		if err != nil {
			t.Fatal(err)
		}
		wantAll(t, s, pages)
		for _, p := range pages {
			s.Free(p.ref)
		}
	}
	d.set(func() {
		if d.writes != 0 {
			t.Errorf("%d writes for pages that were all freed", d.writes)
		}
	})
	if n := s.Stats().Staged; n != 0 {
		t.Errorf("%d bytes staged for pages that were all freed", n)
	}
}

// Blobs come to the disk in long runs.
func TestFewWrites(t *testing.T) {
	s, d := openFaulty(t)
	pages := make([][]byte, 2000)
	for i := range pages {
		pages[i] = storetest.Page("raw", uint64(i))
	}
	refs := make([]store.Ref, len(pages))
	if _, err := s.Put(pages, refs); err != nil {
		t.Fatal(err)
	}
	drain(t, s)
	d.set(func() {
		if d.writes > len(pages)/8 {
			t.Errorf("%d writes for %d pages", d.writes, len(pages))
		}
	})
}

// H20: each single bit of each stored blob matters, and so does the file's
// end.
func TestFlippedBitAndTruncation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pages")
	f, err := disk.OpenNamed(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newStore(f, "file "+path, Options{}, testStage)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var refs []store.Ref
	var shapes [][]byte
	for _, shape := range []string{"small", "half", "raw"} {
		shapes = append(shapes, storetest.Page(shape, 1))
		refs = append(refs, storetest.Put(t, s, shapes[len(shapes)-1]))
	}
	if _, err := fill(t, s, 0, 400); err != nil {
		t.Fatal(err)
	}
	drain(t, s)
	g, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	dst := make([]byte, mem.PageSize)
	harmless, total := 0, 0
	for k, ref := range refs {
		total += ref.Len()
		var b [1]byte
		for i := range ref.Len() {
			at := place(ref.Loc()) + int64(i)
			if _, err := g.ReadAt(b[:], at); err != nil {
				t.Fatal(err)
			}
			good := b[0]
			b[0] ^= 1 << (i % 8)
			if _, err := g.WriteAt(b[:], at); err != nil {
				t.Fatal(err)
			}
			what := fmt.Sprintf("byte %d of a %v flipped", i, ref)
			// Some bits of a compressed blob do not matter: a match may be
			// taken from another place with the same bytes. Then the page is
			// right, and that is what counts.
			err := s.Get(context.Background(), ref, dst)
			if err != nil || ref.Kind() == store.KindRaw {
				wantCorrupt(t, s, ref, dst, what)
			} else if !bytes.Equal(dst, shapes[k]) {
				t.Fatalf("%s: a wrong page", what)
			} else {
				harmless++
			}
			b[0] = good
			if _, err := g.WriteAt(b[:], at); err != nil {
				t.Fatal(err)
			}
		}
	}
	if harmless > total/20 {
		t.Errorf("%d of %d flips were harmless", harmless, total)
	}
	storetest.Want(t, s, refs[1], shapes[1])
	for _, size := range []int64{place(refs[1].Loc()) + 100, disk.DataStart, 0} {
		if err := g.Truncate(size); err != nil {
			t.Fatal(err)
		}
		wantCorrupt(t, s, refs[1], dst, fmt.Sprintf("truncated to %d", size))
	}
	// Extended again: zeros are not the page either.
	if err := g.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	wantCorrupt(t, s, refs[1], dst, "a hole")
}

func wantCorrupt(t *testing.T, s store.Store, ref store.Ref, dst []byte, what string) {
	t.Helper()
	ok, err := s.TryGet(ref, dst)
	if ok || err != nil && !errors.Is(err, store.ErrCorrupt) {
		t.Fatalf("%s: TryGet = %v, %v", what, ok, err)
	}
	var e *store.Error
	if err := s.Get(context.Background(), ref, dst); !errors.Is(err, store.ErrCorrupt) || !errors.As(err, &e) {
		t.Fatalf("%s: Get = %v, want a *store.Error of ErrCorrupt", what, err)
	}
}
