// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"regexp"
	"testing"

	"github.com/faultline-go/faultline/internal/testutil"
)

func testBackend(t *testing.T, b Backend) {
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := NewSuite(b)
	if err != nil {
		testutil.Need(t, false, err.Error())
	}
	for _, cs := range Cases() {
		if cs.Seed != b.Seed() {
			continue
		}
		for _, m := range cs.kinds() {
			t.Run(cs.title(m), func(t *testing.T) {
				switch out := s.Run(cs, m); out.Status {
				case Fail:
					t.Error(out.Why)
				case Skip:
					if b.Release() == host() {
						testutil.Need(t, false, out.Why)
					}
					// The machine can do nothing about what a model lacks.
					t.Log(out.Why)
				}
			})
		}
	}
}

// host is the release of the running kernel, or empty where there is none.
func host() string {
	b, err := Kernel()
	if err != nil {
		return ""
	}
	return b.Release()
}

// TestKernel runs the table on the running kernel.
func TestKernel(t *testing.T) {
	b, err := Kernel()
	if err != nil {
		testutil.Need(t, false, err.Error())
	}
	testBackend(t, b)
}

// TestModel runs it on package vkernel.
func TestModel(t *testing.T) {
	b, err := Model()
	if err != nil {
		t.Fatal(err)
	}
	testBackend(t, b)
}

// TestSeed runs what is about the patch of 2015 on package vkernel.
func TestSeed(t *testing.T) {
	b, err := SeedModel()
	if err != nil {
		t.Fatal(err)
	}
	testBackend(t, b)
}

// TestRows: no row without a case, no case without a row, no name twice.
func TestRows(t *testing.T) {
	known := map[string]bool{}
	for _, r := range Rows() {
		if known[r.ID] || r.Text == "" {
			t.Errorf("row %s is there twice, or says nothing", r.ID)
		}
		known[r.ID] = true
	}
	names := map[string]bool{}
	for _, cs := range Cases() {
		if names[cs.Name] {
			t.Errorf("two cases are named %s", cs.Name)
		}
		names[cs.Name] = true
		if len(cs.Rows) == 0 {
			t.Errorf("case %s is about no row", cs.Name)
		}
		for _, id := range cs.Rows {
			if !known[id] {
				t.Errorf("case %s is about %s, which is no row", cs.Name, id)
			}
			if seed := id[0] == 'A'; seed != cs.Seed {
				t.Errorf("case %s, seed %v, is about row %s", cs.Name, cs.Seed, id)
			}
		}
	}
	covered := Coverage(Cases())
	for _, r := range Rows() {
		if cased := len(covered[r.ID]) > 0; cased != (r.Why == "") {
			t.Errorf("row %s: %s: has a case %v, and has none because %q", r.ID, r.Text, cased, r.Why)
		}
	}
}

// TestOlderThan covers what decides about cases of newer kernels.
func TestOlderThan(t *testing.T) {
	for _, tc := range []struct {
		release, since string
		want           bool
	}{
		{"6.18.44-fc", "6.18", false}, {"6.1.0-13-amd64", "6.8", true}, {"6.10.2", "6.8", false},
		{"5.19", "6.1", true}, {"7.2-rc1", "6.18", false}, {"unknown", "6.1", false},
	} {
		if got := olderThan(tc.release, tc.since); got != tc.want {
			t.Errorf("olderThan(%q, %q) = %v", tc.release, tc.since, got)
		}
	}
}

// TestReport: a row is judged by all of its runs.
func TestReport(t *testing.T) {
	r := &Report{Runs: []Outcome{
		{Case: "a", Rows: []string{"B.1.1", "B.1.2"}, Status: Pass},
		{Case: "b", Rows: []string{"B.1.1"}, Status: Fail},
		{Case: "b", Rows: []string{"B.1.1"}, Status: Pass},
		{Case: "c", Rows: []string{"B.1.2", "B.1.3"}, Status: Skip},
		{Case: "d", Rows: []string{"B.1.4"}, Status: Skip},
		{Case: "e", Rows: []string{"B.1.4"}, Status: Pass},
	}}
	r.sum()
	if r.Passed != 3 || r.Failed != 1 || r.Skipped != 2 {
		t.Errorf("counts: %d, %d, %d", r.Passed, r.Failed, r.Skipped)
	}
	want := map[string]Status{"B.1.1": Fail, "B.1.2": Pass, "B.1.3": Skip, "B.1.4": Pass}
	for _, v := range r.Rows {
		if v.Status != want[v.ID] || v.Text == "" {
			t.Errorf("row %+v, want %s", v, want[v.ID])
		}
		delete(want, v.ID)
	}
	if len(want) > 0 {
		t.Errorf("rows without a verdict: %v", want)
	}
	r.Rows = nil
	r.addUncased(true, regexp.MustCompile(`A\.2\.3`))
	if len(r.Rows) != 1 || r.Rows[0].ID != "A.2.3" || r.Rows[0].Status != NoCase || r.Rows[0].Why == "" {
		t.Errorf("rows without a case: %+v", r.Rows)
	}
}
