// SPDX-License-Identifier: Apache-2.0

// Package testutil holds what the tests of several packages share.
package testutil

import (
	"os"
	"testing"
)

// RequireEnv names the variable under whose value "all" a test that would
// skip for want of something fails instead, so that CI cannot pass by
// running nothing.
const RequireEnv = "FAULTLINE_REQUIRE"

// Need skips the test with reason unless ok. Where RequireEnv is "all" it
// fails the test instead.
func Need(tb testing.TB, ok bool, reason string) {
	tb.Helper()
	if ok {
		return
	}
	if os.Getenv(RequireEnv) == "all" {
		tb.Fatalf("%s=all, but: %s", RequireEnv, reason)
	}
	tb.Skip(reason)
}
