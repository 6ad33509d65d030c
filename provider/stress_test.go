// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider_test

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/workload"
)

// TestStress has the stressor of somebody else find no wrong page.
func TestStress(t *testing.T) {
	stress, err := exec.LookPath("stress-ng")
	testutil.Need(t, err == nil, "stress-ng is not installed")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, command(t), "provide", "--", stress,
		"--userfaultfd", "2", "--timeout", "3", "--verify").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "successful run completed") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestTorn: under traffic no page is torn, old or another's, and no write to one is
// lost, whether it is protected, dropped, or moved away meanwhile. bench/stress
// does this for long.
func TestTorn(t *testing.T) {
	program := workload.Build(t, "torn")
	faultline := command(t)
	for name, args := range map[string][]string{
		"kernel":   {program, "2"},
		"provided": {faultline, "provide", "--", program, "2"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "kernel" {
				needCall(t)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
