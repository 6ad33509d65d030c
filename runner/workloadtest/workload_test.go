// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package workloadtest

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/runner/internal/runtest"
)

// TestTouch fills, reads, rewrites and verifies a GiB in sequential, strided,
// random and hot-set order.
func TestTouch(t *testing.T) {
	size := runtest.Smaller(1024, 64)
	for _, c := range []struct {
		threads int
		store   string
	}{{1, "mem:"}, {4, "file:"}} {
		t.Run(fmt.Sprintf("%d threads %s", c.threads, c.store), func(t *testing.T) {
			runtest.Same(t, runtest.Program{
				Args:  []string{workload.Build(t, "touch"), strconv.Itoa(size), strconv.Itoa(c.threads), "7"},
				Limit: uint64(size) / 4 * runtest.MiB, Stores: []string{c.store}, Bounded: true, Stderr: true,
			})
		})
	}
}

// TestTight runs touch with a limit that is a small part of its memory.
func TestTight(t *testing.T) {
	for _, threads := range []string{"1", "4"} {
		t.Run(threads+" threads", func(t *testing.T) {
			runtest.Same(t, runtest.Program{
				Args:  []string{workload.Build(t, "touch"), strconv.Itoa(runtest.Smaller(96, 48)), threads, "11"},
				Limit: 4 * runtest.MiB, Stores: []string{"mem:", "file:"}, Bounded: true, Stderr: true,
			})
		})
	}
}

// TestMapper covers mremap, madvise, munmap of parts, mprotect, MAP_FIXED over
// live memory, brk, guard pages, sparse memory and mlock, B.10 and H6. It
// locks all of its memory for a while, so that the limit cannot hold.
func TestMapper(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "mapper"), strconv.Itoa(runtest.Smaller(64, 16)), "7"},
		Limit: uint64(runtest.Smaller(8, 4)) * runtest.MiB, Stores: []string{"mem:"}, Stderr: true,
	})
}

// TestAdviceToAVector: advice that drops pages or changes what a child finds was not
// seen if it came by process_madvise(2), which takes it since Linux 6.13. The
// program was killed, or found in place of zeros what it had dropped.
func TestAdviceToAVector(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "mapper"), "32", "7", "madvise-vector"},
		Limit: 8 * runtest.MiB, Stores: []string{"mem:"}, Bounded: true, Stderr: true,
	})
}

// TestFreedBeforeServed: what MADV_FREE had marked before the program was engaged, and
// the kernel took after that, was taken for lost, and the program killed.
func TestFreedBeforeServed(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "mapper"), "1", "7", "freed-early"},
		Limit: 20 * runtest.MiB, Stores: []string{"mem:"}, Stderr: true,
	})
}

// TestWiped: children found what their parent had in memory that it has wiped on fork
// (MADV_WIPEONFORK), as generators of random numbers do, if it had said so before it was
// engaged; and one whose fork was read, but not applied yet, was taken for one that came
// after what the parent said next.
func TestWiped(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "mapper"), "1", "7", "wiped"},
		Limit: 12 * runtest.MiB, Stores: []string{"mem:"}, Stderr: true,
	})
}

// TestExecutableMemory: memory that can be written and executed, as just-in-time compilers
// have it, did not leave, since UFFDIO_MOVE takes pages only to a mapping with the same
// permissions. Lisp (sbcl) took ten minutes for a second's work.
func TestExecutableMemory(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "mapper"), "1", "7", "executable"},
		Limit: 4 * runtest.MiB, Stores: []string{"mem:"}, Bounded: true, Stderr: true,
	})
}

// TestMemoryFile: what was outside, or had never been touched, could not be read from
// /proc/PID/mem nor written there (EIO).
func TestMemoryFile(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "mapper"), "32", "7", "memory-file"},
		Limit: 8 * runtest.MiB, Stores: []string{"mem:"}, Stderr: true,
	})
}

// TestGuardsInAStream: memory that was brought in ahead of a stream of first touches took
// the place of guards, MADV_GUARD_INSTALL, and so did what was on its way in when one
// was set: UFFDIO_COPY overwrites them.
func TestGuardsInAStream(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "mapper"), "1", "7", "guards-in-stream"},
		Limit: 12 * runtest.MiB, Stores: []string{"mem:"}, Stderr: true,
	})
}

// TestRoam does in random order what a program may do to its memory. It has found that
// a page which mremap(2) brings to the address of one that is leaving was lost, and a
// guard that is set where a page comes in.
func TestRoam(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "roam"), "1", strconv.Itoa(runtest.Smaller(40000, 5000)), "7"},
		Limit: runtest.MiB, Stores: []string{"mem:"}, Stderr: true,
	})
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "roam"), "4", strconv.Itoa(runtest.Smaller(10000, 1500)), "8"},
		Limit: 4 * runtest.MiB, Stores: []string{"mem:"}, Stderr: true,
	})
}

