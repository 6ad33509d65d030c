// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner_test

import (
	"testing"

	"github.com/faultline-go/faultline/internal/workload"
)

// TestJoinOfThreadWhoseStackWasOutside: an exiting task gets no fault served
// (B.12), so the word that the kernel clears for pthread_join has to be in
// memory when a thread ends. It was not kept there once, and the program
// waited for ever.
func TestJoinOfThreadWhoseStackWasOutside(t *testing.T) {
	same(t, program{
		args:  []string{workload.Build(t, "join"), "40", "64"},
		limit: 4 * mib, stores: []string{"mem:"}, stderr: true,
	})
}
