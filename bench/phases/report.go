// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/faultline-go/faultline/internal/workload/measure"
)

// phases are what is measured, by touch's names, in their order: each finds
// in memory what the one before has left there.
var phases = []struct {
	name, title string
	goal        float64 // the kernel's time divided by ours, at least
}{
	{"fill", "first fill", 1.0},
	{"seqread", "sequential read", 3},
	{"seqwrite", "sequential write", 3},
	{"strided", "strided read (every 7th page, wrapping)", 2},
	{"random", "uniform random read", 1.2},
	{"hot", "90/10 hot set", 1.0},
}

// A series is the times of each phase, in nanoseconds per access, one for each
// run.
type series map[string][]float64

// A report collects the runs of both sides by the number of threads.
type report struct {
	options      *options
	kernel, ours map[int]series
}

func newReport(o *options) *report {
	return &report{options: o, kernel: make(map[int]series), ours: make(map[int]series)}
}

// add takes up one run of a side.
func (r *report) add(side map[int]series, threads int, run *measure.Run) {
	if side[threads] == nil {
		side[threads] = make(series)
	}
	for phase, ns := range measure.Times(run.Stderr) {
		side[threads][phase] = append(side[threads][phase], ns)
	}
}

// print writes the report as Markdown.
func (r *report) print(w io.Writer) error {
	var b bytes.Buffer
	o := r.options
	fmt.Fprintf(&b, "Working set of %d MiB of half-compressible pages, bound of %d MiB; ", o.mib, o.limit)
	fmt.Fprintf(&b, "µs per access, medians of %d runs (least–most).\n\n", o.runs)
	b.WriteString("Machine: ")
	if err := measure.Machine(&b); err != nil {
		return err
	}
	program := "touch " + strings.Join(touchArgs(o, o.threads[0]), " ")
	if o.kernel {
		fmt.Fprintf(&b, "Kernel: memory cgroup of %d MiB, swap to %s; `%s`\n", o.limit, swapName(o.swap), program)
	}
	if o.ours {
		args := oursArgs(o)
		args[0] = filepath.Base(args[0])
		fmt.Fprintf(&b, "Ours: `%s %s`\n", strings.Join(args, " "), program)
	}
	for _, threads := range o.threads {
		fmt.Fprintf(&b, "\n| phase, threads: %d | kernel | faultline | kernel ÷ faultline | goal |\n", threads)
		b.WriteString("|---|---|---|---|---|\n")
		for _, p := range phases {
			theirs, ours := r.kernel[threads][p.name], r.ours[threads][p.name]
			ratio := quotient(measure.Median(theirs), measure.Median(ours))
			fmt.Fprintf(&b, "| %s | %s | %s | %s | ≥ %.1f |\n", p.title, cell(theirs), cell(ours), ratio, p.goal)
		}
	}
	r.printThroughput(&b)
	_, err := b.WriteTo(w)
	return err
}

// printThroughput compares the random phase with several threads to that with
// the first number of threads.
func (r *report) printThroughput(b *bytes.Buffer) {
	first := r.options.threads[0]
	if len(r.options.threads) < 2 {
		return
	}
	fmt.Fprintf(b, "\n| random reads a second, against %d threads | kernel | faultline |\n|---|---|---|\n", first)
	for _, threads := range r.options.threads[1:] {
		ratio := func(side map[int]series) string {
			return quotient(measure.Median(side[first]["random"]), measure.Median(side[threads]["random"]))
		}
		fmt.Fprintf(b, "| %d threads | %s | %s |\n", threads, ratio(r.kernel), ratio(r.ours))
	}
}

// cell is a median in microseconds with its range.
func cell(ns []float64) string {
	if len(ns) == 0 {
		return "–"
	}
	least, most := ns[0], ns[0]
	for _, v := range ns {
		least, most = min(least, v), max(most, v)
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", measure.Median(ns)/1000, least/1000, most/1000)
}

func quotient(a, b float64) string {
	if a == 0 || b == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", a/b)
}
