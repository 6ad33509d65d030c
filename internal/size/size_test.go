// SPDX-License-Identifier: Apache-2.0

package size

import (
	"errors"
	"math"
	"strings"
	"testing"
	"testing/fstest"

	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]uint64{
		"4096":                4096,
		"1":                   1,
		"17B":                 17,
		"512KiB":              512 << 10,
		"512k":                512 << 10,
		"64MiB":               64 << 20,
		"64M":                 64 << 20,
		"64 mib":              64 << 20,
		" 64M ":               64 << 20,
		"1G":                  1 << 30,
		"1.5GiB":              3 << 29,
		".5K":                 512,
		"2.K":                 2048,
		"0.3M":                314572, // 314572.8, down
		"1T":                  1 << 40,
		"8191P":               8191 << 50,
		"0000000000000000001": 1,
		"9223372036854775807": math.MaxInt64,
	} {
		got, err := Parse(text)
		if err != nil {
			t.Errorf("Parse(%q): %v", text, err)
			continue
		}
		if n := got.Of(1); n != want {
			t.Errorf("Parse(%q) = %d bytes, want %d", text, n, want)
		}
		if _, relative := got.Relative(); relative || got.IsZero() {
			t.Errorf("Parse(%q) is a share of memory or unset", text)
		}
	}
}

func TestParsePercent(t *testing.T) {
	for text, want := range map[string]uint64{
		"25%":     250,
		"12.5%":   125,
		"100%":    1000,
		"0.0001%": 1, // never nothing
	} {
		s, err := Parse(text)
		if err != nil {
			t.Errorf("Parse(%q): %v", text, err)
			continue
		}
		if got := s.Of(1000); got != want {
			t.Errorf("%s of 1000 = %d, want %d", text, got, want)
		}
		if s.String() != text {
			t.Errorf("Parse(%q).String() = %q", text, s)
		}
	}
	if got := Percent(100).Of(math.MaxUint64); got != math.MaxInt64 {
		t.Errorf("100%% of everything = %d, which a signed size cannot hold", got)
	}
}

func TestParseRefuses(t *testing.T) {
	for text, reason := range map[string]string{
		"":                       "empty",
		"  ":                     "empty",
		"-1":                     "negative",
		"-5%":                    "negative",
		"+5":                     "begin with a number",
		"0":                      "zero",
		"0.00G":                  "zero",
		"0%":                     "zero",
		"0.1":                    "less than one byte",
		"NaN":                    "begin with a number",
		"Inf":                    "begin with a number",
		"1e9":                    `unknown unit "e9"`,
		"0x40":                   `unknown unit "x40"`,
		"1/3":                    `unknown unit "/3"`,
		"1_000":                  `unknown unit "_000"`,
		"64Q":                    `unknown unit "q"`,
		"64MB":                   "write MiB",
		"64kb":                   "write KiB",
		"1.2.3":                  "begin with a number",
		".":                      "begin with a number",
		"M":                      "begin with a number",
		"101%":                   "up to 100%",
		"100.00001%":             "up to 100%",
		"8192P":                  "address space",
		"9223372036854775808":    "address space",
		"99999999999999999999G":  "address space",
		strings.Repeat("9", 100): "digits",
		"1é":                     "unknown unit",
		"٣":                      "begin with a number",
	} {
		s, err := Parse(text)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("Parse(%q) = %v, %v; want an *Error", text, s, err)
			continue
		}
		if !strings.Contains(err.Error(), reason) || !strings.Contains(err.Error(), "64MiB") {
			t.Errorf("Parse(%q): %v; want %q and what is accepted", text, err, reason)
		}
	}
}

