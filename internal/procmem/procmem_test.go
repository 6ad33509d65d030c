// SPDX-License-Identifier: Apache-2.0

package procmem

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
)

func TestParseMaps(t *testing.T) {
	got, err := parseMaps([]byte(`55d0c0a00000-55d0c0a21000 rw-p 00000000 00:00 0                          [heap]
7f00a0000000-7f00a0021000 rw-p 00000000 00:00 0 
7f00a1000000-7f00a1001000 r-xp 00001000 fe:00 1234                       /lib/a file with spaces.so
7f00a2000000-7f00a2001000 rw-s 00000000 00:01 99                         /dev/zero (deleted)
7f00a3000000-7f00a3001000 rw-p 00000000 00:06 5                          /dev/zero
7f00a4000000-7f00a4001000 ---p 00000000 00:00 0                          [anon:arena]
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
`))
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		Name  string
		Anon  bool
		Pages int
	}
	var rows []row
	for _, v := range got {
		rows = append(rows, row{v.Name, v.Anonymous(), v.Pages()})
	}
	want := []row{
		{"[heap]", true, 33},
		{"", true, 33},
		{"/lib/a file with spaces.so", false, 1},
		{"/dev/zero (deleted)", false, 1},
		{"/dev/zero", false, 1},
		{"[anon:arena]", true, 1},
		{"[stack]", false, 33},
	}
	if d := cmp.Diff(want, rows); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"x\n", "10-0 rw-p 0 0 0\n", "1-2 rw 0 0 0\n", "1000 rw-p 0 0 0\n"} {
		if _, err := parseMaps([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestStatm(t *testing.T) {
	u, err := parseStatm("100 50 20 1 0 60 0\n")
	if err != nil || u != (Usage{Anon: 30 * mem.PageSize, File: 20 * mem.PageSize}) {
		t.Errorf("got %+v, %v", u, err)
	}
	for _, bad := range []string{"", "1 2", "1 x 2", "1 -2 2"} {
		if _, err := parseStatm(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestPresent touches every third page and expects all ways of asking to
// name exactly those, and no guards.
func TestPresent(t *testing.T) {
	const pages = 1200 // more than one batch of either way
	b, err := syscall.Mmap(-1, 0, pages*mem.PageSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(b)
	base := mem.Addr(uintptr(unsafe.Pointer(&b[0])))
	var want []mem.Range
	for i := 0; i < pages; i += 3 {
		b[i*mem.PageSize] = 1
		want = append(want, mem.MakeRange(base+mem.Addr(i*mem.PageSize), mem.PageSize))
	}
	// Where there are none it is a test of the rest.
	_ = unix.Madvise(b[7*mem.PageSize:9*mem.PageSize], unix.MADV_GUARD_INSTALL)
	pm, err := OpenPagemap(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer pm.Close()
	old := &Pagemap{f: pm.f, vec: pm.vec, noGuards: true}
	for _, way := range []struct {
		name string
		f    func(mem.Range, func(mem.Range)) error
	}{{"read", pm.read}, {"scan without guards", old.Present}, {"any", pm.Present}} {
		var got []mem.Range
		if err := way.f(mem.MakeRange(base, pages*mem.PageSize), func(r mem.Range) { got = append(got, r) }); err != nil {
			t.Errorf("%s: %v", way.name, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", way.name, d)
		}
	}
}

// TestIsThere has words that Linux 6.18 gave. What was swapped out was taken for what is
// not there, and came back beyond the limit.
func TestIsThere(t *testing.T) {
	for _, tc := range []struct {
		name string
		word uint64
		want bool
	}{
		{"in memory", 0x810000000036b643, true},
		{"swapped out", 0x4000000000000020, true},
		{"never touched", 0, false},
		{"a guard", 0x440000000000009f, false},
		{"poison", 0x400000000000005f, false},
	} {
		if got := isThere(tc.word); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestFlagged(t *testing.T) {
	b, err := unix.Mmap(-1, 0, 4*mem.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	if err := unix.Madvise(b[mem.PageSize:3*mem.PageSize], unix.MADV_WIPEONFORK); err != nil {
		t.Fatal(err)
	}
	got, err := Flagged(os.Getpid(), "wf")
	at := mem.Addr(uintptr(unsafe.Pointer(&b[mem.PageSize])))
	if want := mem.MakeRange(at, 2*mem.PageSize); err != nil || !slices.Contains(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if got, err := Flagged(0, "wf"); err == nil {
		t.Errorf("of no process: %v", got)
	}
}

func TestRead(t *testing.T) {
	src := []byte("some bytes of this process")
	a, b := make([]byte, 4), make([]byte, 5)
	at := mem.Addr(uintptr(unsafe.Pointer(&src[0])))
	if err := Read(os.Getpid(), []Segment{{at, a}, {at + 5, b}}); err != nil {
		t.Skipf("process_vm_readv is not permitted here: %v", err)
	}
	if string(a) != "some" || string(b) != "bytes" {
		t.Errorf("read %q and %q", a, b)
	}
	if err := Read(os.Getpid(), []Segment{{mem.PageSize, a}}); err == nil {
		t.Error("read memory that is not mapped")
	}
}

// FuzzParseMaps: what is taken for a mapping is one, and names come whole.
func FuzzParseMaps(f *testing.F) {
	f.Add([]byte("7f0000000000-7f0000021000 rw-p 00000000 00:00 0 \n"))
	f.Add([]byte("555555554000-555555556000 r-xp 00002000 fe:01 1234                       /usr/bin/a b (deleted)\n"))
	f.Add([]byte("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n"))
	f.Add([]byte("1000-1000 rw-p 0 0:0 0\n2000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		vmas, err := parseMaps(b)
		if err != nil {
			return
		}
		if lines := bytes.Count(b, []byte{'\n'}); len(vmas) < lines || len(vmas) > lines+1 {
			t.Errorf("%d mappings in %d lines", len(vmas), lines)
		}
		for _, v := range vmas {
			if v.Empty() {
				t.Errorf("an empty mapping: %+v", v)
			}
			if again, err := parseVMA(fmt.Sprintf("%x-%x %s %08x %02x:%02x %d %s", uint64(v.Start), uint64(v.End),
				perms(v), v.Offset, v.Dev>>32, uint32(v.Dev), v.Inode, v.Name)); err != nil || again != v {
				t.Errorf("%+v is read back as %+v, %v", v, again, err)
			}
		}
	})
}

func perms(v VMA) string {
	b := []byte("---p")
	for i, on := range []bool{v.Read, v.Write, v.Exec, v.Shared} {
		if on {
			b[i] = "rwxs"[i]
		}
	}
	return string(b)
}

// FuzzStatm: what is taken counts whole pages, and each once.
func FuzzStatm(f *testing.F) {
	f.Add("100 50 20 1 0 60 0\n")
	f.Add("0 20 50")
	f.Add("1 4503599627370495 4503599627370495")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := parseStatm(s)
		if err != nil {
			return
		}
		if u.Anon%mem.PageSize != 0 || u.File%mem.PageSize != 0 || u.Anon+u.File < u.Anon {
			t.Errorf("%q is %+v", s, u)
		}
		again, err := parseStatm(fmt.Sprintf("0 %d %d 0\n", (u.Anon+u.File)/mem.PageSize, u.File/mem.PageSize))
		if err != nil || again != u {
			t.Errorf("%q is %+v, and read back %+v, %v", s, u, again, err)
		}
	})
}
