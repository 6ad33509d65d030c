// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/internal/workload/measure"
)

// run runs the C program, which ends itself with an error if a design hangs;
// the context is for a program that does not.
func run(t *testing.T, args ...string) (*measure.Run, error) {
	t.Helper()
	program := workload.Build(t, "trampoline")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	return measure.Command(ctx, append([]string{program}, args...)...)
}

// TestDesigns holds that every design serves its faults: the program dies where
// a page has a wrong byte.
func TestDesigns(t *testing.T) {
	for _, w := range what {
		if w.design == "provided" {
			continue
		}
		t.Run(w.design, func(t *testing.T) {
			out, err := run(t, "400", w.design)
			if err != nil {
				t.Fatal(err)
			}
			all, err := decode(out.Stdout)
			if err != nil || len(all) != 1 {
				t.Fatalf("%v, printed %s", err, out.Stdout)
			}
			r := all[0]
			if w.design == "kernel" {
				testutil.Need(t, r.Lacking == "", r.Lacking)
			}
			if r.Design != w.design || r.Faults != 400 || r.Lacking != "" || r.P50 <= 0 || r.P50 > r.P90 {
				t.Errorf("printed %s", out.Stdout)
			}
		})
	}
}

// TestWrongContentShows holds that a page with the content of another is seen:
// nothing else says that a design serves what it times.
func TestWrongContentShows(t *testing.T) {
	for _, w := range what {
		if w.design == "kernel" || w.design == "provided" {
			continue
		}
		out, err := run(t, "--wrong", "10", w.design)
		if err == nil || !strings.Contains(err.Error(), "page 9 has the content of another") {
			t.Errorf("%s: %v, printed %+v", w.design, err, out)
		}
	}
}

// TestUsage holds that what the program does not know is refused.
func TestUsage(t *testing.T) {
	for _, args := range [][]string{{}, {"0"}, {"10", "nonesuch"}} {
		if _, err := run(t, args...); err == nil || !strings.Contains(err.Error(), "status 2") {
			t.Errorf("trampoline %v: %v", args, err)
		}
	}
}

// TestBench runs all of it once, small, without faultline.
func TestBench(t *testing.T) {
	workload.Build(t, "trampoline") // skips where there is no compiler
	rows, err := bench(t.Context(), t.TempDir(), 2, 50, "")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range rows {
		names = append(names, r.Design)
	}
	if diff := cmp.Diff([]string{"kernel", "futex", "local", "ptrace", "ptrace2"}, names); diff != "" {
		t.Error(diff)
	}
}

// TestReport holds the arithmetic: medians and both ratios.
func TestReport(t *testing.T) {
	all, err := decode([]byte(`{"design":"kernel","faults":9,"p50_ns":2000,"p90_ns":3000}
		{"design":"kernel","faults":9,"p50_ns":4000,"p90_ns":5000}
		{"design":"local","faults":9,"p50_ns":6000,"p90_ns":8000}
		{"faults":9,"p50_ns":24000,"p90_ns":30000,"p99_ns":40000,"max_ns":50000}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		all  []result
		want []string
	}{
		{all, []string{
			"| kernel | the kernel's userfaultfd | 3.00 | 4.00 | 1.00 | 8.00 |",
			"| local | SIGSEGV and SIGSYS handlers that decide by themselves | 6.00 | 8.00 | 2.00 | 4.00 |",
			"| provided | `faultline provide` | 24.00 | 30.00 | 8.00 | 1.00 |",
		}},
		{[]result{{Design: "kernel", Lacking: "userfaultfd: no"}, all[2]}, []string{
			"| kernel | the kernel's userfaultfd | userfaultfd: no | | | |",
			"| local | SIGSEGV and SIGSYS handlers that decide by themselves | 6.00 | 8.00 | – | – |",
		}},
	} {
		var b bytes.Buffer
		if err := print(&b, summarise(c.all)); err != nil {
			t.Fatal(err)
		}
		if _, table, _ := strings.Cut(b.String(), "|---|---|---|---|---|---|\n"); table != strings.Join(c.want, "\n")+"\n" {
			t.Errorf("printed\n%s\nwant\n%s", table, strings.Join(c.want, "\n"))
		}
	}
}
