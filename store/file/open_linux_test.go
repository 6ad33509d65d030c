// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/store/internal/disk"
	"github.com/faultline-go/faultline/store/internal/storetest"
)

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestNamedFile(t *testing.T) {
	before := descriptors(t)
	path := filepath.Join(t.TempDir(), "pages")
	s, err := Open(Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if m := st.Mode(); m != 0o600 {
		t.Errorf("mode %v, want 0600", m)
	}
	if _, err := Open(Options{Path: path}); err == nil || !strings.Contains(err.Error(), "another faultline uses it") {
		t.Errorf("a second store in the same file: %v", err)
	}
	storetest.Put(t, s, storetest.Page("half", 1))
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v, want no file", err)
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

// A run that was killed leaves its file; the next one takes it.
func TestLeftoverIsTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pages")
	left := append([]byte(disk.Magic), make([]byte, 100<<10)...)
	if err := os.WriteFile(path, left, 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode() != 0o600 || st.Size() != int64(len(disk.Magic)) {
		t.Errorf("mode %v, %d bytes: want a private, empty file", st.Mode(), st.Size())
	}
}

// H22: Close removes its own file only.
func TestCloseLeavesAnothersFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pages")
	s, err := Open(Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(path); string(b) != "mine" {
		t.Errorf("the other file: %q, %v", b, err)
	}
}

func TestRefusedPaths(t *testing.T) {
	before := descriptors(t)
	dir := t.TempDir()
	full := filepath.Join(dir, "full")
	if err := os.WriteFile(full, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "target"), link); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		full:                              "holds something else",
		link:                              "symbolic link",
		dir:                               "directory",
		fifo:                              "not a plain file",
		"/dev/null":                       "not a plain file",
		filepath.Join(dir, "none", "x"):   "no such file",
		filepath.Join(full, "x"):          "not a directory",
		filepath.Join("/proc", "pages-x"): "no such file",
	} {
		s, err := Open(Options{Path: path})
		if err == nil {
			s.Close()
			t.Errorf("%s: opened, want %q", path, want)
			continue
		}
		if msg := err.Error(); !strings.Contains(msg, want) || !strings.Contains(msg, path) || strings.Contains(msg, "\n") {
			t.Errorf("%s: %q, want one line with %q", path, msg, want)
		}
	}
	if b, err := os.ReadFile(full); string(b) != "something else" {
		t.Errorf("a refused file was changed: %q, %v", b, err)
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

func TestUnknownCodecLeavesNothing(t *testing.T) {
	before := descriptors(t)
	path := filepath.Join(t.TempDir(), "pages")
	if _, err := Open(Options{Path: path, Codec: 77}); err == nil {
		t.Error("an unknown codec is taken")
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the file is left behind")
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

func TestTempFileHasNoName(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	s, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	storetest.Put(t, s, storetest.Page("half", 1))
	if d, err := os.ReadDir(dir); err != nil || len(d) != 0 {
		t.Errorf("the directory has %v, %v", d, err)
	}
	if !strings.Contains(s.Name(), dir) && !strings.Contains(s.Name(), "/var/tmp") {
		t.Errorf("the name %q does not say where it is", s.Name())
	}
}

// tmpfs mounts a file system of n bytes in memory.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	err := syscall.Mount("faultline-test", dir, "tmpfs", 0, options)
	testutil.Need(t, err == nil, "cannot mount a tmpfs (needs root): "+errText(err))
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestRealENOSPC(t *testing.T) {
	dir := tmpfs(t, "size=8m")
	s, err := Open(Options{Path: filepath.Join(dir, "pages")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var pages []held
	for {
		more, err := fill(t, s, uint64(len(pages)), 100)
		pages = append(pages, more...)
		if err != nil {
			if !errors.Is(err, store.ErrFull) || !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("on a full disk: %v", err)
			}
			break
		}
		if len(pages) > 10000 {
			t.Fatal("the disk never gets full")
		}
	}
	if len(pages) < 2500 {
		t.Errorf("8 MiB hold only %d pages", len(pages))
	}
	wantAll(t, s, pages)
	for _, p := range pages[:1000] {
		s.Free(p.ref)
	}
	more, err := fill(t, s, 100000, 900)
	if err != nil {
		t.Errorf("Put after Free on a disk that was full: %v", err)
	}
	wantAll(t, s, pages[1000:])
	wantAll(t, s, more)
}

// Space goes back to the file system as pages are freed.
func TestFileShrinks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pages")
	s, err := Open(Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	pages, err := fill(t, s, 0, 10000)
	if err != nil {
		t.Fatal(err)
	}
	blocks := func() int64 {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	most := blocks()
	if most < 20<<20 {
		t.Fatalf("10000 pages take %d bytes", most)
	}
	for _, p := range pages {
		s.Free(p.ref)
	}
	eventually(t, "the file shrinks", func() bool { return blocks() < most/4 })
	more, err := fill(t, s, 0, 10000)
	if err != nil {
		t.Fatal(err)
	}
	wantAll(t, s, more)
	if n := blocks(); n > most+most/10 {
		t.Errorf("the same pages took %d bytes, now %d", most, n)
	}
}
