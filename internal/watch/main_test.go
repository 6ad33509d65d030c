// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package watch

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
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/uffdtrace"
	"github.com/faultline-go/faultline/tracee"
)

const (
	// budget is how long anything here may take before it counts as a hang.
	budget = 40 * time.Second
	// tracerName as the first argument makes the test binary a tracer: the
	// forwarding of signals is for one tracer in a process.
	tracerName = "watch-tracer"
	// skipped is what a program exits with that lacks something.
	skipped = 77
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == tracerName {
		tracerMain(os.Args[2], os.Args[3:])
	}
	testutil.DefaultSignals()
	code := m.Run()
	if toolDir != "" {
		os.RemoveAll(toolDir)
	}
	os.Exit(code)
}

// tracerMain writes the trace of a program as JSON to a file.
func tracerMain(file string, args []string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(125)
	}
	f, err := os.Create(file)
	if err != nil {
		fail(err)
	}
	sink := uffdtrace.New(f, true)
	w, err := Start(Options{Path: args[0], Argv: args, Env: os.Environ(), Sink: sink})
	if err != nil {
		fail(err)
	}
	status, elapsed, err := w.Wait()
	if err == nil {
		err = sink.Finish(elapsed)
	}
	if err != nil {
		fail(err)
	}
	tracee.MirrorExit(status)
}

var (
	toolMu  sync.Mutex
	toolDir string
)

// tool compiles a C program of testdata and returns its path.
func tool(t testing.TB, name string) string {
	t.Helper()
	_, err := exec.LookPath("gcc")
	testutil.Need(t, err == nil, "needs gcc")
	toolMu.Lock()
	defer toolMu.Unlock()
	if toolDir == "" {
		if toolDir, err = os.MkdirTemp("", "watch-test-"); err != nil {
			t.Fatal(err)
		}
	}
	bin := filepath.Join(toolDir, name)
	if _, err := os.Stat(bin); err == nil {
		return bin
	}
	out, err := exec.Command("gcc", "-O1", "-pthread", "-o", bin, filepath.Join("testdata", name+".c")).CombinedOutput()
	if err != nil {
		t.Fatalf("gcc %s.c: %v\n%s", name, err, out)
	}
	return bin
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

// watched traces a program, which must end with the status.
func watched(t *testing.T, status int, args ...string) *trace {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "trace")
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	defer cancel()
	cmd := exec.CommandContext(ctx, exe, append([]string{tracerName, file}, args...)...)
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
	testutil.Need(t, got != skipped, "needs userfaultfd(2), with the features and the privilege for "+strings.Join(args[1:], " "))
	b, readErr := os.ReadFile(file)
	if got != status || readErr != nil {
		t.Fatalf("%v: status %d, want %d\n%s%s", args, got, status, out, b)
	}
	return parse(t, b)
}

func parse(t *testing.T, b []byte) *trace {
	t.Helper()
	var tr trace
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
