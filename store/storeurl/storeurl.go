// SPDX-License-Identifier: Apache-2.0

// Package storeurl opens the store that a URL names, as users write it on the
// command line:
//
//	mem:                     this process's memory
//	mem:?max=1GiB            the same, bounded
//	file:                    an unnamed temporary file
//	file:/path               the file at /path, which is removed at the end
//	file:/path?max=10GiB     the same, bounded
//
// A path is taken as it is, without escapes, up to the first question mark.
package storeurl

import (
	"fmt"
	"strings"

	"github.com/faultline-go/faultline/internal/size"
	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/store/file"
	"github.com/faultline-go/faultline/store/mem"
)

// Known lists the forms of URL, for messages.
const Known = "mem:, file:, file:/PATH, each with ?max=SIZE"

// URL is a parsed store URL.
type URL struct {
	Scheme string // "mem" or "file"
	Path   string // of a file; empty for an unnamed one
	Max    int64  // bytes, zero for no bound
}

// Parse reads a store URL. It opens nothing. The error is one line that says
// what is wrong and which forms there are.
func Parse(text string) (URL, error) {
	fail := func(format string, args ...any) (URL, error) {
		return URL{}, fmt.Errorf("store %q: %s (known: %s)", text, fmt.Sprintf(format, args...), Known)
	}
	scheme, rest, ok := strings.Cut(text, ":")
	if !ok {
		return fail("it has no scheme")
	}
	path, query, hasQuery := strings.Cut(rest, "?")
	u := URL{Scheme: scheme, Path: path}
	switch scheme {
	case "mem":
		if path != "" {
			return fail("memory has no path")
		}
	case "file":
		// file:///path is how browsers write file:/path.
		if p, ok := strings.CutPrefix(path, "//"); ok {
			if !strings.HasPrefix(p, "/") {
				return fail("it names a host: write file:/PATH")
			}
			u.Path = p
		}
		if strings.ContainsRune(u.Path, 0) {
			return fail("the path has a zero byte")
		}
		if strings.HasSuffix(u.Path, "/") {
			return fail("the path is a directory: name a file in it")
		}
	default:
		return fail("unknown scheme %q", scheme)
	}
	if !hasQuery {
		return u, nil
	}
	for option := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(option, "=")
		if key != "max" {
			return fail("unknown option %q", key)
		}
		if u.Max != 0 {
			return fail("max is given twice")
		}
		s, err := size.Parse(value)
		if err != nil {
			return fail("max: %v", err)
		}
		if _, relative := s.Relative(); relative {
			return fail("max must be a size, not a share")
		}
		if u.Max = int64(s.Of(0)); u.Max < minMax {
			return fail("max must be at least 1MiB")
		}
	}
	return u, nil
}

// minMax is the least bound that lets a store hold blobs of some sizes.
const minMax = 1 << 20

// Open opens the store that text names. The error is one line.
func Open(text string, c store.Codec) (store.Store, error) {
	u, err := Parse(text)
	if err != nil {
		return nil, err
	}
	// A nil *Store in a store.Store would not be nil, hence the two ifs.
	if u.Scheme == "mem" {
		s, err := mem.Open(mem.Options{Codec: c, MaxBytes: u.Max})
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	s, err := file.Open(file.Options{Path: u.Path, Codec: c, MaxBytes: u.Max})
	if err != nil {
		return nil, err
	}
	return s, nil
}
