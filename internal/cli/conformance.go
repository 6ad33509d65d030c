// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/internal/provided"
)

// backends returns how to open what can be checked, by name. What is provided
// tells log of its failures.
func backends(log *slog.Logger) map[string]func() (conformance.Backend, error) {
	m := conformance.Backends()
	m[provided.Name] = func() (conformance.Backend, error) { return provided.Backend(log) }
	return m
}

func backendNames() []string { return slices.Sorted(maps.Keys(backends(nil))) }

func newConformance() *cobra.Command {
	var backend, run string
	cmd := &cobra.Command{
		Use:   "conformance [--backend NAME] [--run PATTERN] [--json]",
		Short: "Check how userfaultfd behaves here",
		Long: "Conformance runs a table of cases against a kernel, and says for each row of the\n" +
			"documented behaviour of userfaultfd whether it is so. The faults happen in small\n" +
			"processes that it starts and ends. Cases of features that the kernel does not\n" +
			"claim are skipped. Some need root, and some reserve huge pages for a moment.",
		Example: "  faultline conformance                          everything, on this kernel\n" +
			"  faultline conformance --run 'wake/|C\\.22'      some cases, or those of a row\n" +
			"  faultline conformance --json | jq '.rows[] | select(.status != \"pass\")'",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			match, err := regexp.Compile(run)
			if err != nil {
				return usageError(cmd, "--run: %w", err)
			}
			open, known := backends(slog.New(&lineHandler{w: cmd.ErrOrStderr()}))[backend]
			if !known {
				return usageError(cmd, "unknown backend %q: choose from %s", backend,
					strings.Join(backendNames(), ", "))
			}
			asJSON, err := cmd.Flags().GetBool("json")
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return runConformance(ctx, cmd.OutOrStdout(), open, match, asJSON)
		},
	}
	cmd.Flags().StringVar(&backend, "backend", "kernel", "what to check: `NAME` is "+strings.Join(backendNames(), " or "))
	cmd.Flags().StringVar(&run, "run", "", "run only cases whose title or row matches the regular expression `PATTERN`")
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("backend", cobra.FixedCompletions(backendNames(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func runConformance(ctx context.Context, w io.Writer, open func() (conformance.Backend, error), match *regexp.Regexp, asJSON bool) (err error) {
	b, err := open()
	if err != nil {
		return &ExitError{Code: ExitMissing, Err: err}
	}
	defer func() {
		// What was changed is changed back even if the run was cut short.
		if cerr := b.Close(); err == nil {
			err = cerr
		}
	}()
	s, err := conformance.NewSuite(b)
	if err != nil {
		return &ExitError{Code: ExitMissing, Err: err, Hint: "see faultline doctor"}
	}
	r, err := s.RunAll(ctx, match, nil)
	if err != nil {
		return fmt.Errorf("stopped after %d cases: %w", len(r.Runs), err)
	}
	if len(r.Runs) == 0 {
		return &ExitError{Code: ExitUsage, Err: fmt.Errorf("no case matches %q", match)}
	}
	if asJSON {
		err = writeJSON(w, r)
	} else {
		err = writeConformance(w, r)
	}
	if err == nil && r.Failed > 0 {
		// The report has said which.
		err = &ExitError{Code: ExitFailed}
	}
	return err
}

// writeConformance prints a line for each row, then what failed and what was
// skipped and why, then the sum.
func writeConformance(w io.Writer, r *conformance.Report) error {
	var b strings.Builder
	for _, v := range r.Rows {
		what := strings.Join(v.Cases, ", ")
		if v.Status == conformance.NoCase {
			what = v.Why
		}
		fmt.Fprintf(&b, "%-4s  %-18s  %s\n%26s%s\n", v.Status, v.ID, v.Text, "", what)
	}
	for _, status := range []conformance.Status{conformance.Skip, conformance.Fail} {
		sep := "\n"
		for _, out := range r.Runs {
			if out.Status == status {
				fmt.Fprintf(&b, "%s%s  %s: %s\n", sep, status, out.Title(), strings.ReplaceAll(out.Why, "\n", "\n      "))
				sep = ""
			}
		}
	}
	fmt.Fprintf(&b, "\n%s %s: %d passed, %d failed, %d skipped in %v.\n",
		r.Backend, r.Release, r.Passed, r.Failed, r.Skipped, r.Took.Round(10*time.Millisecond))
	_, err := io.WriteString(w, b.String())
	return err
}