// TestWrittenAfterFree: a page that left memory when it was freed by MADV_FREE was
// dropped with what had been written to it since. Static programs of musl, which
// frees so, died of it in every other run.
func TestWrittenAfterFree(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "mapper"), "8", "7", "free-and-write"},
		Limit: 4 * runtest.MiB, Stores: []string{"mem:"}, Stderr: true,
	})
}

// TestProgramThatServesItsOwnMemory: a program that had been engaged was refused to
// register memory with a userfaultfd of its own (EBUSY), since all of it was ours.
func TestProgramThatServesItsOwnMemory(t *testing.T) {
	testutil.Need(t, os.Geteuid() == 0, "needs root, for userfaultfd(2)")
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "served"), "32", "7"},
		Limit: 8 * runtest.MiB, Stores: []string{"mem:"}, Bounded: true, Stderr: true,
		Slack: 4 * runtest.MiB, // what it serves
	})
}

// TestProcs covers fork, vfork, posix_spawn, clone3, clone with CLONE_VM, exec
// from a thread, 200 threads, 1,000 children and signals, H14.
func TestProcs(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "procs"), strconv.Itoa(runtest.Smaller(64, 24)), "7"},
		Env:   []string{"PROCS_CHILDREN=" + strconv.Itoa(runtest.Smaller(1000, 20))},
		Limit: uint64(runtest.Smaller(16, 6)) * runtest.MiB, Stores: []string{"mem:"}, Stderr: true,
	})
}

// TestPins lets the kernel hold on to pages that are about to leave: direct
// I/O, vmsplice, io_uring.
func TestPins(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "pins"), t.TempDir(), strconv.Itoa(runtest.Smaller(48, 20)), "7"},
		Limit: uint64(runtest.Smaller(12, 5)) * runtest.MiB, Stores: []string{"mem:"}, Stderr: true,
	})
}

// unfiltered reports whether this process has no seccomp filter, such as that of a
// container: only then can those of a program be suspended.
func unfiltered() bool {
	mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0)
	return err == nil && mode == 0
}

// TestProgramThatGaveUpItsRights: a server that had taken another user could not be
// bounded at all, since the device of userfaultfd was opened in its name. One with
// a seccomp filter was killed by the calls that were made in its name.
func TestProgramThatGaveUpItsRights(t *testing.T) {
	testutil.Need(t, os.Geteuid() == 0, "needs root, to give it up")
	for _, how := range []string{"uid", "root", "userns", "refuse", "kill"} {
		t.Run(how, func(t *testing.T) {
			if how == "refuse" || how == "kill" {
				testutil.Need(t, unfiltered(), "needs a process without a seccomp filter")
			}
			runtest.Same(t, runtest.Program{
				Args:  []string{workload.Build(t, "confined"), how, "64"},
				Limit: 12 * runtest.MiB, Stores: []string{"mem:"}, Bounded: true, Stderr: true,
			})
		})
	}
}

// TestRemote has processes read and write the memory of each other.
func TestRemote(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "remote"), "32"},
		Limit: 6 * runtest.MiB, Stores: []string{"mem:"}, Stderr: true,
	})
}

// TestPagesThatKernelLocks: UFFDIO_MOVE moves pages that it does not count while
// another thread advises MADV_COLD. They were taken for resident, and lost. One run in
// six of this length showed it.
func TestPagesThatKernelLocks(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "contend"), "32", strconv.Itoa(runtest.Smaller(45, 15))},
		Limit: 8 * runtest.MiB, Stores: []string{"mem:"}, Bounded: true, Stderr: true,
	})
}

// TestProgramThatMakesNoCode: the agent's page was written and then made executable,
// which a program may have forbidden itself, as systemd's MemoryDenyWriteExecute
// does; it then stayed unbounded.
func TestProgramThatMakesNoCode(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "confined"), "mdwe", "64"},
		Limit: 12 * runtest.MiB, Stores: []string{"mem:"}, Bounded: true, Stderr: true,
	})
}

// TestGo runs a Go program with garbage, goroutines and signals.
func TestGo(t *testing.T) {
	runtest.Same(t, runtest.Program{
		Args:  []string{workload.Build(t, "gomem"), strconv.Itoa(runtest.Smaller(256, 64)), "7", "3"},
		Limit: uint64(runtest.Smaller(64, 16)) * runtest.MiB, Stores: []string{"mem:", "file:"}, Bounded: true, Stderr: true,
	})
}
