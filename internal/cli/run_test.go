// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/faultline-go/faultline/internal/doctor"
	"github.com/faultline-go/faultline/pager"
	"github.com/faultline-go/faultline/runner"
	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/tracee"
)

// numbered is a run whose every number is another one, so that two that are
// printed in each other's place show.
func numbered() runner.Stats {
	return runner.Stats{
		Pager: pager.Stats{
			Fresh: 101, Major: 102, Rescued: 103, Repeated: 104, Stale: 105,
			Parked: 106, Stalls: 107, Slow: 108,
			Ahead: 109, Useful: 110, Useless: 111,
			PagesIn: 112, PagesOut: 113, Clean: 114, Unmovable: 115, Lost: 116,
			Events: 117, Forks: 118, Starved: 119, StoreErrors: 120,
			Latency: pager.Latency{
				Count: 121, P50: 9216 * time.Nanosecond, P90: 123456 * time.Nanosecond,
				P99: 4321 * time.Microsecond, Max: 654321 * time.Microsecond,
			},
			Resident: 60 << 20, Peak: 65 << 20, Outside: 200 << 20,
			Store: store.Stats{
				BytesIn: 300 << 20, BytesOut: 150 << 20, Zero: 122, SameWord: 123, Raw: 124,
				Live: 125, LiveBytes: 80 << 20, Size: 160 << 20,
			},
		},
		Limit: 64 << 20, Processes: 3, Engaged: 2,
		Other: 5 << 20, OtherPeak: 7 << 20,
		Elapsed: 12345678 * time.Microsecond,
	}
}

func TestStatsText(t *testing.T) {
	untouched := runner.Stats{Limit: 64 << 20, Processes: 1, OtherPeak: 9 << 20, Elapsed: 70 * time.Millisecond}
	for _, tc := range []struct {
		golden string
		stats  runner.Stats
	}{
		{"stats.txt", numbered()},
		{"stats-untouched.txt", untouched},
	} {
		var b bytes.Buffer
		if err := writeStats(&b, tc.stats, false); err != nil {
			t.Fatal(err)
		}
		golden(t, tc.golden, b.Bytes())
	}
}

// TestStatsJSON pins the form that StatsSchema names: a change that breaks
// its readers needs a new number.
func TestStatsJSON(t *testing.T) {
	var b bytes.Buffer
	if err := writeStats(&b, numbered(), true); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(b.Bytes(), []byte("\n")); n != 1 {
		t.Errorf("%d lines, want one object on one line", n)
	}
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, b.Bytes(), "", "  "); err != nil {
		t.Fatal(err)
	}
	golden(t, "stats.json", pretty.Bytes())
	// numbered leaves nothing at zero, so whatever is, was forgotten.
	for _, name := range zeros("", reflect.ValueOf(toJSON(numbered()))) {
		t.Errorf("%s is not filled in", name)
	}
}

// zeros returns the names of the fields below v that have their zero value.
func zeros(name string, v reflect.Value) []string {
	if v.Kind() != reflect.Struct {
		if v.IsZero() {
			return []string{name}
		}
		return nil
	}
	var out []string
	for i := range v.NumField() {
		out = append(out, zeros(name+"."+v.Type().Field(i).Name, v.Field(i))...)
	}
	return out
}

// golden compares got with a file in testdata, or with FAULTLINE_UPDATE=1
// writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("FAULTLINE_UPDATE") != "" {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s: %s", name, d)
	}
}

func TestDescribe(t *testing.T) {
	idle := runner.Stats{Limit: 64 << 20, Other: 10 << 20}
	empty := numbered()
	empty.Pager.Store.LiveBytes, empty.Pager.Outside = 0, 0
	for _, tc := range []struct {
		title string
		stats runner.Stats
		rate  float64
		want  string
	}{
		{"untouched", idle, 0, "resident 10MiB, below the limit of 64MiB"},
		{"engaged", numbered(), 1234.5, "resident 60MiB of 64MiB, outside 200MiB (2.5x), 1234 faults/s, p50 9.2µs p99 4.32ms"},
		{"nothing outside", empty, 0, "resident 60MiB of 64MiB, outside 0B (-), 0 faults/s, p50 9.2µs p99 4.32ms"},
	} {
		if got := describe(tc.stats, tc.rate); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.title, got, tc.want)
		}
	}
}

func TestShort(t *testing.T) {
	for in, want := range map[time.Duration]string{
		0:                       "0s",
		9216:                    "9.2µs",
		123456:                  "120µs",
		99 * time.Millisecond:   "99ms",
		654321 * 1000:           "654ms",
		12345678 * 1000:         "12.346s",
		4321 * time.Microsecond: "4.32ms",
	} {
		if got := short(in).String(); got != want {
			t.Errorf("short(%d) = %s, want %s", in, got, want)
		}
	}
}

