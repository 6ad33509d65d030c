// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"testing"

	"github.com/faultline-go/faultline/internal/testutil"
)

// runs returns the kinds of memory of a case.
func runs(cs Case) []Memory {
	if cs.Memory == nil {
		return []Memory{None}
	}
	return cs.Memory
}

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
		for _, m := range runs(cs) {
			title := cs.Name
			if m != None {
				title += "/" + m.String()
			}
			t.Run(title, func(t *testing.T) {
				switch out := s.Run(cs, m); out.Status {
				case Fail:
					t.Error(out.Why)
				case Skip:
					testutil.Need(t, false, out.Why)
				}
			})
		}
	}
}

// TestKernel runs the table on the running kernel.
func TestKernel(t *testing.T) {
	b, err := Kernel()
	if err != nil {
		testutil.Need(t, false, err.Error())
	}
	testBackend(t, b)
}
