// SPDX-License-Identifier: Apache-2.0

// Command fits measures what faultline costs a program that does not need it:
// one whose memory fits under the limit.
//
//	go run ./bench/fits [-runs N] [-starts N] [-limit MIB]
//
// Each program runs in turn alone and under `faultline run`; so does
// /bin/true, many times, for the cost of starting. The output of both runs
// must be the same. The medians are printed as Markdown.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/internal/workload/measure"
)

const (
	slowdownGoal = 1.03
	startGoal    = 30 * time.Millisecond
)

// python builds, sorts and sums some 50 MiB of objects, several times.
const python = `
total = 0
for turn in range(4):
    d = {i * 7919 % 1000003: str(i) for i in range(150000)}
    l = sorted(d, key=lambda k: (d[k][::-1], k))
    b = bytearray(8 << 20)
    for i in range(0, len(b), 512):
        b[i] = i * turn & 255
    total = (total * 31 + sum(l[::7]) + sum(b)) % (1 << 61)
print(total)
`

// A program is something to run, and its times.
type program struct {
	name        string
	args        []string
	alone, ours []float64 // seconds
}

func main() {
	// The death of this thread kills what Command started.
	runtime.LockOSThread()
	runs := flag.Int("runs", 5, "`number` of runs of each program on each side")
	starts := flag.Int("starts", 40, "`number` of starts of /bin/true on each side")
	limit := flag.Int("limit", 128, "memory bound in `MiB`")
	binary := flag.String("faultline", "", "`path` of the faultline command; built from the source if empty")
	flag.Parse()
	if *runs < 1 || *starts < 1 || *limit < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := measure.TempDir(func(dir string) error {
		return bench(ctx, dir, *binary, *limit, *runs, *starts)
	})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fits:", err)
		os.Exit(1)
	}
}

// bench measures everything and prints the report.
func bench(ctx context.Context, dir, binary string, limit, runs, starts int) (err error) {
	if binary == "" {
		if binary, err = measure.Faultline(ctx, dir); err != nil {
			return err
		}
	}
	under := []string{binary, "run", "--limit", strconv.Itoa(limit) + "MiB", "--"}
	programs, err := programs(ctx, dir)
	if err != nil {
		return err
	}
	start := &program{name: "/bin/true", args: []string{"/bin/true"}}
	if err := start.measure(ctx, under, starts); err != nil {
		return err
	}
	for _, p := range programs {
		fmt.Fprintln(os.Stderr, p.name)
		if err := p.measure(ctx, under, runs); err != nil {
			return err
		}
	}
	under[0] = filepath.Base(binary)
	return report(os.Stdout, strings.Join(under, " "), start, programs)
}

// programs are those that this machine can run. Each has under 100 MiB.
func programs(ctx context.Context, dir string) ([]*program, error) {
	touch, err := workload.Compile(ctx, dir, "touch")
	if err != nil {
		return nil, err
	}
	gomem, err := workload.Compile(ctx, dir, "gomem")
	if err != nil {
		return nil, err
	}
	lines := filepath.Join(dir, "lines")
	if err := writeLines(lines); err != nil {
		return nil, fmt.Errorf("input of sort: %w", err)
	}
	all := []*program{
		{name: "touch, 48 MiB, one thread", args: []string{touch, "--repeat", "100", "48", "1", "1",
			"fill", "seqread", "seqwrite", "random", "hot", "count"}},
		{name: "touch, 48 MiB, two threads", args: []string{touch, "--repeat", "150", "48", "2", "1",
			"fill", "seqread", "seqwrite", "random", "hot", "count"}},
		{name: "gomem, 24 MiB of live heap", args: []string{gomem, "24", "1", "60"}},
		{name: "sort of 32 MiB", args: []string{"sort", "-S", "64M", "--parallel=2", "-T", dir, lines}},
		{name: "python3: dicts, sorting", args: []string{"python3", "-c", python}},
	}
	var here []*program
	for _, p := range all {
		if _, err := exec.LookPath(p.args[0]); err != nil {
			fmt.Fprintln(os.Stderr, "fits: left out:", err)
			continue
		}
		here = append(here, p)
	}
	return here, nil
}

// writeLines makes 32 MiB of distinct lines in no order.
func writeLines(path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	x := uint64(1)
	for range 1 << 20 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		fmt.Fprintf(w, "%016x %014d\n", x, x%99999999999999)
	}
	return w.Flush() // remembers the first error of the writes
}

// measure runs p alone and under faultline, in turn. Which goes first changes
// from run to run: a machine may be slower, or its caches warmer, for the
// second of two.
func (p *program) measure(ctx context.Context, under []string, runs int) error {
	sides := []struct {
		args    []string
		seconds *[]float64
	}{
		{p.args, &p.alone},
		{append(under[:len(under):len(under)], p.args...), &p.ours},
	}
	var stdout []byte
	for run := range 2 * runs {
		side := sides[(run+run/2)%2] // 0, 1, 1, 0, 0, 1...
		r, err := measure.Command(ctx, side.args...)
		if err != nil {
			return err
		}
		if run == 0 {
			stdout = r.Stdout
		} else if !bytes.Equal(stdout, r.Stdout) {
			return fmt.Errorf("%s prints something else under faultline", p.name)
		}
		*side.seconds = append(*side.seconds, r.Wall.Seconds())
	}
	return nil
}

// slowdown is the program's time under faultline, less the cost of starting,
// divided by its time alone.
func (p *program) slowdown(start float64) float64 {
	return (measure.Median(p.ours) - start) / measure.Median(p.alone)
}

// report writes the measurements as Markdown.
func report(w io.Writer, under string, start *program, programs []*program) error {
	var b bytes.Buffer
	if err := measure.Machine(&b); err != nil {
		return err
	}
	cost := measure.Median(start.ours) - measure.Median(start.alone)
	fmt.Fprintf(&b, "\n`%s`: starting costs %.1f ms (%s: %.1f ms alone, %.1f under faultline; medians of %d); the goal is under %d ms.\n",
		under, cost*1000, start.name, measure.Median(start.alone)*1000, measure.Median(start.ours)*1000,
		len(start.ours), startGoal.Milliseconds())
	b.WriteString("\n| program that fits | alone, s | faultline, s | faultline ÷ alone after starting | goal |\n|---|---|---|---|---|\n")
	for _, p := range programs {
		fmt.Fprintf(&b, "| %s | %.3f | %.3f | %.3f | ≤ %.2f |\n",
			p.name, measure.Median(p.alone), measure.Median(p.ours), p.slowdown(cost), slowdownGoal)
	}
	_, err := b.WriteTo(w)
	return err
}
