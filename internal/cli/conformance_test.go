// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/faultline-go/faultline/conformance"
)

func TestConformanceLines(t *testing.T) {
	var b strings.Builder
	err := writeConformance(&b, &conformance.Report{
		Backend: "kernel", Release: "6.18.44", Passed: 2, Failed: 1, Skipped: 1, Took: 1234 * time.Millisecond,
		Rows: []conformance.RowVerdict{
			{Row: conformance.Row{ID: "B.1.1", Text: "it opens"}, Status: conformance.Pass, Cases: []string{"a", "b"}},
			{Row: conformance.Row{ID: "B.1.2", Text: "it closes"}, Status: conformance.Fail, Cases: []string{"c"}},
		},
		Runs: []conformance.Outcome{
			{Case: "c", Memory: "anon", Status: conformance.Fail, Why: "got this,\nwant that"},
			{Case: "d", Status: conformance.Skip, Why: "too old"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `pass  B.1.1               it opens
                          a, b
fail  B.1.2               it closes
                          c

skip  d: too old

fail  c/anon: got this,
      want that

kernel 6.18.44: 2 passed, 1 failed, 1 skipped in 1.23s.
`
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Error(d)
	}
}

// TestManNamesConformance keeps the manual and the program together.
func TestManNamesConformance(t *testing.T) {
	page := readFile(t, "../../docs/man/faultline-conformance.1")
	for _, word := range append(backendNames(), conformance.Schema, "-backend", "-run", "-json") {
		if !strings.Contains(page, word) {
			t.Errorf("faultline-conformance(1) does not mention %s", word)
		}
	}
}
