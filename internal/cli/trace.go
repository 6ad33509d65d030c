// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/faultline-go/faultline/internal/uffdtrace"
	"github.com/faultline-go/faultline/internal/watch"
	"github.com/faultline-go/faultline/provider"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/uffd"
)

func newTrace() *cobra.Command {
	var o traceOptions
	cmd := &cobra.Command{
		Use:   "trace [FLAGS] -- PROGRAM [ARG...]",
		Short: "Show what a program does with userfaultfd",
		Long: "Trace runs PROGRAM and prints a line for every call that it, or anything that\n" +
			"it starts, makes on a userfaultfd: with the arguments before and after, the\n" +
			"messages that are read, and for each fault how long it took from being read to\n" +
			"the call that wakes the thread. A summary comes at the end. The program needs\n" +
			"no change and sees none; the exit status is its own.\n\n" +
			"Where the kernel refuses its userfaultfd, or with --provided, the program has\n" +
			"the call from faultline, as under faultline provide.",
		Example: "  faultline trace -- ./manager                        lines on standard error\n" +
			"  faultline trace -o trace.txt -- qemu-system-x86_64 ...\n" +
			"  faultline trace --json -o /dev/stdout -- ./manager | jq .woken",
		Annotations: map[string]string{ownStatus: strconv.Itoa(ExitOwn)},
		Args:        aProgram,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.chosen = cmd.Flags().Changed("provided")
			return trace(cmd, o, args)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows the program is the program's
	f.StringVarP(&o.output, "output", "o", "", "write to `FILE` instead of standard error")
	f.BoolVar(&o.provided, "provided", false,
		"give the program the call ourselves, or with =false never (default: where the kernel refuses it)")
	return cmd
}

type traceOptions struct {
	output   string
	provided bool // the program has the call from us
	chosen   bool // the user has said so, or that it has not
}

// ended is how a traced program has ended.
type ended struct {
	status  tracee.Status
	elapsed time.Duration
}

// trace is the command. It returns an *ExitError with the program's status, or
// does not return when the program was killed by a signal.
func trace(cmd *cobra.Command, o traceOptions, args []string) error {
	asJSON, err := cmd.Flags().GetBool("json")
	if err != nil {
		return err
	}
	path, err := lookUp(args[0])
	if err != nil {
		return err
	}
	var to io.Writer = cmd.ErrOrStderr()
	finish := func() error { return nil }
	if o.output != "" {
		f, err := os.Create(o.output)
		if err != nil {
			return err
		}
		to, finish = f, f.Close
	}
	if !o.chosen {
		if refused := kernelRefuses(); refused != nil {
			o.provided = true
			warn(cmd, asJSON, fmt.Sprintf("the program has the call from faultline, since the kernel refuses it: %v", refused))
		}
	}
	sink := uffdtrace.New(to, asJSON)
	run := traceKernel
	if o.provided {
		run = traceProvided
	}
	end, err := run(path, args, sink)
	if err != nil {
		return err
	}
	err = sink.Finish(end.elapsed)
	if closeErr := finish(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("the trace is not complete: %w", err)
	}
	if end.status.Signal() != 0 {
		tracee.MirrorExit(end.status) // does not return
	}
	return &ExitError{Code: end.status.Code()}
}

// kernelRefuses returns why no program of ours gets a userfaultfd from the
// kernel, nil if one does.
func kernelRefuses() error {
	f, err := uffd.Open(uffd.Options{UserModeOnly: true})
	if err != nil {
		return err
	}
	return f.Close()
}

// traceKernel traces a program whose calls the kernel answers.
func traceKernel(path string, args []string, sink uffdtrace.Sink) (e ended, err error) {
	w, err := watch.Start(watch.Options{Path: path, Argv: args, Env: os.Environ(), Sink: sink})
	if err != nil {
		return e, startError(args[0], err)
	}
	e.status, e.elapsed, err = w.Wait()
	return e, err
}

// traceProvided traces one whose calls we answer.
func traceProvided(path string, args []string, sink uffdtrace.Sink) (e ended, err error) {
	started := time.Now() // before the first event
	p, err := provider.Start(provider.Options{Path: path, Argv: args, Env: os.Environ(), Trace: sink})
	if err != nil {
		return e, startError(args[0], err)
	}
	e.status, err = p.Wait()
	e.elapsed = time.Since(started)
	return e, err
}
