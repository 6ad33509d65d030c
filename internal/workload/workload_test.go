// SPDX-License-Identifier: Apache-2.0

package workload_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/faultline-go/faultline/internal/workload"
)

// patience is how long a program may take; only a hang takes longer.
const patience = 60 * time.Second

// result is what came of a run.
type result struct {
	stdout, stderr string
	state          *os.ProcessState
}

// run runs a program to its end, whatever its status.
func run(t *testing.T, path string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "PROCS_CHILDREN=100")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%s %v: %v, after %v\n%s", path, args, err, ctx.Err(), &stderr)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState}
}

// TestPrograms runs each program twice, alone: all of its own checks hold and
// it prints the same both times, or no run under faultline could be compared
// with one without.
func TestPrograms(t *testing.T) {
	for _, c := range []struct {
		name  string
		args  []string
		lines int // of stdout
		last  string
	}{
		{"touch", []string{"8", "1", "7"}, 10, "verify "},
		{"touch", []string{"8", "4", "7"}, 10, "verify "},
		{"touch", []string{"--light", "--repeat", "2", "7", "3", "7", "fill", "strided"}, 4, "strided "},
		{"mapper", []string{"4", "7"}, 24, "ok kernel-access"},
		{"procs", []string{"4", "7"}, 24, "ok stack-overflow"},
		{"pins", []string{t.TempDir(), "4", "7"}, 8, "ok ring-direct"},
		{"gomem", []string{"16", "7", "3"}, 3, "round 2 "},
		{"roam", []string{"3", "2000", "7"}, 1, "ok roam"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := workload.Build(t, c.name)
			first, second := run(t, path, c.args...), run(t, path, c.args...)
			if !first.state.Success() {
				t.Fatalf("%s %v: %v\n%s", c.name, c.args, first.state, first.stderr)
			}
			if diff := cmp.Diff(first.stdout, second.stdout); diff != "" {
				t.Errorf("%s printed something else the second time:\n%s", c.name, diff)
			}
			var lines []string
			for line := range strings.Lines(first.stdout) {
				// What the machine lacks is told, and is no failure here.
				if strings.HasPrefix(line, "lacking ") {
					t.Log(line)
					continue
				}
				lines = append(lines, line)
			}
			if len(lines) != c.lines || !strings.HasPrefix(lines[len(lines)-1], c.last) {
				t.Errorf("%s printed %d lines, want %d, the last %q:\n%s",
					c.name, len(lines), c.lines, c.last, first.stdout)
			}
			if first.stderr != "" {
				t.Errorf("%s wrote to stderr: %s", c.name, first.stderr)
			}
		})
	}
}

// TestSeedShows holds that what touch prints depends on the contents.
func TestSeedShows(t *testing.T) {
	path := workload.Build(t, "touch")
	one, two := run(t, path, "2", "1", "1", "fill", "verify"), run(t, path, "2", "1", "2", "fill", "verify")
	if one.stdout == two.stdout {
		t.Errorf("two seeds, the same output: %s", one.stdout)
	}
}

// TestThreadsAgree holds that phases which visit every page once print the
// same with any number of threads.
func TestThreadsAgree(t *testing.T) {
	path := workload.Build(t, "touch")
	args := []string{"fill", "seqread", "seqwrite", "reverse", "strided", "verify"}
	one := run(t, path, append([]string{"4", "1", "5"}, args...)...)
	five := run(t, path, append([]string{"4", "5", "5"}, args...)...)
	if diff := cmp.Diff(one.stdout, five.stdout); diff != "" {
		t.Errorf("one thread and five differ:\n%s", diff)
	}
}

// TestDamageShows proves that the checks can fail: each kind of damage that a
// faulty pager could do kills the program, which names it.
func TestDamageShows(t *testing.T) {
	path := workload.Build(t, "broken")
	for kind, want := range map[string]string{
		"zero":   "zero page",
		"stale":  "stale page",
		"torn":   "torn or foreign page",
		"flip":   "torn or foreign page",
		"lost":   "torn or foreign page",
		"glance": "stale page",
	} {
		r := run(t, path, kind)
		ws, ok := r.state.Sys().(syscall.WaitStatus)
		if !ok || !ws.Signaled() || ws.Signal() != syscall.SIGABRT {
			t.Errorf("broken %s: %v, want SIGABRT", kind, r.state)
		}
		if !strings.Contains(r.stderr, want) || !strings.Contains(r.stderr, "page 1 ") {
			t.Errorf("broken %s: stderr %q, want %q of page 1", kind, r.stderr, want)
		}
	}
}

