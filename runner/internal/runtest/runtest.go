// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

// Package runtest runs programs with and without faultline run, and compares
// what comes of them. The tests of package runner are several packages for the time they
// take, and share it.
package runtest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/faultline-go/faultline/internal/doctor"
	"github.com/faultline-go/faultline/internal/sandbox"
	"github.com/faultline-go/faultline/internal/size"
	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/workload/measure"
)

const (
	MiB = 1 << 20
	// Patience is how long a program may take; only a hang takes longer.
	Patience = 4 * time.Minute
)

// Dir is for what the tests of a package build once. Main removes it.
var Dir string

// Main is TestMain of the packages that use this one.
func Main(m *testing.M) {
	sandbox.Main()
	dir, err := os.MkdirTemp("", "faultline-runner-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	Dir = dir
	testutil.DefaultSignals()
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

var (
	checkRun = sync.OnceValue(doctor.CheckRun)
	built    = sync.OnceValues(func() (string, error) {
		return measure.Faultline(context.Background(), Dir)
	})
)

// Command returns the path of the faultline command, which is built once. It
// skips the test where the machine cannot run it.
func Command(t *testing.T) string {
	t.Helper()
	if err := checkRun(); err != nil {
		testutil.Need(t, false, err.Error())
	}
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Tool returns the path of a program of the machine, and skips the test where
// it is missing.
func Tool(t *testing.T, name string) string {
	t.Helper()
	// Of several versions the system's: another may be a shell script that
	// chooses one.
	for _, dir := range []string{"/usr/bin", "/bin", "/usr/local/bin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	path, err := exec.LookPath(name)
	testutil.Need(t, err == nil, "needs "+name)
	return path
}

// Program is what is run with and without faultline.
type Program struct {
	Args  []string
	Env   []string // besides the test's own
	Dir   string
	Stdin string // a file, or empty for none
	Limit uint64 // bytes
	// Stores are where its pages go, one run for each.
	Stores []string
	// Bounded says that its resident memory must keep the limit: not so
	// where it locks memory, or is so short that nothing can be seen.
	Bounded bool
	// Slack is what is allowed on top for what cannot be moved.
	Slack uint64
	// While, if any, runs beside the program, to be a client of it.
	While func(t *testing.T, r *Run)
	// Stderr says that what it writes to standard error is compared, too.
	Stderr bool
	// Group starts it in a process group of its own.
	Group bool
	// Engine is who tells of faults, the kernel if empty.
	Engine string
}

// Outcome is what came of a run.
type Outcome struct {
	Stdout, Stderr []byte
	Status         syscall.WaitStatus
	Wall           time.Duration
	Peak           measure.Peak // most bounded memory that was seen in the tree
	Notes          []string     // lines of faultline's own
	Stats          *Stats       // nil if it ran alone
}

// Stats is the part of the summary that tests look at.
type Stats struct {
	Schema    string
	Processes int64
	Engaged   int64
	Memory    struct{ Limit, Peak uint64 }
	Pages     struct{ In, Out, Unmovable, Lost int64 }
	Store     struct{ Errors int64 }
	Faults    struct{ Fresh, Major, Stalls int64 }
}

// Same runs the program alone and then under faultline, once for each store,
// and holds that nobody can tell the difference, that its memory did not fit
// under the limit four times over, that the limit was kept where that is
// asked for, and that nothing is left behind. It returns all outcomes, that
// of the program alone first.
func Same(t *testing.T, p Program) []*Outcome {
	t.Helper()
	bin := Command(t)
	alone := p.Run(t, p.Args)
	// It is looked at now and then. On a busy machine a short program has come and gone
	// in between.
	for i := 0; i < 5 && p.Engine == "" && alone.Peak.Bytes < 4*p.Limit; i++ {
		if o := p.Run(t, p.Args); o.Peak.Bytes > alone.Peak.Bytes {
			alone = o
		}
	}
	t.Logf("alone: %v, %s", alone.Wall.Round(time.Millisecond), size.Format(alone.Peak.Bytes))
	if p.Engine == "" && alone.Peak.Bytes < 4*p.Limit {
		t.Errorf("the limit is %s, which is more than a quarter of the %s seen without it",
			size.Format(p.Limit), size.Format(alone.Peak.Bytes))
	}
	all := []*Outcome{alone}
	for _, store := range p.Stores {
		args := []string{bin, "run", "--limit", fmt.Sprint(p.Limit), "--store", store,
			"--engine", cmp.Or(p.Engine, "kernel"), "--json", "--stats", "--"}
		o := p.Run(t, append(args, p.Args...))
		o.Split(t)
		p.compare(t, store, alone, o)
		all = append(all, o)
		if t.Failed() {
			break
		}
	}
	return all
}

func (p *Program) compare(t *testing.T, store string, alone, o *Outcome) {
	t.Helper()
	for _, n := range o.Notes {
		t.Log(n)
	}
	if o.Status.ExitStatus() != alone.Status.ExitStatus() || o.Status.Signal() != alone.Status.Signal() {
		t.Errorf("%s: status %#x, alone %#x; stderr:\n%s", store, o.Status, alone.Status, Tail(o.Stderr))
	}
	if !bytes.Equal(o.Stdout, alone.Stdout) {
		t.Errorf("%s: another output: %s", store, firstDifference(alone.Stdout, o.Stdout))
	}
	if p.Stderr && !bytes.Equal(o.Stderr, alone.Stderr) {
		t.Errorf("%s: stderr %q, alone %q", store, Tail(o.Stderr), Tail(alone.Stderr))
	}
	s := o.Stats
	if s == nil {
		t.Errorf("%s: no summary; stderr:\n%s", store, Tail(o.Stderr))
		return
	}
	t.Logf("%-5s: %v (x%.1f), %s of %s seen after %v, %d processes, %d engaged, %d pages out, %d in, %d stalls",
		store, o.Wall.Round(time.Millisecond), o.Wall.Seconds()/alone.Wall.Seconds(),
		size.Format(o.Peak.Bytes), size.Format(p.Limit), o.Peak.After.Round(time.Millisecond), s.Processes, s.Engaged, s.Pages.Out, s.Pages.In, s.Faults.Stalls)
	if s.Engaged == 0 || s.Pages.Out == 0 || s.Pages.Lost != 0 || s.Store.Errors != 0 {
		t.Errorf("%s: not engaged, or pages lost: %+v", store, *s)
	}
	// The bound of the manual: the limit, 4 MiB and a hundredth.
	if most := p.Limit + 4*MiB + p.Limit/100 + p.Slack; p.Bounded && o.Peak.Bytes > most {
		t.Errorf("%s: %s of bounded memory were resident, %s are allowed", store, size.Format(o.Peak.Bytes), size.Format(most))
	}
}

// Split takes the summary and faultline's own lines out of stderr.
func (o *Outcome) Split(t *testing.T) {
	t.Helper()
	var rest []byte
	for line := range bytes.Lines(o.Stderr) {
		switch {
		case bytes.HasPrefix(line, []byte(`{"schema":"faultline/stats/`)):
			o.Stats = new(Stats)
			if err := json.Unmarshal(line, o.Stats); err != nil {
				t.Errorf("%v in the summary %s", err, line)
			}
		case bytes.HasPrefix(line, []byte("faultline: ")):
			o.Notes = append(o.Notes, strings.TrimSpace(string(line)))
		default:
			rest = append(rest, line...)
		}
	}
	o.Stderr = rest
}

// firstDifference shows where two outputs, which may be long, part.
func firstDifference(want, got []byte) string {
	at := 0
	for at < min(len(want), len(got)) && want[at] == got[at] {
		at++
	}
	part := func(b []byte) []byte { return b[min(at, len(b)):min(at+200, len(b))] }
	return fmt.Sprintf("of %d and %d bytes the first %d are equal; then %q, alone %q",
		len(got), len(want), at, part(got), part(want))
}

// Tail is the end of a text that may be long.
func Tail(b []byte) string {
	const enough = 4000
	if len(b) > enough {
		return "..." + string(b[len(b)-enough:])
	}
	return string(b)
}

// Run runs a command with the program's surroundings to its end, and holds that nothing
// is left of it.
func (p *Program) Run(t *testing.T, args []string) *Outcome {
	t.Helper()
	r := New(t, args...)
	r.Cmd.Dir = p.Dir
	r.Cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: p.Group}
	// A program that outlives the test's interest in it must not hold a pipe
	// open that somebody reads to its end; so these are files.
	outside := t.TempDir()
	stdout, stderr := Create(t, outside, "stdout"), Create(t, outside, "stderr")
	defer stdout.Close()
	defer stderr.Close()
	r.Cmd.Stdout, r.Cmd.Stderr = stdout, stderr
	if p.Stdin != "" {
		in, err := os.Open(p.Stdin)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		r.Cmd.Stdin = in
	}
	r.Cmd.Env = append(r.Cmd.Env, p.Env...)
	began := time.Now()
	r.Start(t)
	watcher := measure.Watch(r.PID())
	if p.While != nil {
		p.While(t, r)
	}
	r.Await(t, Patience)
	o := &Outcome{Wall: time.Since(began), Peak: watcher.Stop()}
	o.Stdout, o.Stderr = Contents(t, stdout), Contents(t, stderr)
	o.Status, _ = r.Cmd.ProcessState.Sys().(syscall.WaitStatus)
	if exit := new(exec.ExitError); r.Err != nil && !errors.As(r.Err, &exit) {
		t.Fatal(r.Err)
	}
	r.NothingLeft(t)
	return o
}

// Create makes a file in a directory of the test.
func Create(t *testing.T, dir, name string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Contents reads a file from its beginning.
func Contents(t *testing.T, f *os.File) []byte {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Smaller returns the first number if FAULTLINE_LONG is set, as it is for a
// run that may take half an hour, and the second otherwise.
func Smaller(long, short int) int {
	if os.Getenv("FAULTLINE_LONG") != "" {
		return long
	}
	return short
}
