// SPDX-License-Identifier: Apache-2.0

// Command phases compares faultline with the kernel's own swap, phase by
// phase: first fill, sequential, strided, random and hot-set access to a
// working set four times as large as the memory it may have.
//
//	go run ./bench/phases [-runs N] [-store URL] [-swap zram|file:DIR] [-threads 1,4] [-side both] [-engine kernel|user]
//
// The kernel's side is a memory cgroup with a limit and swap to a zram device
// (lz4) or to a file, both made for the run and removed after it; it needs
// root. Our side is `faultline run` with the same limit. Both run the same
// program, in turn, and the medians are printed as Markdown.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/internal/workload/measure"
)

// options are the flags, parsed.
type options struct {
	runs    int
	mib     int
	limit   int // MiB
	store   string
	swap    string
	threads []int
	kernel  bool
	ours    bool
	engine  string // who tells faultline of faults
	binary  string // of faultline; built if empty
}

func main() {
	// The death of this thread kills what Command started.
	runtime.LockOSThread()
	o, err := parse(os.Args[1:])
	if err != nil {
		os.Exit(2) // the flag package has said why
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err = measure.TempDir(func(dir string) error { return bench(ctx, o, dir) })
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "phases:", err)
		os.Exit(1)
	}
}

// parse reads the flags. It has told the user what is wrong with them when it
// returns an error.
func parse(args []string) (*options, error) {
	var o options
	var threads, side string
	f := flag.NewFlagSet("phases", flag.ContinueOnError)
	f.IntVar(&o.runs, "runs", 3, "`number` of runs of each side")
	f.IntVar(&o.mib, "mib", 256, "working set in `MiB`")
	f.IntVar(&o.limit, "limit", 64, "memory bound in `MiB`")
	f.StringVar(&o.store, "store", "mem:", "`URL` of faultline's store")
	f.StringVar(&o.swap, "swap", "zram", "the kernel's swap: zram, or file:`DIR`")
	f.StringVar(&threads, "threads", "1", "comma-separated `numbers` of faulting threads")
	f.StringVar(&side, "side", "both", "both, kernel or ours")
	f.StringVar(&o.engine, "engine", "kernel", "`who` tells faultline of faults: kernel or user")
	f.StringVar(&o.binary, "faultline", "", "`path` of the faultline command; built from the source if empty")
	err := f.Parse(args)
	if err != nil {
		return nil, err
	}
	for _, text := range strings.Split(threads, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, usage(f, "-threads: not a positive number: "+text)
		}
		o.threads = append(o.threads, n)
	}
	if dir, file := strings.CutPrefix(o.swap, "file:"); o.swap != "zram" && (!file || dir == "") {
		return nil, usage(f, "-swap: zram or file:DIR, not "+o.swap)
	}
	o.kernel, o.ours = side != "ours", side != "kernel"
	if side != "both" && o.kernel == o.ours {
		return nil, usage(f, "-side: both, kernel or ours, not "+side)
	}
	if o.runs < 1 || o.limit < 1 || o.mib < 1 || f.NArg() > 0 {
		return nil, usage(f, "-runs, -mib and -limit must be positive, and nothing may follow the flags")
	}
	return &o, nil
}

func usage(f *flag.FlagSet, problem string) error {
	fmt.Fprintln(f.Output(), problem)
	f.Usage()
	return errors.New(problem)
}

// bench runs both sides and prints the report.
func bench(ctx context.Context, o *options, dir string) error {
	touch, err := workload.Compile(ctx, dir, "touch")
	if err != nil {
		return err
	}
	if o.ours && o.binary == "" {
		if o.binary, err = measure.Faultline(ctx, dir); err != nil {
			if !o.kernel {
				return err
			}
			fmt.Fprintln(os.Stderr, "phases: only the kernel's side:", err)
			o.ours = false
		}
	}
	r := newReport(o)
	for run := range o.runs {
		for _, threads := range o.threads {
			args := append([]string{touch}, touchArgs(o, threads)...)
			fmt.Fprintf(os.Stderr, "run %d of %d, %d threads\n", run+1, o.runs, threads)
			if err := both(ctx, o, r, threads, args); err != nil {
				return err
			}
		}
	}
	return r.print(os.Stdout)
}

// touchArgs are the arguments of touch. The verification at the end is not
// timed in the report: it reads all of every page, and nothing may be wrong.
func touchArgs(o *options, threads int) []string {
	args := []string{"--light", "--times", strconv.Itoa(o.mib), strconv.Itoa(threads), "1"}
	for _, p := range phases {
		args = append(args, p.name)
	}
	return append(args, "verify")
}

// oursArgs is the command line of our side, before the program's.
func oursArgs(o *options) []string {
	return []string{o.binary, "run", "--limit", fmt.Sprintf("%dMiB", o.limit), "--store", o.store, "--engine", o.engine, "--"}
}

// both runs the kernel's side and then ours, and requires the same output.
func both(ctx context.Context, o *options, r *report, threads int, args []string) error {
	var theirs *measure.Run
	if o.kernel {
		err := withSwap(ctx, o, func(enter []string) (err error) {
			theirs, err = measure.Command(ctx, append(enter, args...)...)
			return err
		})
		if err != nil {
			return fmt.Errorf("kernel's side: %w", err)
		}
		r.add(r.kernel, threads, theirs)
	}
	if o.ours {
		ours, err := measure.Command(ctx, append(oursArgs(o), args...)...)
		if err != nil {
			return fmt.Errorf("our side: %w", err)
		}
		if theirs != nil && string(ours.Stdout) != string(theirs.Stdout) {
			return fmt.Errorf("the two sides' output differs:\n%s\n%s", theirs.Stdout, ours.Stdout)
		}
		r.add(r.ours, threads, ours)
	}
	return nil
}
