// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"testing"
)

// TestReport: what grows is an error, and what is only more for a moment is none.
func TestReport(t *testing.T) {
	steady, leaking := series{name: "steady"}, series{name: "leaking"}
	for i := range 100 {
		v := sample{10000, 20, 10, 2, 30, 5000}
		leaking.add(sample{10000 + 500*i, 20, 10, 2, 30 + i, 5000})
		if i == 50 {
			v[1] = 500
		}
		steady.add(v)
	}
	steady.add(sample{}) // it has ended
	var out strings.Builder
	err := report(&out, []series{steady, leaking})
	if err == nil {
		t.Fatal("what grows was not noticed")
	}
	want := "leaking: resident memory of faultline, KiB: from 17500 to 57000\nleaking: descriptors of the program: from 45 to 124"
	if err.Error() != want {
		t.Errorf("got %v, want %v", err, want)
	}
	if row := "| steady: descriptors of faultline | 20 | 20 | 500 |"; !strings.Contains(out.String(), row) {
		t.Errorf("no %q in\n%s", row, &out)
	}
}

// TestLook finds this process and what it has open.
func TestLook(t *testing.T) {
	v := look(os.Getpid())
	if v[0] == 0 || v[1] < 3 || v[2] == 0 {
		t.Errorf("looked at ourselves: %v", v)
	}
	if v := look(1 << 30); v != (sample{}) {
		t.Errorf("a process that there is not: %v", v)
	}
}
