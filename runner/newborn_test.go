// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner_test

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/internal/workload/measure"
	"github.com/faultline-go/faultline/runner/internal/runtest"
)

// TestWriteOfAChildComesShort: a forked child got its agent when the first of its pages
// had to leave. If it was in a write to a pipe then, this was interrupted, and returned
// what it had written by then.
func TestWriteOfAChildComesShort(t *testing.T) {
	newborn(t, "write")
}

// TestChildInALongCallIsNotBounded: a forked child that was in a system call which
// nothing interrupts could not be given its agent, and all that the call touched
// stayed in memory.
func TestChildInALongCallIsNotBounded(t *testing.T) {
	newborn(t, "remote")
}

func newborn(t *testing.T, how string) {
	const limit = 8 * runtest.MiB
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "newborn"), "64", how},
		Limit: limit, Stores: []string{"mem:"}, Bounded: true, Stderr: true,
		Slack: limit, // a fork makes copies of what is resident
	})
}

// BenchmarkFork is a fork whose child ends or calls exec at once, of a program with 4 or
// 40 MiB: alone, and engaged with a quarter of that.
func BenchmarkFork(b *testing.B) {
	bin, err := measure.Faultline(context.Background(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	for _, how := range []string{"exit", "exec"} {
		for _, size := range []int{4, 40} {
			program := []string{workload.Build(b, "newborn"), strconv.Itoa(size), how}
			limit := fmt.Sprintf("%dMiB", size/4)
			for name, args := range map[string][]string{
				"alone":   program,
				"engaged": append([]string{bin, "run", "--limit", limit, "--store", "mem:", "--"}, program...),
			} {
				b.Run(filepath.Join(how, strconv.Itoa(size), name), func(b *testing.B) {
					var total float64
					for b.Loop() {
						var stderr bytes.Buffer
						cmd := exec.Command(args[0], args[1:]...)
						cmd.Stderr = &stderr
						if err := cmd.Run(); err != nil {
							b.Fatal(err)
						}
						ns, err := strconv.ParseFloat(string(bytes.TrimSpace(stderr.Bytes())), 64)
						if err != nil {
							b.Fatal(err)
						}
						total += ns
					}
					b.ReportMetric(total/float64(b.N)/1000, "µs/fork")
				})
			}
		}
	}
}
