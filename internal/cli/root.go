// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line of faultline: one file for each command.
//
// Results go to standard output and talk to standard error. Commands return
// errors and print none; Main prints one line, or with --json one object,
// and turns it into the exit status.
package cli

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// Main runs the command line args, whose first element is the name of the
// program, and returns its exit status. The streams are what the commands
// talk to; run hands its own process's streams to the program instead.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	out := &checkedWriter{w: stdout}
	started := false
	root := newRoot()
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	root.SetIn(stdin)
	root.SetOut(out)
	root.SetErr(stderr)
	if len(args) > 0 {
		args = args[1:]
	}
	root.SetArgs(slices.Clip(args)) // nil would mean os.Args
	cmd, err := root.ExecuteC()
	if err == nil && out.err != nil {
		started, err = true, fmt.Errorf("the result is lost: %w", out.err)
	}
	if err == nil {
		return ExitOK
	}
	code := ExitFailed
	if !started {
		code = ExitUsage // cobra itself did not like the line
	}
	return report(stderr, cmd, err, statusOf(cmd, code), wantsJSON(root, args))
}

// checkedWriter remembers that a result could not be written, so that a
// full disk behind standard output is not taken for success. It tells only
// Main: cobra would print the error a second time.
type checkedWriter struct {
	w   io.Writer
	err error
}

func (c *checkedWriter) Write(b []byte) (int, error) {
	if c.err == nil {
		_, c.err = c.w.Write(b)
	}
	return len(b), nil
}

// wantsJSON also holds when the line was given up at before --json.
func wantsJSON(root *cobra.Command, args []string) bool {
	if on, err := root.PersistentFlags().GetBool("json"); err == nil && on {
		return true
	}
	end := slices.Index(args, "--")
	if end < 0 {
		end = len(args)
	}
	return slices.Contains(args[:end], "--json")
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "faultline COMMAND",
		Short: "Run programs in less memory than they ask for",
		Long: "Faultline serves the page faults of programs from user space. Cold pages are\n" +
			"compressed and kept outside of memory, and come back when they are touched.",
		Example: "  faultline doctor                             what this machine allows\n" +
			"  faultline run --limit 64MiB -- sort -S 1G f  a program in bounded memory",
		Args:          cobra.ArbitraryArgs, // so that RunE words the error
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, "command", args[0])
			}
			cmd.SetOut(cmd.ErrOrStderr())
			if err := cmd.Help(); err != nil {
				return err
			}
			return &ExitError{Code: ExitUsage}
		},
	}
	root.PersistentFlags().Bool("json", false, "print results and errors as JSON")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError(cmd, "%w", err)
	})
	root.SetHelpTemplate(helpTemplate)
	root.SetUsageTemplate(usageTemplate)
	root.SetHelpCommand(newHelp())
	root.CompletionOptions.DisableDefaultCmd = true // ours is stricter
	root.AddCommand(
		newCompletion(),
		newConformance(),
		newDoctor(),
		newModel(),
		newProvide(),
		newRun(),
		newTrace(),
		newVersion(),
	)
	root.AddCommand(topics()...)
	for _, cmd := range append(root.Commands(), root) {
		cmd.DisableFlagsInUseLine = true // where they matter, Use names them
	}
	return root
}

// newHelp replaces cobra's, which answers an unknown name with status 0.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND | TOPIC]",
		Short: "Explain a command or a topic",
		RunE: func(cmd *cobra.Command, args []string) error {
			target, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return unknownCommand(cmd, "help topic", strings.Join(args, " "))
			}
			target.InitDefaultHelpFlag()
			return target.Help()
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, c := range cmd.Root().Commands() {
				if len(args) == 0 && !c.Hidden {
					names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

func unknownCommand(cmd *cobra.Command, kind, name string) error {
	root := cmd.Root()
	root.SuggestionsMinimumDistance = 2
	// Cobra does not offer topics, which run nothing.
	near := root.SuggestionsFor(name)
	for _, c := range root.Commands() {
		if c.IsAdditionalHelpTopicCommand() && strings.HasPrefix(c.Name(), name) && name != "" {
			near = append(near, c.Name())
		}
	}
	err := usageError(root, "unknown %s %q", kind, name)
	if e, ok := errors.AsType[*ExitError](err); ok && len(near) > 0 {
		e.Hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return err
}

// Examples come first: most readers need nothing else.
const helpTemplate = `{{with or .Long .Short}}{{. | trimTrailingWhitespaces}}
{{end}}{{if or .Runnable .HasSubCommands}}{{.UsageString}}{{end}}`

const usageTemplate = `{{if .HasExample}}
Examples:
{{.Example}}
{{end}}
Usage: {{.UseLine}}
{{- if .HasAvailableSubCommands}}

Commands:
{{- range .Commands}}{{if or .IsAvailableCommand (eq .Name "help")}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}
{{- end}}
{{- if .HasHelpSubCommands}}

Topics:
{{- range .Commands}}{{if .IsAdditionalHelpTopicCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}
{{- end}}
{{- if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}
{{- end}}
{{- if .HasAvailableInheritedFlags}}

Flags of every command:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}
{{- end}}
`
