// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// standIn is a command that takes faultline's arguments and runs the program
// with body before it.
func standIn(t *testing.T, body string) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "faultline")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\nshift 4\nexec \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return []string{path, "run", "--limit", "1MiB", "--"}
}

func TestMeasure(t *testing.T) {
	p := &program{name: "echo", args: []string{"echo", "hello"}}
	if err := p.measure(t.Context(), standIn(t, ""), 3); err != nil || len(p.alone) != 3 || len(p.ours) != 3 {
		t.Errorf("measured %+v, %v", p, err)
	}
	if err := p.measure(t.Context(), standIn(t, "echo more"), 1); err == nil {
		t.Error("another output was not noticed")
	}
	if err := p.measure(t.Context(), standIn(t, "exit 3"), 1); err == nil {
		t.Error("another exit status was not noticed")
	}
}

func TestReport(t *testing.T) {
	start := &program{name: "/bin/true", alone: []float64{0.001}, ours: []float64{0.011}}
	p := &program{name: "something", alone: []float64{2, 2, 9}, ours: []float64{2.05, 2.05, 1}}
	var b bytes.Buffer
	if err := report(&b, "faultline run", start, []*program{p}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"starting costs 10.0 ms", "| something | 2.000 | 2.050 | 1.020 | ≤ 1.03 |"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in:\n%s", want, &b)
		}
	}
}

func TestLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines")
	if err := writeLines(path); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Size() != 32<<20 {
		t.Errorf("lines: %v, %v, want 32 MiB", fi.Size(), err)
	}
}
