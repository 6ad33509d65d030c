// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner_test

import (
	"testing"

	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/runner/internal/runtest"
)

// TestJoinOfThreadWhoseStackWasOutside: an exiting task gets no fault served
// (B.12), so the word that the kernel clears for pthread_join has to be in
// memory when a thread ends. It was not kept there once, and the program
// waited for ever.
func TestJoinOfThreadWhoseStackWasOutside(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "join"), "40", "64"},
		Limit: 4 * runtest.MiB, Stores: []string{"mem:"}, Stderr: true,
	})
}

// TestFirstThreadHasEnded: what a process has is under the id of its first thread as
// long as that is there. One whose first thread had called pthread_exit was taken for
// one without memory: it was not bounded, and under the engine in software its system
// calls failed with EFAULT.
func TestFirstThreadHasEnded(t *testing.T) {
	for _, engine := range []string{"kernel", "user"} {
		t.Run(engine, func(t *testing.T) {
			runtest.Same(t, runtest.Program{
				Args:  []string{workload.Build(t, "procs"), "24", "7", "leader-ends"},
				Limit: 4 * runtest.MiB, Stores: []string{"mem:"}, Stderr: true, Engine: engine,
			})
		})
	}
}
