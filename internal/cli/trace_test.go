// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// TestManNamesTraceFlags keeps the manual and the program together. The members
// of the JSON are tested where they are defined.
func TestManNamesTraceFlags(t *testing.T) {
	page := readFile(t, "../../docs/man/faultline-trace.1")
	newTrace().Flags().VisitAll(func(f *pflag.Flag) {
		want := ".It Fl -" + f.Name
		if f.Shorthand != "" {
			want = ".It Fl " + f.Shorthand + " Ar file , Fl -" + f.Name
		}
		if !strings.Contains(page, want) {
			t.Errorf("faultline-trace(1) does not mention --%s", f.Name)
		}
	})
}
