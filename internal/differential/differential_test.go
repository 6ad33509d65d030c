// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/internal/testutil"
)

var (
	seconds = flag.Int("seconds", 3, "how long to compare")
	seed    = flag.Uint64("seed", 1, "the first seed")
)

func kernel(t *testing.T) conformance.Backend {
	t.Helper()
	b, err := conformance.Kernel()
	if err == nil {
		_, err = b.Features()
	}
	if err != nil {
		testutil.Need(t, false, err.Error())
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// kinds has huge pages, which take long to clear, in one script of eight.
func kinds(seed uint64) []conformance.Memory {
	if seed%8 == 0 {
		return All
	}
	return Small
}

// TestKernelAgainstItself: what the tester calls a difference is none of its
// own making.
func TestKernelAgainstItself(t *testing.T) {
	b := kernel(t)
	ops := 0
	end := time.Now().Add(time.Duration(*seconds) * time.Second)
	for s := *seed; time.Now().Before(end); s++ {
		script := Random(s, 60, kinds(s))
		ops += len(script.Ops)
		if d := Compare(b, b, script); d != nil {
			t.Fatalf("seed %d:\n%v", s, d)
		}
	}
	t.Logf("%d operations", ops)
}

// model returns package vkernel.
func model(t *testing.T) conformance.Backend {
	t.Helper()
	b, err := conformance.Model()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestModelAgainstKernel: package vkernel and the kernel answer the same to
// whatever they are asked.
func TestModelAgainstKernel(t *testing.T) {
	a, b := kernel(t), model(t)
	needLinux(t, a)
	ops, s := 0, *seed
	end := time.Now().Add(time.Duration(*seconds) * time.Second)
	for ; time.Now().Before(end); s++ {
		script := Random(s, 60, kinds(s))
		ops += len(script.Ops)
		if d := Compare(a, b, script); d != nil {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			d = Shrink(ctx, d, func(s Script) *Difference { return Compare(a, b, s) })
			cancel()
			t.Fatalf("seed %d, A is the kernel:\n%v", s, d)
		}
	}
	t.Logf("%d operations, seeds %d to %d", ops, *seed, s-1)
}

// needLinux skips the test on a kernel that is not the one that package
// vkernel is the twin of.
func needLinux(t *testing.T, b conformance.Backend) {
	t.Helper()
	testutil.Need(t, strings.HasPrefix(b.Release(), "6.18."), "vkernel is like Linux 6.18, and this is "+b.Release())
}

// TestHugePagesComeBack: no script leaves pages of the machine's pool
// reserved, or the pool could not be given back.
func TestHugePagesComeBack(t *testing.T) {
	b := kernel(t)
	reserved := func() string {
		text, err := os.ReadFile("/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages")
		testutil.Need(t, err == nil, "there are no huge pages of 2 MiB here")
		return string(text)
	}
	// The pool is this program's from here on.
	if err := b.Huge(1); err != nil {
		testutil.Need(t, false, err.Error())
	}
	before := reserved()
	for s := range uint64(20) {
		if _, err := Trace(b, Random(s, 60, All[len(Small):])); err != nil {
			t.Fatal(err)
		}
		// Processes give back what they had while they die.
		for end := time.Now().Add(10 * time.Second); reserved() != before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("seed %d: %s pages were reserved before, %s after", s, before, reserved())
			}
		}
	}
}

// TestScripts runs what once made a difference.
func TestScripts(t *testing.T) {
	a, b := kernel(t), model(t)
	needLinux(t, a)
	files, err := filepath.Glob("testdata/*.script")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".script"), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			s, err := Parse(string(text))
			if err != nil {
				t.Fatal(err)
			}
			if d := Compare(a, b, s); d != nil {
				t.Errorf("A is the kernel:\n%v", d)
			}
		})
	}
}

func TestScript(t *testing.T) {
	s := Random(7, 100, All)
	back, err := Parse("# a comment\n" + s.String())
	if err != nil {
		t.Fatal(err)
	}
	if back.Memory != s.Memory || !slices.Equal(back.Ops, s.Ops) {
		t.Errorf("read back as\n%v\nnot\n%v", back, s)
	}
	for _, bad := range []string{"", "load 1\n", "memory anon\n", "memory anon anon mud\n",
		"memory anon anon anon\nfly 1\n", "memory anon anon anon\nload x\n", "memory anon anon anon\nload 1 2 3 4 5 6 7 8 9\n"} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

// TestShrink: a difference that needs two operations is brought down to them.
func TestShrink(t *testing.T) {
	differs := func(s Script) *Difference {
		first := slices.IndexFunc(s.Ops, func(o Op) bool { return o.Kind == "store" && o.Arg[1] > 2 })
		if first < 0 || !slices.ContainsFunc(s.Ops[first:], func(o Op) bool { return o.Kind == "read" }) {
			return nil
		}
		return &Difference{Script: s}
	}
	var s Script
	for i := range 200 {
		s.Ops = append(s.Ops, Op{Kind: []string{"load", "read", "store"}[i%3], Arg: [numArgs]uint16{uint16(i), uint16(i % 7), 3}})
	}
	d := differs(s)
	if d == nil {
		t.Fatal("no difference to begin with")
	}
	d = Shrink(t.Context(), d, differs)
	if len(d.Script.Ops) != 2 || d.Script.Ops[0].Arg[0] != 0 {
		t.Errorf("shrunk to\n%v", d.Script)
	}
}

// FuzzParse: what can be read can be written and read again.
func FuzzParse(f *testing.F) {
	f.Add(Random(3, 20, All).String())
	f.Add("memory anon shmem hugetlb\n# nothing\n\nload 0 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		back, err := Parse(s.String())
		if err != nil || back.Memory != s.Memory || !slices.Equal(back.Ops, s.Ops) {
			t.Errorf("%v: read back as %v", err, back)
		}
	})
}