func TestParseProgress(t *testing.T) {
	t.Setenv("TERM", "dumb") // whatever standard error is here
	want := map[string]progressMode{
		"auto": progressNone, "plain": progressPlain, "json": progressJSON, "none": progressNone,
	}
	for _, name := range progressNames {
		if got, err := parseProgress(name); err != nil || got != want[name] {
			t.Errorf("parseProgress(%q) = %v, %v; want %v", name, got, err, want[name])
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("%s is not offered", name)
	}
	for _, bad := range []string{"", "Plain", "line"} {
		_, err := parseProgress(bad)
		if err == nil || !strings.Contains(err.Error(), "auto, plain, json or none") {
			t.Errorf("parseProgress(%q): %v, want an error with the choices", bad, err)
		}
	}
}

// TestProgressReport: the rate is that of the time between two reports.
func TestProgressReport(t *testing.T) {
	last, now := numbered(), numbered()
	now.Elapsed += 500 * time.Millisecond
	now.Pager.Major += 50

	var b bytes.Buffer
	newProgress(&b, progressPlain).report(now, last)
	if want := "faultline: 13s: " + describe(now, 100) + "\n"; b.String() != want {
		t.Errorf("plain: %q, want %q", b.String(), want)
	}
	// The same instant twice is no reason to divide by zero.
	b.Reset()
	newProgress(&b, progressPlain).report(now, now)
	if want := "faultline: 13s: " + describe(now, 0) + "\n"; b.String() != want {
		t.Errorf("plain, no time between: %q, want %q", b.String(), want)
	}
	b.Reset()
	newProgress(&b, progressJSON).report(now, last)
	golden(t, "progress.json", b.Bytes())
}

// TestProgressClears: talk does not end up behind a status line, and the line
// is gone at the end.
func TestProgressClears(t *testing.T) {
	const clearLine = "\r\x1b[K"
	var b bytes.Buffer
	p := newProgress(&b, progressLine)
	p.drawn = true
	if _, err := io.WriteString(p, "one\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(p, "two\n"); err != nil {
		t.Fatal(err)
	}
	p.drawn = true
	p.stop()
	if got, want := b.String(), clearLine+"one\ntwo\n"+clearLine; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestProgressTicks: a line a second, and none after stop.
func TestProgressTicks(t *testing.T) {
	for mode, want := range map[progressMode]int{progressNone: 0, progressPlain: 3, progressJSON: 3} {
		synctest.Test(t, func(t *testing.T) {
			var b bytes.Buffer
			p := newProgress(&b, mode)
			p.start(numbered)
			time.Sleep(3*logEvery + logEvery/2)
			p.stop()
			time.Sleep(3 * logEvery)
			if got := strings.Count(b.String(), "\n"); got != want {
				t.Errorf("mode %d: %d lines, want %d: %q", mode, got, want, &b)
			}
		})
	}
}

func TestLineHandler(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(&lineHandler{w: &b})
	log.Info("this is for --stats")
	if b.Len() > 0 {
		t.Errorf("information: %q, want silence", &b)
	}
	log.With("space", "pid 7").WithGroup("g").Warn("cannot evict", "err", errors.New("a\nb"), "n", 3)
	if got, want := b.String(), "faultline: cannot evict space=pid 7 err=a b n=3\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	// Two loggers that grow from one do not share what they add.
	b.Reset()
	base := log.With("a", 1)
	x, y := base.With("x", 1), base.With("y", 1)
	x.Error("m")
	y.Error("m")
	if got, want := b.String(), "faultline: m a=1 x=1\nfaultline: m a=1 y=1\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestManNamesRunFlags keeps the manual and the program together.
func TestManNamesRunFlags(t *testing.T) {
	page := readFile(t, "../../docs/man/faultline-run.1")
	newRun().Flags().VisitAll(func(f *pflag.Flag) {
		if !strings.Contains(page, ".It Fl -"+f.Name) {
			t.Errorf("faultline-run(1) does not mention --%s", f.Name)
		}
	})
	for _, schema := range []string{StatsSchema, ProgressSchema} {
		if !strings.Contains(page, schema) {
			t.Errorf("faultline-run(1) does not name %s", schema)
		}
	}
	for _, name := range members(reflect.TypeFor[jsonStats]()) {
		if !strings.Contains(page, name) {
			t.Errorf("faultline-run(1) does not mention %s", name)
		}
	}
	for _, name := range members(reflect.TypeFor[jsonProgress]()) {
		if !strings.Contains(page, name) {
			t.Errorf("faultline-run(1) does not mention %s", name)
		}
	}
}

// TestManNamesTopics: a topic that nobody is told of is not read.
func TestManNamesTopics(t *testing.T) {
	page := readFile(t, "../../docs/man/faultline.1")
	for _, topic := range topics() {
		if !strings.Contains(page, ".Cm "+topic.Name()+"\n") && !strings.Contains(page, ".Cm "+topic.Name()+" ") {
			t.Errorf("faultline(1) does not mention the topic %s", topic.Name())
		}
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// members returns the JSON names of all fields of a struct.
func members(t reflect.Type) []string {
	var out []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		out = append(out, name)
		if f.Type.Kind() == reflect.Struct {
			out = append(out, members(f.Type)...)
		}
	}
	return out
}

// TestStartError: a program that cannot be started has the status that a
// shell would give it.
func TestStartError(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		code int
		text string
	}{
		{filepath.Join(dir, "none"), ExitNotFound, "not found"},
		{"no-such-program-anywhere", ExitNotFound, "not found"},
		{plain, ExitNotExecutable, "not executable"},
		{dir, ExitNotExecutable, dir + ": is a directory"},
	} {
		_, err := lookUp(tc.name)
		e, ok := errors.AsType[*ExitError](err)
		if !ok || e.Code != tc.code || !strings.Contains(e.Error(), tc.text) {
			t.Errorf("lookUp(%s): %v, want status %d and %q", tc.name, err, tc.code, tc.text)
		}
	}
	for _, tc := range []struct {
		err  error
		code int
	}{
		{os.ErrNotExist, ExitNotFound},
		{os.ErrPermission, ExitNotExecutable},
		{tracee.ErrCompat, ExitNotExecutable},
		{&doctor.RunError{}, ExitOwn},
		{errors.New("another"), ExitOwn},
	} {
		cmd := &cobra.Command{Annotations: newRun().Annotations}
		if got := report(io.Discard, cmd, startError("x", tc.err), statusOf(cmd, ExitFailed), false); got != tc.code {
			t.Errorf("%v: status %d, want %d", tc.err, got, tc.code)
		}
	}
}
