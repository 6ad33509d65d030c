// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package collect

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseRights(t *testing.T) {
	two := unix.UnixRights(3, 4)
	cred := unix.UnixCredentials(&unix.Ucred{})
	for _, tc := range []struct {
		name string
		b    []byte
		want []int
	}{
		{"none", nil, nil},
		{"two", two, []int{3, 4}},
		{"behind others", append(slices.Clone(cred), two...), []int{3, 4}},
		{"before others", append(slices.Clone(two), cred...), []int{3, 4}},
		{"twice", append(slices.Clone(two), unix.UnixRights(5)...), []int{3, 4, 5}},
		{"not padded", two[:unix.CmsgLen(8)], []int{3, 4}},
		{"cut", two[:unix.CmsgLen(7)], nil},
		{"no room for a head", two[:15], nil},
		{"too short for its own head", make([]byte, 32), nil},
	} {
		if got := parseRights(tc.b); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// FuzzControl feeds what is taken out of the memory of programs.
func FuzzControl(f *testing.F) {
	f.Add(unix.UnixRights(3, 4))
	f.Add(append(unix.UnixCredentials(&unix.Ucred{}), unix.UnixRights(1)...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 1, 0, 0, 0, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		if n := len(parseRights(b)); n > len(b)/4 {
			t.Errorf("%d descriptors in %d bytes", n, len(b))
		}
		if n := len(parseIovecs(b)); n != len(b)/iovecSize {
			t.Errorf("%d segments in %d bytes", n, len(b))
		}
		if n := len(parseMessages(b)); n != len(b)/32 {
			t.Errorf("%d messages in %d bytes", n, len(b))
		}
		if len(b) >= msghdrSize {
			parseMsghdr(b[:msghdrSize])
		}
	})
}
