// SPDX-License-Identifier: Apache-2.0

// Command provide compares userfaultfd as faultline provides it with the
// kernel's own.
//
//	go run ./bench/provide [-runs N] [-json] [-trace]
//
// One C program, which knows nothing of faultline, times its own faults,
// copies and reads; it runs in turn alone, on the kernel's call, and under
// `faultline provide`. It is bound to one processor on both sides, and once
// more to none. With -trace both sides are under `faultline trace`, which
// writes to nowhere.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/internal/workload/measure"
)

// A row is one thing that is measured.
type row struct {
	Name string `json:"name"`
	Goal string `json:"goal"`
	args []string
	free bool     // not bound to a processor
	wall bool     // the time of the whole process counts
	less []string // whose time is not counted: what it takes to start

	Kernel   float64 `json:"kernel_ns"`
	Provided float64 `json:"provided_ns"`
	Ratio    float64 `json:"ratio"` // time provided / time of the kernel's
}

func rows() []*row {
	return []*row{
		{Name: "fault round trip, p50, one processor", Goal: "≤ 4", args: []string{"fault", "16384"}},
		{Name: "fault round trip, p50, anywhere", Goal: "≤ 4", args: []string{"fault", "16384"}, free: true},
		{Name: "copy of 64 pages, each page", Goal: "≤ 4", args: []string{"bulk", "65536"}},
		{Name: "copy of one page", Goal: "≤ 4", args: []string{"copy", "16384"}},
		{Name: "read of 64 bytes, a descriptor there", Goal: "≤ 1.3", args: []string{"reads", "1000000"}},
		{Name: "read of 64 bytes, none there", Goal: "≤ 1.02", args: []string{"alone", "1000000"}},
		{Name: "program that does nothing", Goal: "none", args: []string{"work", "0"}, wall: true},
		{Name: "program that never makes the call, after its start", Goal: "≤ 1.02", args: []string{"work", "100"}, wall: true, less: []string{"work", "0"}},
	}
}

func main() {
	// The death of this thread kills what Command started.
	runtime.LockOSThread()
	runs := flag.Int("runs", 5, "`number` of runs of each side")
	binary := flag.String("faultline", "", "`path` of the faultline command; built from the source if empty")
	traced := flag.Bool("trace", false, "trace both sides")
	asJSON := flag.Bool("json", false, "print JSON instead of Markdown")
	flag.Parse()
	if *runs < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := measure.TempDir(func(dir string) error {
		if *binary == "" {
			built, err := measure.Faultline(ctx, dir)
			if err != nil {
				return err
			}
			*binary = built
		}
		program, err := workload.Compile(ctx, dir, "provide")
		if err != nil {
			return err
		}
		all := rows()
		for _, r := range all {
			if err := r.measure(ctx, *runs, *binary, program, *traced); err != nil {
				return err
			}
		}
		if *asJSON {
			return json.NewEncoder(os.Stdout).Encode(all)
		}
		return print(os.Stdout, all)
	})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "provide:", err)
		os.Exit(1)
	}
}

// measure runs both sides in turn and takes the medians.
func (r *row) measure(ctx context.Context, runs int, binary, program string, traced bool) error {
	alone, under := r.sides(binary, program, r.args, traced)
	alone0, under0 := r.sides(binary, program, r.less, traced)
	var kernel, provided []float64
	for range runs {
		for _, side := range []struct {
			args, less []string
			into       *[]float64
		}{{alone, alone0, &kernel}, {under, under0, &provided}} {
			v, err := r.value(ctx, side.args)
			if err != nil {
				return err
			}
			if r.less != nil {
				less, err := r.value(ctx, side.less)
				if err != nil {
					return err
				}
				v -= less
			}
			*side.into = append(*side.into, v)
		}
	}
	r.Kernel, r.Provided = measure.Median(kernel), measure.Median(provided)
	r.Ratio = r.Provided / r.Kernel
	return nil
}

// sides returns the commands that run the program with args on the kernel's
// call and on the provided one.
func (r *row) sides(binary, program string, args []string, traced bool) (alone, under []string) {
	alone = append([]string{program}, args...)
	if !r.free {
		alone = append([]string{"taskset", "1"}, alone...)
	}
	under = append([]string{binary, "provide", "--"}, alone...)
	if traced {
		under = append([]string{binary, "trace", "-o", os.DevNull, "--provided", "--"}, alone...)
		alone = append([]string{binary, "trace", "-o", os.DevNull, "--provided=false", "--"}, alone...)
	}
	return alone, under
}

// value runs a command and returns what that has measured, in nanoseconds.
func (r *row) value(ctx context.Context, args []string) (float64, error) {
	run, err := measure.Command(ctx, args...)
	if err != nil {
		return 0, err
	}
	if r.wall {
		return float64(run.Wall), nil
	}
	var out struct {
		P50  float64 `json:"p50_ns"`
		Each float64 `json:"each_ns"`
	}
	if err := json.Unmarshal(run.Stdout, &out); err != nil {
		return 0, fmt.Errorf("read the output of %v: %w", r.args, err)
	}
	return max(out.P50, out.Each), nil
}

func print(w io.Writer, all []*row) error {
	if err := measure.Machine(w); err != nil {
		return err
	}
	text := "\n| what | kernel, µs | provided, µs | ratio | goal |\n|---|---|---|---|---|\n"
	for _, r := range all {
		text += fmt.Sprintf("| %s | %.2f | %.2f | %.2f | %s |\n", r.Name, r.Kernel/1000, r.Provided/1000, r.Ratio, r.Goal)
	}
	_, err := io.WriteString(w, text)
	return err
}
