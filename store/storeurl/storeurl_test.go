// SPDX-License-Identifier: Apache-2.0

package storeurl

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/faultline-go/faultline/store"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want URL
		bad  string // part of the error
	}{
		{in: "mem:", want: URL{Scheme: "mem"}},
		{in: "mem:?max=1GiB", want: URL{Scheme: "mem", Max: 1 << 30}},
		{in: "file:", want: URL{Scheme: "file"}},
		{in: "file:?max=2M", want: URL{Scheme: "file", Max: 2 << 20}},
		{in: "file:/a/b c%20", want: URL{Scheme: "file", Path: "/a/b c%20"}},
		{in: "file:///a", want: URL{Scheme: "file", Path: "/a"}},
		{in: "file:rel?max=10GiB", want: URL{Scheme: "file", Path: "rel", Max: 10 << 30}},
		{in: "", bad: "no scheme"},
		{in: "/a", bad: "no scheme"},
		{in: "s3:bucket", bad: `unknown scheme "s3"`},
		{in: "mem:/a", bad: "memory has no path"},
		{in: "file://host/a", bad: "names a host"},
		{in: "file:/a/", bad: "directory"},
		{in: "file:/a\x00b", bad: "zero byte"},
		{in: "mem:?", bad: `unknown option ""`},
		{in: "mem:?min=1", bad: `unknown option "min"`},
		{in: "mem:?max=1GiB&max=1GiB", bad: "twice"},
		{in: "mem:?max=-1", bad: "negative"},
		{in: "mem:?max=25%", bad: "share"},
		{in: "mem:?max=64K", bad: "at least 1MiB"},
	} {
		got, err := Parse(tc.in)
		if tc.bad == "" {
			if err != nil {
				t.Errorf("Parse(%q): %v", tc.in, err)
			} else if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("Parse(%q): %s", tc.in, d)
			}
			continue
		}
		if err == nil {
			t.Errorf("Parse(%q) = %+v, want an error", tc.in, got)
			continue
		}
		msg := err.Error()
		if !strings.Contains(msg, tc.bad) || !strings.Contains(msg, Known) || strings.Contains(msg, "\n") {
			t.Errorf("Parse(%q): %q: want one line with %q and the known forms", tc.in, msg, tc.bad)
		}
	}
}

func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pages")
	for _, url := range []string{"mem:", "file:", "file:" + path} {
		s, err := Open(url, store.LZ4)
		if err != nil {
			t.Fatalf("Open(%q): %v", url, err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close %q: %v", url, err)
		}
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the named file is still there")
	}
	for _, url := range []string{"nfs:/x", "file:" + filepath.Join(path, "none")} {
		if s, err := Open(url, store.LZ4); err == nil || s != nil {
			t.Errorf("Open(%q) = %v, %v; want nil and an error", url, s, err)
		}
	}
	if s, err := Open("mem:", store.Codec(9)); err == nil || s != nil {
		t.Errorf("unknown codec: %v, %v; want nil and an error", s, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"mem:", "file:/a?max=1GiB", "file://h/a", "mem:?max=1&max=2", ":", "?"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := Parse(s)
		if err != nil {
			if u != (URL{}) {
				t.Errorf("Parse(%q) = %+v with an error", s, u)
			}
			return
		}
		if u.Scheme != "mem" && u.Scheme != "file" || u.Max < 0 || u.Scheme == "mem" && u.Path != "" {
			t.Errorf("Parse(%q) = %+v", s, u)
		}
	})
}
