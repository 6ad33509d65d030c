// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package puppet

import (
	"flag"
	"testing"

	"github.com/faultline-go/faultline/internal/testutil"
)

var update = flag.Bool("update", false, "write blob_GOARCH.go from testdata/asm/puppet_GOARCH.s")

// TestBlob assembles the puppet's source and compares it with the bytes that
// are run.
func TestBlob(t *testing.T) {
	machine := map[string]string{"amd64": "62 // EM_X86_64", "arm64": "183 // EM_AARCH64"}
	blob := testutil.Blob{
		Package: "puppet", What: "the puppet's machine code", Source: "testdata/asm/puppet_%s.s",
		Head: func(arch string) string { return "const elfMachine = " + machine[arch] + "\n\n" },
	}
	for _, arch := range []string{"amd64", "arm64"} {
		t.Run(arch, func(t *testing.T) { blob.Check(t, arch, *update) })
	}
}
