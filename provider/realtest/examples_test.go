// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package realtest

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

var served = regexp.MustCompile(`^32 pages came in when they were touched
16 were dropped, and read as zeros
8 were unmapped, and 4 goroutines agree on the rest
[1-9][0-9]* faults, [0-9]+ pages were there already, [0-9]+ times put off, 202 events
$`)

// TestServe runs the example of package uffd, a Go program whose parent serves
// the memory of its child. Each run must see every event and no wrong byte.
func TestServe(t *testing.T) {
	path := filepath.Join(public, "serve")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, "../../examples/serve").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for _, s := range surroundings {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			for range 3 {
				out, err := command(t, s.o, false, path).CombinedOutput()
				if err != nil || !served.Match(out) {
					t.Fatalf("%v, and it says:\n%s", err, out)
				}
			}
		})
	}
}
