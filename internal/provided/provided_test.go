// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provided

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/internal/testutil"
)

// TestProvided runs the table. What is excused has to fail: an excuse that holds
// no more is taken off the list.
func TestProvided(t *testing.T) { run(t, false) }

// TestHuge does it for memory of huge pages, of which there is one pool that other
// tests wait for.
func TestHuge(t *testing.T) { run(t, true) }

func run(t *testing.T, huge bool) {
	b, err := Backend(slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		testutil.Need(t, false, err.Error())
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := conformance.NewSuite(b)
	if err != nil {
		t.Fatal(err)
	}
	s.All = true
	for _, cs := range conformance.Cases() {
		if cs.Seed {
			continue
		}
		for _, m := range cs.Kinds() {
			if m.Huge() == huge && cs.Title(m) != fatal.title {
				t.Run(cs.Title(m), func(t *testing.T) { judge(t, s.Run(cs, m)) })
			}
		}
	}
}

func judge(t *testing.T, out conformance.Outcome) {
	why := Excuse(out.Title())
	switch {
	case out.Status == conformance.Pass && why != "":
		t.Errorf("it passes, and is excused since %s", why)
	case out.Status == conformance.Pass:
	case why != "":
		t.Logf("excused, since %s: %s", why, out.Why)
	case out.Status == conformance.Skip:
		testutil.Need(t, false, out.Why)
	default:
		t.Error(out.Why)
	}
}

// TestExcuses: each is about a case that there is.
func TestExcuses(t *testing.T) {
	if !slices.ContainsFunc(conformance.Cases(), func(cs conformance.Case) bool { return cs.Name == fatal.title }) {
		t.Errorf("there is no case %s", fatal.title)
	}
	used := make([]bool, len(excuses))
	for _, cs := range conformance.Cases() {
		for _, m := range cs.Kinds() {
			for i, p := range patterns() {
				used[i] = used[i] || !cs.Seed && p.MatchString(cs.Title(m))
			}
		}
	}
	for i, e := range excuses {
		if !used[i] {
			t.Errorf("no case is what is excused since %s", e.why)
		}
	}
}
