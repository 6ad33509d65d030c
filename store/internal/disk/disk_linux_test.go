// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
)

func temp(t *testing.T) File {
	t.Helper()
	f, _, err := OpenTemp([]string{t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func TestInterruptedCallIsRepeated(t *testing.T) {
	calls := 0
	err := retry(func() error {
		if calls++; calls < 4 {
			return unix.EINTR
		}
		return unix.EIO
	})
	if calls != 4 || !errors.Is(err, unix.EIO) {
		t.Errorf("%d calls, %v", calls, err)
	}
}

func TestTryPread(t *testing.T) {
	f := temp(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 256)
	if n, err := f.Pwrite(data, DataStart); n != len(data) || err != nil {
		t.Fatal(n, err)
	}
	var s Scratch
	b, ok, err := f.TryPread(&s, 1000, DataStart+16)
	testutil.Need(t, !f.(*osFile).off.Load(), "the file system of the temporary directory lacks RWF_NOWAIT")
	if err != nil {
		t.Fatal(err)
	}
	// What was just written is in the page cache.
	if !ok || !bytes.Equal(b, data[16:1016]) {
		t.Errorf("TryPread = %d bytes, %v", len(b), ok)
	}
	if _, ok, err := f.TryPread(&s, 100, DataStart+int64(len(data))-50); ok || err != nil {
		t.Errorf("across the end of the file: %v, %v", ok, err)
	}
	if _, ok, err := f.TryPread(&s, 100, 1<<40); ok || err != nil {
		t.Errorf("beyond the end of the file: %v, %v", ok, err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, ok, _ := f.TryPread(&s, 1000, DataStart); !ok {
			t.Error("not in the page cache")
		}
	}); n != 0 {
		t.Errorf("TryPread allocates %v times", n)
	}
}

// After an error that says that the file system cannot, nobody asks again.
func TestTryPreadOff(t *testing.T) {
	f := temp(t)
	f.(*osFile).off.Store(true)
	if _, err := f.Pwrite(make([]byte, 100), 0); err != nil {
		t.Fatal(err)
	}
	var s Scratch
	if _, ok, err := f.TryPread(&s, 100, 0); ok || err != nil {
		t.Errorf("TryPread = %v, %v", ok, err)
	}
}

func TestReserveAndPunch(t *testing.T) {
	f := temp(t)
	for _, off := range []int64{0, 64 << 10} {
		if err := f.Reserve(off, 64<<10); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := f.Size(); n != 128<<10 || err != nil {
		t.Errorf("Size = %d, %v", n, err)
	}
	if _, err := f.Pwrite([]byte("content"), 10); err != nil {
		t.Fatal(err)
	}
	if err := f.Punch(0, 64<<10); err != nil {
		testutil.Need(t, false, "no holes in files of the temporary directory: "+err.Error())
	}
	b := []byte("dirty bytes")
	if n, err := f.Pread(b, 10); n != len(b) || err != nil || !bytes.Equal(b, make([]byte, len(b))) {
		t.Errorf("a hole reads as %q, %d, %v", b, n, err)
	}
	if n, err := f.Size(); n != 128<<10 || err != nil {
		t.Errorf("Size after Punch = %d, %v", n, err)
	}
}

// A directory on a disk is taken before one in memory, and one that cannot be
// used is passed over.
func TestOpenTempChoice(t *testing.T) {
	dir := t.TempDir()
	none := filepath.Join(dir, "none")
	f, got, err := OpenTemp([]string{none, dir})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if got != dir {
		t.Errorf("took %s, want %s", got, dir)
	}
	if _, _, err := OpenTemp([]string{none}); err == nil || !bytes.Contains([]byte(err.Error()), []byte(none)) {
		t.Errorf("no directory: %v", err)
	}
	const shm = "/dev/shm"
	_, statErr := os.Stat(shm)
	testutil.Need(t, statErr == nil && inMemory(shm) && !inMemory(dir), "needs a disk and a "+shm+" in memory")
	f, got, err = OpenTemp([]string{shm, dir})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if got != dir {
		t.Errorf("took %s, want the one on a disk, %s", got, dir)
	}
}
