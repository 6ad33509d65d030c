// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/faultline-go/faultline/internal/doctor"
	"github.com/faultline-go/faultline/internal/place"
	"github.com/faultline-go/faultline/provider"
	"github.com/faultline-go/faultline/tracee"
)

func newProvide() *cobra.Command {
	return &cobra.Command{
		Use:   "provide [FLAGS] -- PROGRAM [ARG...]",
		Short: "Give a program the userfaultfd call where the kernel does not",
		Long: "Provide starts PROGRAM and answers its calls of userfaultfd(2) itself: in a\n" +
			"container that forbids them, without privilege, on a kernel that has none. What\n" +
			"descriptors do, and when a page fault waits for one, is decided by faultline\n" +
			"as Linux 6.18 would. The program needs no change; one that never makes the\n" +
			"call runs as fast as alone. The exit status is its own.",
		Example:     "  faultline provide -- stress-ng --userfaultfd 1 -t 10",
		Annotations: map[string]string{ownStatus: strconv.Itoa(ExitOwn)},
		Args:        aProgram,
		RunE:        provide,
	}
}

// provide is the command. It returns an *ExitError with the program's status,
// or does not return when the program was killed by a signal.
func provide(cmd *cobra.Command, args []string) error {
	path, err := lookUp(args[0])
	if err != nil {
		return err
	}
	makePlaces()
	p, err := provider.Start(provider.Options{
		Path: path, Argv: args, Env: os.Environ(),
		Log: slog.New(&lineHandler{w: cmd.ErrOrStderr()}),
	})
	if err != nil {
		return provideError(startError(args[0], err))
	}
	place.Quiet() // there are places enough
	status, err := p.Wait()
	if err != nil {
		return provideError(fmt.Errorf("%s: %w", args[0], err))
	}
	if status.Signal() != 0 {
		tracee.MirrorExit(status) // does not return
	}
	return &ExitError{Code: status.Code()}
}

// provideError adds to a failure of ours what this machine lacks. That is looked
// at only now: a program that runs well does not wait for it.
func provideError(err error) error {
	lacks, ok := errors.AsType[*doctor.RunError](doctor.CheckProvide())
	if !ok {
		return err
	}
	return &ExitError{Code: ExitOwn, Err: fmt.Errorf("%w; %w", err, lacks)}
}
