// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// newCompletion replaces cobra's, which answers an unknown shell with its
// help and status 0.
func newCompletion() *cobra.Command {
	shells := map[string]func(*cobra.Command) error{
		"bash":       func(c *cobra.Command) error { return c.Root().GenBashCompletionV2(c.OutOrStdout(), true) },
		"zsh":        func(c *cobra.Command) error { return c.Root().GenZshCompletion(c.OutOrStdout()) },
		"fish":       func(c *cobra.Command) error { return c.Root().GenFishCompletion(c.OutOrStdout(), true) },
		"powershell": func(c *cobra.Command) error { return c.Root().GenPowerShellCompletionWithDesc(c.OutOrStdout()) },
	}
	names := slices.Sorted(maps.Keys(shells))
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print a script that completes command lines",
		Long:  "Print a script that makes SHELL complete faultline's commands, flags and values.\nSHELL is " + strings.Join(names, ", ") + ".",
		Example: "  source <(faultline completion bash)     now, in this shell\n" +
			"  faultline completion bash >/etc/bash_completion.d/faultline\n" +
			"  faultline completion zsh >\"${fpath[1]}/_faultline\"\n" +
			"  faultline completion fish >~/.config/fish/completions/faultline.fish",
		ValidArgs: names,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return usageError(cmd, "no shell is named: choose from %s", strings.Join(names, ", "))
			case shells[args[0]] == nil:
				return usageError(cmd, "unknown shell %q: choose from %s", args[0], strings.Join(names, ", "))
			}
			return noArgs(cmd, args[1:])
		},
		RunE: func(cmd *cobra.Command, args []string) error { return shells[args[0]](cmd) },
	}
}
