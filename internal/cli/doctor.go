// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/faultline-go/faultline/internal/doctor"
)

func newDoctor() *cobra.Command {
	var require []string
	cmd := &cobra.Command{
		Use:   "doctor [--require NAME,...] [--json]",
		Short: "Find out what this machine allows",
		Long: "Doctor tries everything that faultline needs of the machine, and says what is\n" +
			"missing, why it matters and what mends it. It changes nothing and needs no\n" +
			"privilege, though what it finds depends on the privileges it has.",
		Example: "  faultline doctor                     everything\n" +
			"  faultline doctor --require run       status 3 unless faultline run works here\n" +
			"  faultline doctor --require provide   the same for faultline provide\n" +
			"  faultline doctor --require move,wp-async --json",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := doctor.Examine(require)
			if _, unknown := errors.AsType[*doctor.UnknownError](err); unknown {
				return usageError(cmd, "%w", err)
			}
			if err != nil {
				return err
			}
			asJSON, err := cmd.Flags().GetBool("json")
			if err != nil {
				return err
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), r)
			} else {
				err = writeReport(cmd.OutOrStdout(), r)
			}
			if err == nil && !r.Required.OK {
				// The report has said which.
				err = &ExitError{Code: ExitMissing}
			}
			return err
		},
	}
	cmd.Flags().StringSliceVar(&require, "require", nil,
		"check only `NAME,...`, and exit with status 3 if one is missing; \"run\" and \"provide\" are all that these commands need")
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("require", completeList(append(doctor.Names(), doctor.Sets()...)))
	return cmd
}

// completeList completes the last element of a list with commas.
func completeList(names []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		done := typed[:strings.LastIndex(typed, ",")+1]
		var out []string
		for _, n := range names {
			if strings.HasPrefix(done+n, typed) {
				out = append(out, done+n)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}

// writeReport prints a line for each check: verdict, name, what was found.
// What is well has its reason on the same line; otherwise the reason and the
// remedy have lines of their own, since they are what the user is after.
func writeReport(w io.Writer, r *doctor.Report) error {
	var b strings.Builder
	width := 0
	for _, c := range r.Checks {
		width = max(width, len(c.Name))
	}
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "%-4s  %-*s  %s", c.Status, width, c.Name, c.Found)
		switch {
		case c.Status == doctor.OK:
			fmt.Fprintf(&b, " (%s)\n", c.Why)
		case c.BlockedBy != "":
			b.WriteByte('\n') // the other check has the remedy
		default:
			fmt.Fprintf(&b, "\n%*s  why: %s\n", width+6, "", c.Why)
			if c.Fix != "" {
				fmt.Fprintf(&b, "%*s  fix: %s\n", width+6, "", c.Fix)
			}
		}
	}
	if r.Run != nil || r.Provide != nil {
		b.WriteByte('\n')
	}
	writeVerdict(&b, "run", r.Run)
	writeVerdict(&b, "provide", r.Provide)
	_, err := io.WriteString(w, b.String())
	return err
}

// writeVerdict says whether a command works, if that is known.
func writeVerdict(b *strings.Builder, command string, v *doctor.Verdict) {
	switch {
	case v == nil:
	case v.OK:
		fmt.Fprintf(b, "faultline %s works here.\n", command)
	default:
		fmt.Fprintf(b, "faultline %s does not work here: missing %s.\n", command, strings.Join(v.Missing, ", "))
	}
}

// writeJSON prints v for people and programs alike.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
