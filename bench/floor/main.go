// SPDX-License-Identifier: Apache-2.0

// Command floor compares one demand fault under faultline with the least that
// a fault can cost.
//
//	go run ./bench/floor [-runs N] [-store URL] [-alone] [-json]
//
// The floor is a C program: a thread on the faulting thread's own CPU that
// blocks in read and answers by one UFFDIO_COPY of a constant page. Our side
// is a random read of 256 MiB under `faultline run` with 64 MiB, of which
// the accesses that faulted are counted: each brings a page in from the store
// and has, sooner or later, pushed another out. Both run in turn.
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

// goal is what our p50 may be, in multiples of the floor's.
const goal = 1.3

// A result is the medians over all runs of each quantile, in nanoseconds.
type result struct {
	Floor     measure.Latency  `json:"floor"`
	Faultline *measure.Latency `json:"faultline,omitempty"`
	Ratio     float64          `json:"p50_ratio,omitempty"`
}

func main() {
	// The death of this thread kills what Command started.
	runtime.LockOSThread()
	runs := flag.Int("runs", 3, "`number` of runs of each side")
	store := flag.String("store", "mem:", "`URL` of faultline's store")
	binary := flag.String("faultline", "", "`path` of the faultline command; built from the source if empty")
	alone := flag.Bool("alone", false, "measure the floor only")
	asJSON := flag.Bool("json", false, "print JSON instead of Markdown")
	flag.Parse()
	if *alone {
		*binary = ""
	}
	if *runs < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := measure.TempDir(func(dir string) error {
		if !*alone && *binary == "" {
			built, err := measure.Faultline(ctx, dir)
			if err != nil {
				return err
			}
			*binary = built
		}
		r, err := bench(ctx, dir, *runs, *store, *binary)
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(os.Stdout).Encode(r)
		}
		return r.print(os.Stdout)
	})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
}

// bench runs both sides in turn, or the floor alone if binary is empty.
func bench(ctx context.Context, dir string, runs int, store, binary string) (*result, error) {
	floor, err := workload.Compile(ctx, dir, "floor")
	if err != nil {
		return nil, err
	}
	touch, err := workload.Compile(ctx, dir, "touch")
	if err != nil {
		return nil, err
	}
	var floors, ours []measure.Latency
	for range runs {
		run, err := measure.Command(ctx, floor)
		if err != nil {
			return nil, err
		}
		var l measure.Latency
		if err := json.Unmarshal(run.Stdout, &l); err != nil {
			return nil, fmt.Errorf("read the floor's output: %w", err)
		}
		floors = append(floors, l)
		if binary == "" {
			continue
		}
		run, err = measure.Command(ctx, binary, "run", "--limit", "64MiB", "--store", store, "--",
			touch, "--light", "--latency", "256", "1", "1", "fill", "random", "verify")
		if err != nil {
			return nil, err
		}
		l, ok := measure.Latencies(run.Stderr)["random"]
		if !ok {
			return nil, fmt.Errorf("touch reported no faults:\n%s", run.Stderr)
		}
		ours = append(ours, l)
	}
	return summarise(floors, ours), nil
}

// summarise takes the medians of the runs.
func summarise(floors, ours []measure.Latency) *result {
	r := &result{Floor: middle(floors)}
	if len(ours) > 0 {
		m := middle(ours)
		r.Faultline = &m
		r.Ratio = m.P50 / r.Floor.P50
	}
	return r
}

// middle takes the median of each quantile.
func middle(all []measure.Latency) measure.Latency {
	median := func(field func(measure.Latency) float64) float64 {
		values := make([]float64, len(all))
		for i, l := range all {
			values[i] = field(l)
		}
		return measure.Median(values)
	}
	return measure.Latency{
		Faults: int(median(func(l measure.Latency) float64 { return float64(l.Faults) })),
		P50:    median(func(l measure.Latency) float64 { return l.P50 }),
		P90:    median(func(l measure.Latency) float64 { return l.P90 }),
		P99:    median(func(l measure.Latency) float64 { return l.P99 }),
		Max:    median(func(l measure.Latency) float64 { return l.Max }),
	}
}

// print writes the result as Markdown.
func (r *result) print(w io.Writer) error {
	if err := measure.Machine(w); err != nil {
		return err
	}
	line := func(name string, l measure.Latency) string {
		return fmt.Sprintf("| %s | %d | %.2f | %.2f | %.2f |\n",
			name, l.Faults, l.P50/1000, l.P90/1000, l.P99/1000)
	}
	text := "\n| one demand fault, µs | faults | p50 | p90 | p99 |\n|---|---|---|---|---|\n" +
		line("C floor: same CPU, constant page", r.Floor)
	if r.Faultline != nil {
		text += line("faultline: from the lz4 store", *r.Faultline)
		text += fmt.Sprintf("\np50 is %.2f times the floor's; the goal is at most %.1f.\n", r.Ratio, goal)
	}
	_, err := io.WriteString(w, text)
	return err
}
