// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/faultline-go/faultline/internal/model"
)

// ModelListSchema names the form in which the shipped scripts are listed.
const ModelListSchema = "faultline/model-list/1"

// maxScript bounds what is read as a script.
const maxScript = 1 << 20

func newModel() *cobra.Command {
	var profile string
	var list bool
	cmd := &cobra.Command{
		Use:   "model [--profile NAME] [--json] SCRIPT | --list",
		Short: "Play a script on the software model of userfaultfd",
		Long: "Model plays a small script on userfaultfd in software, and prints what happens:\n" +
			"who faults, what is read, who is woken, how the address space changes. It needs\n" +
			"neither privilege nor Linux, and says the same every time. A script is a file,\n" +
			"- for standard input, or one of those that --list names.",
		Example: "  faultline model missing                    a page that is not there\n" +
			"  faultline model profiles                   2015 and today side by side\n" +
			"  faultline model --profile seed my.fl       a script of your own\n" +
			"  faultline model --list                     what there is",
		Args: func(cmd *cobra.Command, args []string) error {
			if list {
				return noArgs(cmd, args)
			}
			if len(args) != 1 {
				return usageError(cmd, "one script is needed, not %d", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := cmd.Flags().GetBool("json")
			if err != nil {
				return err
			}
			if list {
				return listModels(cmd.OutOrStdout(), asJSON)
			}
			if profile != "" && !slices.Contains(model.ProfileNames(), profile) {
				return usageError(cmd, "unknown profile %q: choose from %s", profile, strings.Join(model.ProfileNames(), ", "))
			}
			name, text, err := readModel(cmd.InOrStdin(), args[0])
			if err != nil {
				return err
			}
			return playModel(cmd.OutOrStdout(), name, text, profile, asJSON)
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, s := range model.ShippedScripts() {
				if len(args) == 0 {
					names = append(names, cobra.CompletionWithDesc(s.Name, s.Title))
				}
			}
			return names, cobra.ShellCompDirectiveDefault
		},
	}
	cmd.Flags().StringVar(&profile, "profile", "", "what to play it on: `NAME` is "+strings.Join(model.ProfileNames(), ", ")+
		" (default: what the script asks for, or linux-6.18)")
	cmd.Flags().BoolVar(&list, "list", false, "list the scripts that come with faultline")
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("profile", cobra.FixedCompletions(model.ProfileNames(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func listModels(w io.Writer, asJSON bool) error {
	type script struct {
		Name  string `json:"name"`
		Title string `json:"title"`
	}
	out := struct {
		Schema  string   `json:"schema"`
		Scripts []script `json:"scripts"`
	}{Schema: ModelListSchema}
	var b strings.Builder
	for _, s := range model.ShippedScripts() {
		out.Scripts = append(out.Scripts, script{s.Name, s.Title})
		fmt.Fprintf(&b, "%-10s  %s\n", s.Name, s.Title)
	}
	if asJSON {
		return writeJSON(w, out)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// readModel finds a script: a file, or if there is none by that name, a shipped
// one.
func readModel(stdin io.Reader, arg string) (name, text string, err error) {
	if arg == "-" {
		text, err := readScript(stdin)
		return "standard input", text, err
	}
	f, err := os.Open(arg)
	if errors.Is(err, os.ErrNotExist) {
		for _, s := range model.ShippedScripts() {
			if s.Name == arg {
				return s.Name, s.Text, nil
			}
		}
		return "", "", &ExitError{Code: ExitUsage, Err: fmt.Errorf("there is no script %q", arg),
			Hint: "faultline model --list names those that come with it"}
	}
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	text, err = readScript(f)
	return arg, text, err
}

func readScript(r io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxScript+1))
	if err == nil && len(b) > maxScript {
		err = fmt.Errorf("the script is longer than %d bytes", maxScript)
	}
	return string(b), err
}

func playModel(w io.Writer, name, text, profile string, asJSON bool) error {
	s, err := model.Parse(name, text)
	if err != nil {
		return &ExitError{Code: ExitUsage, Err: err, Hint: "see faultline-model(1) for the language"}
	}
	t, played := s.Play(profile)
	if asJSON {
		err = writeJSON(w, t)
	} else {
		err = t.Write(w)
	}
	return errors.Join(played, err)
}
