// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"flag"
	"regexp"
	"strings"
	"testing"

	"github.com/faultline-go/faultline/internal/testutil"
)

var update = flag.Bool("update", false, "write blob_GOARCH.go from asm/agent_GOARCH.s")

// TestBlob assembles the agent's source and compares it with the bytes that
// are planted.
func TestBlob(t *testing.T) {
	blob := testutil.Blob{Package: "inject", What: "the agent's machine code", Source: "asm/agent_%s.s"}
	for _, arch := range []string{"amd64", "arm64"} {
		t.Run(arch, func(t *testing.T) {
			dis := blob.Check(t, arch, *update)
			calls := strings.Count(dis, "syscall") + strings.Count(dis, "\tsvc\t")
			if calls != 3 {
				t.Errorf("%d system call instructions, want 3 (wait, operation, wake):\n%s", calls, dis)
			}
			// No stack: no call, push, pop or return.
			if m := regexp.MustCompile(`\t(call|push|pop|ret|bl|blr)[a-z]*\b.*`).FindString(dis); m != "" {
				t.Errorf("the blob uses a stack: %s", m)
			}
		})
	}
}
