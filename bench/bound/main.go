// SPDX-License-Identifier: Apache-2.0

// Command bound measures whether the bound is one: the most memory that was
// resident at a time, of the program and of faultline itself.
//
//	go run ./bench/bound [-mib N] [-limit N] [-runs N]
//
// A program fills, reads, rewrites and verifies far more than its limit in
// several orders, by one thread and by four, with pages outside in each kind
// of store. Meanwhile /proc/PID/smaps is read all the time.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/internal/workload/measure"
)

const mib = 1 << 20

// The goals. Peak of the bounded memory: the limit, 4 MiB and a hundredth.
// Faultline's own: 32 MiB and 24 bytes for each page outside, without the
// compressed pages of a store in memory.
func boundGoal(limit uint64) uint64   { return limit + 4*mib + limit/100 }
func ownGoal(pagesOut uint64) uint64  { return 32*mib + 24*pagesOut }
func outside(size, lim uint64) uint64 { return (size - min(size, lim)) / 4096 }

// A row is the worst of all runs of one case.
type row struct {
	store     string
	threads   int
	peak, own uint64 // bytes
}

func main() {
	// The death of this thread kills what it started.
	runtime.LockOSThread()
	size := flag.Int("mib", 1024, "working set in `MiB`")
	limit := flag.Int("limit", 64, "memory bound in `MiB`")
	runs := flag.Int("runs", 3, "`number` of runs of each case")
	binary := flag.String("faultline", "", "`path` of the faultline command, whose file must have that name; built from the source if empty")
	flag.Parse()
	if *size < 1 || *limit < 1 || *runs < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := measure.TempDir(func(dir string) error {
		return bench(ctx, dir, *binary, *size, *limit, *runs)
	})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bound:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, dir, binary string, size, limit, runs int) (err error) {
	if binary == "" {
		if binary, err = measure.Faultline(ctx, dir); err != nil {
			return err
		}
	}
	touch, err := workload.Compile(ctx, dir, "touch")
	if err != nil {
		return err
	}
	var rows []row
	for _, store := range []string{"mem:", "file:"} {
		for _, threads := range []int{1, 4} {
			worst := row{store: store, threads: threads}
			for range runs {
				fmt.Fprintf(os.Stderr, "%s, %d threads\n", store, threads)
				args := []string{binary, "run", "--limit", strconv.Itoa(limit) + "MiB", "--store", store, "--",
					touch, "--light", strconv.Itoa(size), strconv.Itoa(threads), "1",
					"fill", "seqread", "seqwrite", "strided", "random", "hot", "verify"}
				if err := worst.measure(ctx, args); err != nil {
					return err
				}
			}
			rows = append(rows, worst)
		}
	}
	return report(os.Stdout, uint64(size)*mib, uint64(limit)*mib, rows)
}

// measure runs one case once.
func (r *row) measure(ctx context.Context, args []string) error {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	w := measure.Watch(cmd.Process.Pid)
	err := cmd.Wait()
	peak := w.Stop()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, &stderr)
	}
	r.peak, r.own = max(r.peak, peak.Bytes), max(r.own, peak.Own)
	return nil
}

// report writes the rows as Markdown.
func report(w io.Writer, size, limit uint64, rows []row) error {
	var b bytes.Buffer
	if err := measure.Machine(&b); err != nil {
		return err
	}
	fmt.Fprintf(&b, "\nWorking set of %d MiB, bound of %d MiB; MiB, the most of all runs.\n", size/mib, limit/mib)
	b.WriteString("\n| store | threads | bounded memory | at most | faultline's own | at most |\n|---|---|---|---|---|---|\n")
	in := func(n uint64) string { return fmt.Sprintf("%.1f", float64(n)/mib) }
	ownMost := ownGoal(outside(size, limit))
	for _, r := range rows {
		own := in(r.own) + verdict(r.own, ownMost)
		if r.store == "mem:" {
			own = "" // the pages are there, too
		}
		fmt.Fprintf(&b, "| %s | %d | %s%s | %s | %s | %s |\n", r.store, r.threads,
			in(r.peak), verdict(r.peak, boundGoal(limit)), in(boundGoal(limit)), own, in(ownMost))
	}
	b.WriteString("\nFaultline's own memory is all that is resident in its process, the text of the program included.\n")
	_, err := b.WriteTo(w)
	return err
}

func verdict(got, most uint64) string {
	if got > most {
		return ", not kept"
	}
	return ""
}
