// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/workload/measure"
)

func TestParse(t *testing.T) {
	o, err := parse([]string{"-runs", "5", "-threads", "1,4", "-swap", "file:/x", "-side", "ours", "-faultline", "f"})
	if err != nil {
		t.Fatal(err)
	}
	if o.runs != 5 || !slices.Equal(o.threads, []int{1, 4}) || o.swap != "file:/x" || o.kernel || !o.ours {
		t.Errorf("parsed %+v", o)
	}
	want := []string{"f", "run", "--limit", "64MiB", "--store", "mem:", "--engine", "kernel", "--"}
	if diff := cmp.Diff(want, oursArgs(o)); diff != "" {
		t.Error(diff)
	}
	for _, args := range [][]string{
		{"-runs", "0"}, {"-threads", "1,x"}, {"-threads", "0"}, {"-swap", "disk"}, {"-swap", "file:"},
		{"-side", "left"}, {"-mib", "-1"}, {"more"},
	} {
		if _, err := parse(args); err == nil {
			t.Errorf("parse(%v) did not refuse", args)
		}
	}
}

// TestReport holds the arithmetic of the report: medians, their quotient, and
// the throughput with several threads.
func TestReport(t *testing.T) {
	o, err := parse([]string{"-threads", "1,4"})
	if err != nil {
		t.Fatal(err)
	}
	r := newReport(o)
	for _, text := range []string{"time random 9000 1\n", "time random 12000 1\n", "time random 20000 1\n"} {
		r.add(r.kernel, 1, &measure.Run{Stderr: []byte(text)})
		r.add(r.kernel, 4, &measure.Run{Stderr: []byte("time random 24000 1\n")})
		r.add(r.ours, 1, &measure.Run{Stderr: []byte("time random 8000 1\n")})
		r.add(r.ours, 4, &measure.Run{Stderr: []byte("time random 4000 1\n")})
	}
	var b bytes.Buffer
	if err := r.print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| uniform random read | 12.00 (9.00–20.00) | 8.00 (8.00–8.00) | 1.50 | ≥ 1.2 |",
		"| uniform random read | 24.00 (24.00–24.00) | 4.00 (4.00–4.00) | 6.00 | ≥ 1.2 |",
		"| 4 threads | 0.50 | 2.00 |",
		"| first fill | – | – | – | ≥ 1.0 |",
	} {
		if !strings.Contains(b.String(), want+"\n") {
			t.Errorf("no line %q in:\n%s", want, &b)
		}
	}
}

func TestUndo(t *testing.T) {
	var order []int
	var u undo
	broken := errors.New("broken")
	for i := range 3 {
		u.push(func() error { order = append(order, i); return broken })
	}
	if err := u.run(); !errors.Is(err, broken) || !slices.Equal(order, []int{2, 1, 0}) {
		t.Errorf("undone in order %v, error %v", order, err)
	}
}

func TestMemoryController(t *testing.T) {
	touch := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	v1, v2, off := t.TempDir(), t.TempDir(), t.TempDir()
	touch(filepath.Join(v1, "memory/memory.limit_in_bytes"), "1")
	touch(filepath.Join(v2, "cgroup.subtree_control"), "cpu memory pids\n")
	touch(filepath.Join(off, "cgroup.subtree_control"), "cpu\n")
	if root, limit, err := memoryController(v1); err != nil || root != v1+"/memory" || limit != "memory.limit_in_bytes" {
		t.Errorf("version 1: %s, %s, %v", root, limit, err)
	}
	if root, limit, err := memoryController(v2); err != nil || root != v2 || limit != "memory.max" {
		t.Errorf("version 2: %s, %s, %v", root, limit, err)
	}
	for _, dir := range []string{off, t.TempDir()} {
		if _, _, err := memoryController(dir); err == nil {
			t.Errorf("a memory controller was found in %s", dir)
		}
	}
}

// machine is what the bench makes and must remove.
func machine(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"/sys/block/zram*", "/sys/fs/cgroup/faultline-bench-*", "/sys/fs/cgroup/memory/faultline-bench-*"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, names...)
	}
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil {
		t.Fatal(err)
	}
	return append(all, string(swaps))
}

// TestLeavesNothing sets the kernel's side up, small, with each kind of swap,
// and finds the machine afterwards as it was: after success and after failure.
func TestLeavesNothing(t *testing.T) {
	testutil.Need(t, os.Geteuid() == 0, "swap and cgroups need root")
	_, err := os.Stat(zramControl)
	testutil.Need(t, err == nil, "no zram in this kernel")
	_, _, err = memoryController("/sys/fs/cgroup")
	testutil.Need(t, err == nil, "no memory controller")

	before := machine(t)
	broken := errors.New("broken")
	for _, swap := range []string{"zram", "file:" + t.TempDir()} {
		for _, outcome := range []error{nil, broken} {
			o := &options{mib: 4, limit: 16, swap: swap}
			err := withSwap(t.Context(), o, func(enter []string) error {
				if slices.Equal(before, machine(t)) {
					t.Errorf("%s: nothing was set up", swap)
				}
				run, err := measure.Command(t.Context(), append(enter, "cat", "/proc/self/cgroup")...)
				if err != nil || !strings.Contains(string(run.Stdout), "faultline-bench-") {
					t.Errorf("%s: the command is not in the cgroup: %v\n%+v", swap, err, run)
				}
				return outcome
			})
			if swap != "zram" && err != nil && !errors.Is(err, broken) {
				// Not every file system can hold a swap file.
				t.Logf("%s: %v", swap, err)
			} else if !errors.Is(err, outcome) || outcome == nil && err != nil {
				t.Errorf("%s: %v, want %v", swap, err, outcome)
			}
			if diff := cmp.Diff(before, machine(t)); diff != "" {
				t.Errorf("%s: left behind:\n%s", swap, diff)
			}
		}
	}
}
