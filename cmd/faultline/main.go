// SPDX-License-Identifier: Apache-2.0

// Command faultline runs programs in less memory than they ask for. See
// faultline(1), or faultline --help.
package main

import (
	"os"

	"github.com/faultline-go/faultline/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args, os.Stdin, os.Stdout, os.Stderr))
}
