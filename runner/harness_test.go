// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner_test

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
	"sync/atomic"
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
	mib = 1 << 20
	// marker is a variable in the environment of all that a test starts, by
	// which what is left of it is found.
	marker = "FAULTLINE_TEST_RUN"
	// patience is how long a program may take; only a hang takes longer.
	patience = 150 * time.Second
)

var buildDir string // removed by TestMain

func TestMain(m *testing.M) {
	sandbox.Main()
	dir, err := os.MkdirTemp("", "faultline-runner-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	buildDir = dir
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
		return measure.Faultline(context.Background(), buildDir)
	})
)

// command returns the path of the faultline command, which is built once. It
// skips the test where the machine cannot run it.
func command(t *testing.T) string {
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

// tool returns the path of a program of the machine, and skips the test where
// it is missing.
func tool(t *testing.T, name string) string {
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

// program is what is run with and without faultline.
type program struct {
	args  []string
	env   []string // besides the test's own
	dir   string
	stdin string // a file, or empty for none
	limit uint64 // bytes
	// stores are where its pages go, one run for each.
	stores []string
	// bounded says that its resident memory must keep the limit: not so
	// where it locks memory, or is so short that nothing can be seen.
	bounded bool
	// slack is what is allowed on top for what cannot be moved.
	slack uint64
	// while, if any, runs beside the program, to be a client of it.
	while func(t *testing.T, r *run)
	// stderr says that what it writes to standard error is compared, too.
	stderr bool
	// group starts it in a process group of its own.
	group bool
	// engine is who tells of faults, the kernel if empty.
	engine string
}

// outcome is what came of a run.
type outcome struct {
	stdout, stderr []byte
	status         syscall.WaitStatus
	wall           time.Duration
	peak           measure.Peak // most bounded memory that was seen in the tree
	notes          []string     // lines of faultline's own
	stats          *stats       // nil if it ran alone
}

// stats is the part of the summary that tests look at.
type stats struct {
	Schema    string
	Processes int64
	Engaged   int64
	Memory    struct{ Limit, Peak uint64 }
	Pages     struct{ In, Out, Unmovable, Lost int64 }
	Store     struct{ Errors int64 }
	Faults    struct{ Fresh, Major, Stalls int64 }
}

// same runs the program alone and then under faultline, once for each store,
// and holds that nobody can tell the difference, that its memory did not fit
// under the limit four times over, that the limit was kept where that is
// asked for, and that nothing is left behind. It returns all outcomes, that
// of the program alone first.
func same(t *testing.T, p program) []*outcome {
	t.Helper()
	bin := command(t)
	alone := p.run(t, p.args)
	// It is looked at now and then. On a busy machine a short program has come and gone
	// in between.
	for i := 0; i < 5 && p.engine == "" && alone.peak.Bytes < 4*p.limit; i++ {
		if o := p.run(t, p.args); o.peak.Bytes > alone.peak.Bytes {
			alone = o
		}
	}
	t.Logf("alone: %v, %s", alone.wall.Round(time.Millisecond), size.Format(alone.peak.Bytes))
	if p.engine == "" && alone.peak.Bytes < 4*p.limit {
		t.Errorf("the limit is %s, which is more than a quarter of the %s seen without it",
			size.Format(p.limit), size.Format(alone.peak.Bytes))
	}
	all := []*outcome{alone}
	for _, store := range p.stores {
		args := []string{bin, "run", "--limit", fmt.Sprint(p.limit), "--store", store,
			"--engine", cmp.Or(p.engine, "kernel"), "--json", "--stats", "--"}
		o := p.run(t, append(args, p.args...))
		o.split(t)
		p.compare(t, store, alone, o)
		all = append(all, o)
		if t.Failed() {
			break
		}
	}
	return all
}

func (p *program) compare(t *testing.T, store string, alone, o *outcome) {
	t.Helper()
	for _, n := range o.notes {
		t.Log(n)
	}
	if o.status.ExitStatus() != alone.status.ExitStatus() || o.status.Signal() != alone.status.Signal() {
		t.Errorf("%s: status %#x, alone %#x; stderr:\n%s", store, o.status, alone.status, tail(o.stderr))
	}
	if !bytes.Equal(o.stdout, alone.stdout) {
		t.Errorf("%s: another output: %s", store, firstDifference(alone.stdout, o.stdout))
	}
	if p.stderr && !bytes.Equal(o.stderr, alone.stderr) {
		t.Errorf("%s: stderr %q, alone %q", store, tail(o.stderr), tail(alone.stderr))
	}
	s := o.stats
	if s == nil {
		t.Errorf("%s: no summary; stderr:\n%s", store, tail(o.stderr))
		return
	}
	t.Logf("%-5s: %v (x%.1f), %s of %s seen after %v, %d processes, %d engaged, %d pages out, %d in, %d stalls",
		store, o.wall.Round(time.Millisecond), o.wall.Seconds()/alone.wall.Seconds(),
		size.Format(o.peak.Bytes), size.Format(p.limit), o.peak.After.Round(time.Millisecond), s.Processes, s.Engaged, s.Pages.Out, s.Pages.In, s.Faults.Stalls)
	if s.Engaged == 0 || s.Pages.Out == 0 || s.Pages.Lost != 0 || s.Store.Errors != 0 {
		t.Errorf("%s: not engaged, or pages lost: %+v", store, *s)
	}
	// The bound of the manual: the limit, 4 MiB and a hundredth.
	if most := p.limit + 4*mib + p.limit/100 + p.slack; p.bounded && o.peak.Bytes > most {
		t.Errorf("%s: %s of bounded memory were resident, %s are allowed", store, size.Format(o.peak.Bytes), size.Format(most))
	}
}

// split takes the summary and faultline's own lines out of stderr.
func (o *outcome) split(t *testing.T) {
	t.Helper()
	var rest []byte
	for line := range bytes.Lines(o.stderr) {
		switch {
		case bytes.HasPrefix(line, []byte(`{"schema":"faultline/stats/`)):
			o.stats = new(stats)
			if err := json.Unmarshal(line, o.stats); err != nil {
				t.Errorf("%v in the summary %s", err, line)
			}
		case bytes.HasPrefix(line, []byte("faultline: ")):
			o.notes = append(o.notes, strings.TrimSpace(string(line)))
		default:
			rest = append(rest, line...)
		}
	}
	o.stderr = rest
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

// tail is the end of a text that may be long.
func tail(b []byte) string {
	const enough = 4000
	if len(b) > enough {
		return "..." + string(b[len(b)-enough:])
	}
	return string(b)
}

var runs atomic.Int64

// newID makes a value of the marker.
func newID() string { return fmt.Sprintf("%d-%d", os.Getpid(), runs.Add(1)) }

// run is a command that runs.
type run struct {
	id      string // value of the marker
	cmd     *exec.Cmd
	tmp     string // its TMPDIR
	watcher *measure.Watcher
	ended   chan struct{} // closed when err is set
	err     error
}

// pid is that of the command: of faultline, or of the program alone.
func (r *run) pid() int { return r.cmd.Process.Pid }

// run runs a command to its end, and holds that nothing is left of it.
func (p *program) run(t *testing.T, args []string) *outcome {
	t.Helper()
	outside := t.TempDir()
	r := &run{
		id:    newID(),
		cmd:   exec.Command(args[0], args[1:]...),
		tmp:   filepath.Join(outside, "tmp"),
		ended: make(chan struct{}),
	}
	if err := os.Mkdir(r.tmp, 0o777); err != nil {
		t.Fatal(err)
	}
	r.cmd.Dir = p.dir
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: p.group}
	// A program that outlives the test's interest in it must not hold a pipe
	// open that somebody reads to its end; so these are files.
	stdout, stderr := create(t, outside, "stdout"), create(t, outside, "stderr")
	defer stdout.Close()
	defer stderr.Close()
	r.cmd.Stdout, r.cmd.Stderr = stdout, stderr
	if p.stdin != "" {
		in, err := os.Open(p.stdin)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		r.cmd.Stdin = in
	}
	// All goroutines are printed when a hanging faultline is killed.
	r.cmd.Env = append(os.Environ(), marker+"="+r.id, "TMPDIR="+r.tmp, "GOTRACEBACK=all", "LC_ALL=C")
	r.cmd.Env = append(r.cmd.Env, p.env...)
	began := time.Now()
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { killMarked(r.id) }) // if the test is given up
	go func() {
		r.err = r.cmd.Wait()
		close(r.ended)
	}()
	r.watcher = measure.Watch(r.pid())
	if p.while != nil {
		p.while(t, r)
	}
	r.await(t, patience)
	o := &outcome{wall: time.Since(began), peak: r.watcher.Stop()}
	o.stdout, o.stderr = contents(t, stdout), contents(t, stderr)
	o.status, _ = r.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if exit := new(exec.ExitError); r.err != nil && !errors.As(r.err, &exit) {
		t.Fatal(r.err)
	}
	r.nothingLeft(t)
	return o
}

// await waits for the command. One that takes too long is looked at, killed
// with all that it has started, and fails the test.
func (r *run) await(t *testing.T, patience time.Duration) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-r.ended:
	case <-timer.C:
		t.Errorf("%v has not ended after %v\n%s", r.cmd.Args, patience, postMortem(r.id))
		// Not a signal that is passed on, but one that makes Go print its
		// goroutines, into the standard error that is shown below.
		_ = r.cmd.Process.Signal(syscall.SIGSEGV)
		select {
		case <-r.ended:
		case <-time.After(5 * time.Second):
		}
		for len(killMarked(r.id)) > 0 {
			time.Sleep(10 * time.Millisecond)
		}
		<-r.ended
		if f, ok := r.cmd.Stderr.(*os.File); ok {
			t.Logf("stderr:\n%s", contents(t, f))
		}
	}
}

// nothingLeft holds that no process of the run lives and no temporary file
// remains. What dies with faultline may take a moment to be gone.
func (r *run) nothingLeft(t *testing.T) {
	t.Helper()
	var left []int
	for until := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if left = marked(r.id); len(left) == 0 || time.Now().After(until) {
			break
		}
	}
	if len(left) > 0 {
		t.Errorf("still there after %v: %s", r.cmd.Args, postMortem(r.id))
		killMarked(r.id)
	}
	files, err := os.ReadDir(r.tmp)
	if err != nil || len(files) > 0 {
		t.Errorf("left in TMPDIR: %v, %v", files, err)
	}
}

func create(t *testing.T, dir, name string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func contents(t *testing.T, f *os.File) []byte {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// smaller returns the first number if FAULTLINE_LONG is set, as it is for a
// run that may take half an hour, and the second otherwise.
func smaller(long, short int) int {
	if os.Getenv("FAULTLINE_LONG") != "" {
		return long
	}
	return short
}