// TestTimes holds the form of the lines that the benchmarks read.
func TestTimes(t *testing.T) {
	path := workload.Build(t, "touch")
	r := run(t, path, "--times", "--latency", "2", "2", "1", "fill", "hot")
	for _, want := range []struct {
		phase    string
		accesses int
	}{{"fill", 512}, {"hot", 1024}} {
		found := false
		for line := range strings.Lines(r.stderr) {
			var ns float64
			var n int
			if _, err := fmt.Sscanf(line, "time "+want.phase+" %f %d\n", &ns, &n); err == nil {
				found = n == want.accesses && ns > 0
			}
		}
		if !found {
			t.Errorf("no time of %s for %d accesses in:\n%s", want.phase, want.accesses, r.stderr)
		}
	}
}

// TestUsage holds that wrong arguments are refused, with status 2.
func TestUsage(t *testing.T) {
	for name, args := range map[string][]string{
		"touch": {"0", "1", "1"}, "mapper": {"1", "1", "nonesuch"}, "procs": {"x", "1"},
		"pins": {"."}, "served": {"1"}, "selfcheck": {"1"}, "gomem": {"1"}, "roam": {"1", "1"},
	} {
		if r := run(t, workload.Build(t, name), args...); r.state.ExitCode() != 2 || r.stderr == "" {
			t.Errorf("%s %v: %v, stderr %q; want status 2 and a message", name, args, r.state, r.stderr)
		}
	}
	if r := run(t, workload.Build(t, "touch"), "1", "1", "1", "random"); r.state.ExitCode() != 2 {
		t.Errorf("touch without fill: %v, want status 2", r.state)
	}
}

// TestSelfcheck reads some lines of the endless program and kills it; then
// takes a page from another under its feet and expects status 99.
func TestSelfcheck(t *testing.T) {
	path := workload.Build(t, "selfcheck")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "1", "1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	scanner := bufio.NewScanner(out)
	for i := 1; i <= 20; i++ {
		if want := fmt.Sprintf("ok %d", i); !scanner.Scan() || scanner.Text() != want {
			t.Errorf("selfcheck printed %q, want %q", scanner.Text(), want)
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_, _ = io.Copy(io.Discard, out) // to its end, so that Wait can return
	err = cmd.Wait()
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Errorf("selfcheck: %v, want death by SIGKILL", err)
	}
}

// TestSelfcheckNotices writes a zero page into a running selfcheck, as a dead
// pager would leave it, and expects status 99 and the page's name.
func TestSelfcheckNotices(t *testing.T) {
	path := workload.Build(t, "selfcheck")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, "16", "1")
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	// The page may be about to be rewritten, which heals it; then again.
	for {
		zeroPage(t, cmd.Process.Pid, 16<<20)
		select {
		case err := <-ended:
			exit := new(exec.ExitError)
			if !errors.As(err, &exit) || exit.ExitCode() != 99 || !strings.Contains(stderr.String(), "page") {
				t.Errorf("selfcheck: %v, stderr %q; want status 99", err, &stderr)
			}
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// zeroPage overwrites a page in the middle of pid's mapping of the given size
// with zeros, if it has such a mapping yet.
func zeroPage(t *testing.T, pid int, size uint64) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return // it has just ended
	}
	for line := range strings.Lines(string(maps)) {
		var lo, hi uint64
		// The kernel may have merged a neighbour into the mapping.
		if _, err := fmt.Sscanf(line, "%x-%x rw-p", &lo, &hi); err != nil || hi-lo < size || strings.Contains(line, "/") {
			continue
		}
		mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_WRONLY, 0)
		if err != nil {
			return
		}
		_, _ = mem.WriteAt(make([]byte, 4096), int64(lo+size/2)&^4095) // it may end meanwhile
		if err := mem.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestCompile holds what Compile refuses and that it does not build twice.
func TestCompile(t *testing.T) {
	dir := t.TempDir()
	if _, err := workload.Compile(t.Context(), dir, "nonesuch"); err == nil {
		t.Error("a program that does not exist was built")
	}
	workload.Build(t, "broken") // skips where there is no compiler
	first, err := workload.Compile(t.Context(), dir, "broken")
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(first)
	if err != nil {
		t.Fatal(err)
	}
	second, err := workload.Compile(t.Context(), dir, "broken")
	if err != nil || second != first {
		t.Fatalf("Compile = %q, %v; want %q", second, err, first)
	}
	after, err := os.Stat(second)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the program was built again")
	}
	if left, err := filepath.Glob(filepath.Join(dir, "build-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	t.Setenv("PATH", "")
	t.Setenv("CC", "")
	if _, err := workload.Compile(t.Context(), dir, "broken"); !errors.Is(err, workload.ErrNoCompiler) {
		t.Errorf("Compile without a compiler = %v, want ErrNoCompiler", err)
	}
}
