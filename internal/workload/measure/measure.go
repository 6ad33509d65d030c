// SPDX-License-Identifier: Apache-2.0

// Package measure holds what the programs in bench share: running both sides
// of a comparison, reading what touch reports, medians, and a description of
// the machine to print beside the numbers.
package measure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// faultlinePackage is the command that is measured.
const faultlinePackage = "github.com/faultline-go/faultline/cmd/faultline"

// A Run is what came of running a program once.
type Run struct {
	Wall   time.Duration
	Stdout []byte
	Stderr []byte
}

// Command runs a program to its end and measures its wall time. It returns an
// error with the program's stderr unless the status is 0. When ctx ends, or
// when the calling program dies, the program is killed; for the second the
// caller must be on a thread that lives as long, which a locked main is.
func Command(ctx context.Context, args ...string) (*Run, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began := time.Now()
	err := cmd.Run()
	wall := time.Since(began)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s: %w", args[0], context.Cause(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, &stderr)
	}
	return &Run{Wall: wall, Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}, nil
}

// Times returns what touch --times reported on stderr: nanoseconds per access
// for each phase. Other lines are ignored; a phase that ran several times
// counts with its last.
func Times(stderr []byte) map[string]float64 {
	times := make(map[string]float64)
	for line := range strings.Lines(string(stderr)) {
		var phase string
		var ns float64
		if _, err := fmt.Sscanf(line, "time %s %f", &phase, &ns); err == nil {
			times[phase] = ns
		}
	}
	return times
}

// A Latency is what touch --latency reported of the accesses that faulted, or
// the floor of all: quantiles in nanoseconds.
type Latency struct {
	Faults int     `json:"faults"`
	P50    float64 `json:"p50_ns"`
	P90    float64 `json:"p90_ns"`
	P99    float64 `json:"p99_ns"`
	Max    float64 `json:"max_ns"`
}

// Latencies returns what touch --latency reported on stderr, by phase.
func Latencies(stderr []byte) map[string]Latency {
	latencies := make(map[string]Latency)
	for line := range strings.Lines(string(stderr)) {
		var phase string
		var l Latency
		_, err := fmt.Sscanf(line, "latency %s %d %f %f %f %f",
			&phase, &l.Faults, &l.P50, &l.P90, &l.P99, &l.Max)
		if err == nil {
			latencies[phase] = l
		}
	}
	return latencies
}

// Median returns the middle of values, the mean of the middle two where their
// number is even, and zero for none.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// Faultline builds the faultline command of this module into dir, without
// cgo as it ships, and returns its path.
func Faultline(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "faultline")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, faultlinePackage)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build faultline: %w\n%s", err, bytes.TrimSpace(out))
	}
	return path, look(ctx)
}

// look asks after all sources of the command. A test that builds it does not link them,
// and so go test would not know that its result is of these; but it remembers what files
// of the module a test has asked after, and runs it again when one has changed.
func look(ctx context.Context) error {
	const files = `{{with .Module}}{{if .Main}}{{range $.GoFiles}}{{$.Dir}}/{{.}}
{{end}}{{range $.SFiles}}{{$.Dir}}/{{.}}
{{end}}{{range $.EmbedFiles}}{{$.Dir}}/{{.}}
{{end}}{{end}}{{end}}`
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-f", files, faultlinePackage)
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("list the sources of faultline: %w", err)
	}
	for name := range strings.FieldsFuncSeq(string(out), func(c rune) bool { return c == '\n' }) {
		if _, err := os.Stat(name); err != nil {
			return err
		}
	}
	return nil
}

// Machine writes a line about where the numbers come from: kernel, processor
// and the settings that matter to them. What cannot be read is left out.
func Machine(w io.Writer) error {
	line := []string{fmt.Sprintf("%d CPUs", runtime.NumCPU())}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		line = append(line, "Linux "+string(bytes.TrimSpace(b)))
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for l := range strings.Lines(string(b)) {
			if name, model, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(name) == "model name" {
				line = append(line, strings.TrimSpace(model))
				break
			}
		}
	}
	if b, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled"); err == nil {
		line = append(line, "transparent huge pages "+string(bytes.TrimSpace(b)))
	}
	_, err := fmt.Fprintln(w, strings.Join(line, ", "))
	return err
}

// TempDir calls f with a new directory and removes it afterwards.
func TempDir(f func(dir string) error) (err error) {
	dir, err := os.MkdirTemp("", "faultline-bench-")
	if err != nil {
		return fmt.Errorf("temporary directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return f(dir)
}
