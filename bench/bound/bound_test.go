// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	var b bytes.Buffer
	rows := []row{
		{store: "file:", threads: 1, peak: 66 * mib, own: 30 * mib},
		{store: "file:", threads: 4, peak: 69 * mib, own: 40 * mib},
		{store: "mem:", threads: 1, peak: 60 * mib, own: 900 * mib},
	}
	if err := report(&b, 1024*mib, 64*mib, rows); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| file: | 1 | 66.0 | 68.6 | 30.0 | 37.6 |",
		"| file: | 4 | 69.0, not kept | 68.6 | 40.0, not kept | 37.6 |",
		"| mem: | 1 | 60.0 | 68.6 |  | 37.6 |",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no line %q in\n%s", want, &b)
		}
	}
}
