// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/uffd"
)

// budget is how long a run may take before it counts as hung.
const budget = 20 * time.Second

var want = regexp.MustCompile(`^32 pages came in when they were touched
16 were dropped, and read as zeros
8 were unmapped, and 4 goroutines agree on the rest
[1-9][0-9]* faults, [0-9]+ pages were there already, [0-9]+ times put off, 202 events
$`)

// TestServe runs the program as a user would. 200 of its madvise calls race
// with faults (H2, H5); each run must see every event and no wrong byte.
func TestServe(t *testing.T) {
	fd, err := uffd.Open(uffd.Options{UserModeOnly: true})
	testutil.Need(t, err == nil, "needs userfaultfd")
	fd.Close()
	bin := filepath.Join(t.TempDir(), "serve")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), budget)
		out, err := exec.CommandContext(ctx, bin).CombinedOutput()
		cancel()
		if err != nil || !want.Match(out) {
			t.Fatalf("%v, and it says:\n%s", err, out)
		}
	}
}
