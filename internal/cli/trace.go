// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/faultline-go/faultline/internal/uffdtrace"
	"github.com/faultline-go/faultline/internal/watch"
	"github.com/faultline-go/faultline/tracee"
)

func newTrace() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "trace [FLAGS] -- PROGRAM [ARG...]",
		Short: "Show what a program does with userfaultfd",
		Long: "Trace runs PROGRAM and prints a line for every call that it, or anything that\n" +
			"it starts, makes on a userfaultfd: with the arguments before and after, the\n" +
			"messages that are read, and for each fault how long it took from being read to\n" +
			"the call that wakes the thread. A summary comes at the end. The program needs\n" +
			"no change and sees none; the exit status is its own.",
		Example: "  faultline trace -- ./manager                        lines on standard error\n" +
			"  faultline trace -o trace.txt -- qemu-system-x86_64 ...\n" +
			"  faultline trace --json -o /dev/stdout -- ./manager | jq .woken",
		Annotations: map[string]string{ownStatus: strconv.Itoa(ExitOwn)},
		Args:        aProgram,
		RunE:        func(cmd *cobra.Command, args []string) error { return trace(cmd, output, args) },
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows the program is the program's
	f.StringVarP(&output, "output", "o", "", "write to `FILE` instead of standard error")
	return cmd
}

// trace is the command. It returns an *ExitError with the program's status, or
// does not return when the program was killed by a signal.
func trace(cmd *cobra.Command, output string, args []string) error {
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
	if output != "" {
		f, err := os.Create(output)
		if err != nil {
			return err
		}
		to, finish = f, f.Close
	}
	sink := uffdtrace.New(to, asJSON)
	w, err := watch.Start(watch.Options{Path: path, Argv: args, Env: os.Environ(), Sink: sink})
	if err != nil {
		return startError(args[0], err)
	}
	status, elapsed, err := w.Wait()
	if err != nil {
		return err
	}
	err = sink.Finish(elapsed)
	if closeErr := finish(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("the trace is not complete: %w", err)
	}
	if status.Signal() != 0 {
		tracee.MirrorExit(status) // does not return
	}
	return &ExitError{Code: status.Code()}
}
