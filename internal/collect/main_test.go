// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package collect_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/uffdtrace"
	"github.com/faultline-go/faultline/internal/watch"
	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/provider"
	"github.com/faultline-go/faultline/tracee"
)

const (
	// budget is how long anything here may take before it counts as a hang.
	budget = 40 * time.Second
	// tracerName as the first argument makes the test binary a tracer: the
	// forwarding of signals is for one tracer in a process.
	tracerName = "collect-tracer"
	// skipped is what a program exits with that lacks something.
	skipped = 77
)

func TestMain(m *testing.M) {
	if len(os.Args) > 4 && os.Args[1] == tracerName {
		tracerMain(way(os.Args[2]), os.Args[3], os.Args[4:])
	}
	testutil.DefaultSignals()
	os.Exit(m.Run())
}

// way says who answers the calls of a traced program.
type way string

const (
	kernel   way = "kernel"
	provided way = "provided"
)

// onBoth runs a test on both ways: what it expects is the same.
func onBoth(t *testing.T, f func(t *testing.T, on way)) {
	t.Helper()
	for _, on := range []way{kernel, provided} {
		t.Run(string(on), func(t *testing.T) { f(t, on) })
	}
}

// tracerMain writes the trace of a program as JSON to a file.
func tracerMain(on way, file string, args []string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(125)
	}
	f, err := os.Create(file)
	if err != nil {
		fail(err)
	}
	sink := uffdtrace.New(f, true)
	run := watchIt
	if on == provided {
		run = provideIt
	}
	status, elapsed, err := run(args, sink)
	if err == nil {
		err = sink.Finish(elapsed)
	}
	if err != nil {
		fail(err)
	}
	tracee.MirrorExit(status)
}

func watchIt(args []string, sink uffdtrace.Sink) (tracee.Status, time.Duration, error) {
	w, err := watch.Start(watch.Options{Path: args[0], Argv: args, Env: os.Environ(), Sink: sink})
	if err != nil {
		return tracee.Status{}, 0, err
	}
	return w.Wait()
}

func provideIt(args []string, sink uffdtrace.Sink) (tracee.Status, time.Duration, error) {
	started := time.Now()
	p, err := provider.Start(provider.Options{Path: args[0], Argv: args, Env: os.Environ(), Trace: sink})
	if err != nil {
		return tracee.Status{}, 0, err
	}
	status, err := p.Wait()
	return status, time.Since(started), err
}

type message struct {
	Message, Address string
	TID              uint32 `json:"ptid"`
	FD               int    `json:"ufd"`
}

type fault struct {
	Kind, Address string
	TID           uint32 `json:"ptid"`
	AfterNs       int64  `json:"after_ns"`
}

// line is an object of a trace.
type line struct {
	Schema, Event            string
	TimeNs                   int64 `json:"time_ns"`
	DurationNs               int64 `json:"duration_ns"`
	PID, TID, FD, Descriptor int
	Call, Request, Flags     string
	Given, Told              map[string]any
	Messages                 []message
	Passed                   []int
	Ret                      *int64
	Errno                    string
	Woken                    []fault
	Change, By               string
	Last                     bool
	Parent                   int
	Holds, Closed            []int
	Status                   *int
	Signal, Text             string
}

// name is a short description of a call and its result.
func (l *line) name() string {
	s := l.Call
	if l.Request != "" {
		s = l.Request
	}
	switch {
	case l.Errno != "":
		s += " " + l.Errno
	case l.Ret == nil:
		s += " ?"
	}
	for _, m := range l.Messages {
		s += " " + m.Message
	}
	for _, w := range l.Woken {
		s += " wakes " + w.Kind
	}
	return s
}

// summary is the last object.
type summary struct {
	Event                  string
	Processes, Descriptors int
	Notes                  int
	Calls                  []struct {
		Call          string
		Count, Failed int
	}
	Messages []struct {
		Message string
		Count   int
	}
	Faults []struct {
		Kind                      string
		Read, Again, Woken, Never int
	}
}

func (s *summary) calls(name string) int {
	for _, c := range s.Calls {
		if c.Call == name {
			return c.Count
		}
	}
	return 0
}

func (s *summary) messages(name string) int {
	for _, m := range s.Messages {
		if m.Message == name {
			return m.Count
		}
	}
	return 0
}

// trace is what is seen of a program.
type trace struct {
	text  []byte
	lines []line
	sum   summary
}

// of returns the lines of an event.
func (tr *trace) of(event string) (out []line) {
	for _, l := range tr.lines {
		if l.Event == event {
			out = append(out, l)
		}
	}
	return out
}

// names returns the calls in the order in which they ended.
func (tr *trace) names() (out []string) {
	for _, l := range tr.of("call") {
		out = append(out, l.name())
	}
	return out
}

// traced traces a program, which must end with the status.
func traced(t *testing.T, on way, status int, args ...string) *trace {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "trace")
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	defer cancel()
	cmd := exec.CommandContext(ctx, exe, append([]string{tracerName, string(on), file}, args...)...)
	out, err := cmd.CombinedOutput()
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() {
			got = 128 + int(ws.Signal())
		} else {
			got = ws.ExitStatus()
		}
	} else if err != nil {
		t.Fatal(err)
	}
	testutil.Need(t, got != skipped || on == provided, "needs userfaultfd(2), with the features and the privilege for "+strings.Join(args[1:], " "))
	b, readErr := os.ReadFile(file)
	if got != status || readErr != nil {
		t.Fatalf("%v: status %d, want %d\n%s\nends with\n%s", args, got, status, out, b[max(0, len(b)-2000):])
	}
	return parse(t, b)
}

// acts traces the program acts, in one of its ways.
func acts(t *testing.T, on way, status int, args ...string) *trace {
	t.Helper()
	return traced(t, on, status, append([]string{workload.Build(t, "acts")}, args...)...)
}

func parse(t *testing.T, b []byte) *trace {
	t.Helper()
	tr := trace{text: b}
	for text := range bytes.Lines(b) {
		var l line
		if tr.sum.Event != "" {
			t.Errorf("after the summary: %s", text)
		}
		if bytes.Contains(text, []byte(`"event":"summary"`)) {
			if err := json.Unmarshal(text, &tr.sum); err != nil {
				t.Fatalf("%v in %s", err, text)
			}
			continue
		}
		if err := json.Unmarshal(text, &l); err != nil || l.Schema != uffdtrace.Schema {
			t.Fatalf("%v in %s", err, text)
		}
		tr.lines = append(tr.lines, l)
	}
	if tr.sum.Event == "" {
		t.Fatalf("no summary: %s", b)
	}
	return &tr
}
