// SPDX-License-Identifier: Apache-2.0

package model

import (
	"bytes"

	"os"
	"path/filepath"

	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// play plays a text on both profiles.
func play(t *testing.T, name, text string) *Timeline {
	t.Helper()
	s, err := Parse(name, text)
	if err != nil {
		t.Fatal(err)
	}
	tl, err := s.Play("")
	if err != nil {
		var b strings.Builder
		if werr := tl.Write(&b); werr != nil {
			t.Fatal(werr)
		}
		t.Fatalf("%v\n%s", err, &b)
	}
	return tl
}

// TestShipped plays the scripts that come with the program, and compares the
// timelines with those that were looked at: FAULTLINE_UPDATE=1 writes them.
func TestShipped(t *testing.T) {
	scripts := ShippedScripts()
	if len(scripts) != 6 {
		t.Fatalf("%d scripts, want 6", len(scripts))
	}
	for _, s := range scripts {
		t.Run(s.Name, func(t *testing.T) {
			var got bytes.Buffer
			if err := play(t, s.Name, s.Text).Write(&got); err != nil {
				t.Fatal(err)
			}
			golden(t, s.Name+".timeline", got.Bytes())
		})
	}
}

// golden compares got with a file in testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("FAULTLINE_UPDATE") != "" {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s: %s", name, d)
	}
}