func TestFormat(t *testing.T) {
	for n, want := range map[uint64]string{
		0:              "0B",
		1023:           "1023B",
		1024:           "1KiB",
		1536:           "1.5KiB",
		64 << 20:       "64MiB",
		1<<20 - 1:      "1MiB",
		3 << 29:        "1.5GiB",
		1 << 50:        "1PiB",
		math.MaxUint64: "16.0EiB",
	} {
		if got := Format(n); got != want {
			t.Errorf("Format(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestFormatReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64Range(1, 1<<59).Draw(t, "n")
		s, err := Parse(Format(n))
		if err != nil {
			t.Fatalf("Format(%d) = %q: %v", n, Format(n), err)
		}
		if d := math.Abs(float64(s.Of(0))-float64(n)) / float64(n); d > 0.051 {
			t.Fatalf("Format(%d) = %q, off by %.1f%%", n, Format(n), d*100)
		}
	})
}

func TestFlagValue(t *testing.T) {
	s := Bytes(1 << 20)
	if err := s.Set("bogus"); err == nil || s.Of(0) != 1<<20 {
		t.Errorf("Set(bogus) = %v and left %v", err, s)
	}
	if err := s.Set("2M"); err != nil || s.String() != "2M" || s.Of(0) != 2<<20 {
		t.Errorf("Set(2M) = %v and left %v", err, s)
	}
	if s.Type() != "SIZE" {
		t.Errorf("Type() = %q", s.Type())
	}
}

const meminfo = "MemTotal:       1000 kB\nMemFree:  10 kB\n"

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }

func TestMemory(t *testing.T) {
	for _, tc := range []struct {
		name   string
		root   fstest.MapFS
		limit  uint64
		usable uint64
	}{
		{"no cgroup", fstest.MapFS{"proc/meminfo": file(meminfo)}, 0, 1000 << 10},
		{"v2, ancestor lower", fstest.MapFS{
			"proc/meminfo":                    file(meminfo),
			"proc/self/cgroup":                file("0::/a/b\n"),
			"sys/fs/cgroup/a/memory.max":      file("4096\n"),
			"sys/fs/cgroup/a/b/memory.max":    file("8192\n"),
			"sys/fs/cgroup/memory.max":        file("max\n"),
			"sys/fs/cgroup/elsewhere/ignored": file("1\n"),
		}, 4096, 4096},
		{"v2, max", fstest.MapFS{
			"proc/meminfo":               file(meminfo),
			"proc/self/cgroup":           file("0::/a\n"),
			"sys/fs/cgroup/a/memory.max": file("max\n"),
		}, 0, 1000 << 10},
		{"v2 in a container, host path unknown", fstest.MapFS{
			"proc/meminfo":             file(meminfo),
			"proc/self/cgroup":         file("0::/../../docker/1234\n"),
			"sys/fs/cgroup/memory.max": file("123456\n"),
		}, 123456, 123456},
		{"v1 above total", fstest.MapFS{
			"proc/meminfo":     file(meminfo),
			"proc/self/cgroup": file("4:memory:/x\n0::/\n"),
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes": file("9999999\n"),
		}, 9999999, 1000 << 10},
		{"v1 unlimited, v2 file not ours", fstest.MapFS{
			"proc/meminfo":     file(meminfo),
			"proc/self/cgroup": file("0::/\n4:cpu,memory:/x\n"),
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes": file("9223372036854771712\n"),
			"sys/fs/cgroup/memory.max":                     file("5\n"),
		}, 0, 1000 << 10},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := memory(tc.root)
			if err != nil {
				t.Fatal(err)
			}
			if m.Limit != tc.limit || m.Usable() != tc.usable {
				t.Errorf("limit %d usable %d, want %d and %d", m.Limit, m.Usable(), tc.limit, tc.usable)
			}
		})
	}
	for _, bad := range []fstest.MapFS{
		{},
		{"proc/meminfo": file("MemFree: 1 kB\n")},
		{"proc/meminfo": file("MemTotal: x kB\n")},
		{"proc/meminfo": file("MemTotal: 99999999999999999999999 kB\n")},
	} {
		if m, err := memory(bad); err == nil {
			t.Errorf("memory(%v) = %+v, want an error", bad, m)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"64MiB", "1.5G", "25%", "-1", "1e9", "", "64MB", "9223372036854775808", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			if !s.IsZero() {
				t.Fatalf("Parse(%q) = %+v beside %v", text, s, err)
			}
			return
		}
		n := s.Of(1 << 40)
		if s.IsZero() || n == 0 || n > math.MaxInt64 {
			t.Fatalf("Parse(%q) = %+v, %d bytes", text, s, n)
		}
		// What it prints as must mean the same.
		again, err := Parse(s.String())
		if err != nil || again != s {
			t.Fatalf("Parse(%q).String() = %q reads back as %+v, %v", text, s, again, err)
		}
	})
}
