// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/faultline-go/faultline/uffd/uapi"
)

// VersionSchema names the form of version --json.
const VersionSchema = "faultline/version/1"

// version says what this binary was built from.
type version struct {
	Schema   string `json:"schema"`
	Version  string `json:"version"`  // of the module, "(devel)" in a checkout
	Revision string `json:"revision"` // of the repository, empty if unknown
	Time     string `json:"time"`     // of the revision
	Modified bool   `json:"modified"` // the checkout had changes
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
	// Features are those of userfaultfd that this binary knows by name.
	Features []string `json:"features"`
}

func thisVersion() version {
	v := version{Schema: VersionSchema, Version: "(devel)", Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "" {
			v.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Revision = s.Value
			case "vcs.time":
				v.Time = s.Value
			case "vcs.modified":
				v.Modified = s.Value == "true"
			}
		}
	}
	for _, f := range uapi.FeatureTable() {
		v.Features = append(v.Features, f.Name)
	}
	return v
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:     "version [--json]",
		Short:   "Print what this binary was built from",
		Example: "  faultline version\n  faultline version --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := thisVersion()
			if asJSON, err := cmd.Flags().GetBool("json"); err != nil {
				return err
			} else if asJSON {
				return writeJSON(cmd.OutOrStdout(), v)
			}
			from := ""
			if v.Revision != "" {
				from = ", revision " + v.Revision
				if v.Modified {
					from += " with changes"
				}
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "faultline %s%s, %s, %s/%s\n", v.Version, from, v.Go, v.OS, v.Arch)
			return err
		},
	}
}
