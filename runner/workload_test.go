// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner_test

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/workload"
)

// TestTouch fills, reads, rewrites and verifies a GiB in sequential, strided,
// random and hot-set order.
func TestTouch(t *testing.T) {
	size := smaller(1024, 64)
	for _, c := range []struct {
		threads int
		store   string
	}{{1, "mem:"}, {4, "file:"}} {
		t.Run(fmt.Sprintf("%d threads %s", c.threads, c.store), func(t *testing.T) {
			same(t, program{
				args:  []string{workload.Build(t, "touch"), strconv.Itoa(size), strconv.Itoa(c.threads), "7"},
				limit: uint64(size) / 4 * mib, stores: []string{c.store}, bounded: true, stderr: true,
			})
		})
	}
}

// TestTight runs touch with a limit that is a small part of its memory.
func TestTight(t *testing.T) {
	for _, threads := range []string{"1", "4"} {
		t.Run(threads+" threads", func(t *testing.T) {
			same(t, program{
				args:  []string{workload.Build(t, "touch"), "96", threads, "11"},
				limit: 4 * mib, stores: []string{"mem:", "file:"}, bounded: true, stderr: true,
			})
		})
	}
}

// TestMapper covers mremap, madvise, munmap of parts, mprotect, MAP_FIXED over
// live memory, brk, guard pages, sparse memory and mlock, B.10 and H6. It
// locks all of its memory for a while, so that the limit cannot hold.
func TestMapper(t *testing.T) {
	same(t, program{
		args:  []string{workload.Build(t, "mapper"), strconv.Itoa(smaller(64, 32)), "7"},
		limit: 8 * mib, stores: []string{"mem:"}, stderr: true,
	})
}

// TestAdviceToAVector: advice that drops pages or changes what a child finds was not
// seen if it came by process_madvise(2), which takes it since Linux 6.13. The
// program was killed, or found in place of zeros what it had dropped.
func TestAdviceToAVector(t *testing.T) {
	same(t, program{
		args:  []string{workload.Build(t, "mapper"), "32", "7", "madvise-vector"},
		limit: 8 * mib, stores: []string{"mem:"}, bounded: true, stderr: true,
	})
}

// TestFreedBeforeServed: what MADV_FREE had marked before the program was engaged, and
// the kernel took after that, was taken for lost, and the program killed.
func TestFreedBeforeServed(t *testing.T) {
	same(t, program{
		args:  []string{workload.Build(t, "mapper"), "1", "7", "freed-early"},
		limit: 20 * mib, stores: []string{"mem:"}, stderr: true,
	})
}

// TestWiped: children found what their parent had in memory that it has wiped on fork
// (MADV_WIPEONFORK), as generators of random numbers do, if it had said so before it was
// engaged; and one whose fork was read, but not applied yet, was taken for one that came
// after what the parent said next.
func TestWiped(t *testing.T) {
	same(t, program{
		args:  []string{workload.Build(t, "mapper"), "1", "7", "wiped"},
		limit: 12 * mib, stores: []string{"mem:"}, stderr: true,
	})
}

// TestExecutableMemory: memory that can be written and executed, as just-in-time compilers
// have it, did not leave, since UFFDIO_MOVE takes pages only to a mapping with the same
// permissions. Lisp (sbcl) took ten minutes for a second's work.
func TestExecutableMemory(t *testing.T) {
	same(t, program{
		args:  []string{workload.Build(t, "mapper"), "1", "7", "executable"},
		limit: 4 * mib, stores: []string{"mem:"}, bounded: true, stderr: true,
	})
}

// TestMemoryFile: what was outside, or had never been touched, could not be read from
// /proc/PID/mem nor written there (EIO).
func TestMemoryFile(t *testing.T) {
	same(t, program{
		args:  []string{workload.Build(t, "mapper"), "32", "7", "memory-file"},
		limit: 8 * mib, stores: []string{"mem:"}, stderr: true,
	})
}

// TestGuardsInAStream: memory that was brought in ahead of a stream of first touches took
// the place of guards, MADV_GUARD_INSTALL, and so did what was on its way in when one
// was set: UFFDIO_COPY overwrites them.
func TestGuardsInAStream(t *testing.T) {
	same(t, program{
		args:  []string{workload.Build(t, "mapper"), "1", "7", "guards-in-stream"},
		limit: 12 * mib, stores: []string{"mem:"}, stderr: true,
	})
}

// TestRoam does in random order what a program may do to its memory. It has found that
// a page which mremap(2) brings to the address of one that is leaving was lost, and a
// guard that is set where a page comes in.
func TestRoam(t *testing.T) {
	same(t, program{
		args:  []string{workload.Build(t, "roam"), "1", strconv.Itoa(smaller(40000, 10000)), "7"},
		limit: mib, stores: []string{"mem:"}, stderr: true,
	})
	same(t, program{
		args:  []string{workload.Build(t, "roam"), "4", strconv.Itoa(smaller(10000, 3000)), "8"},
		limit: 4 * mib, stores: []string{"mem:"}, stderr: true,
	})
}

// TestWrittenAfterFree: a page that left memory when it was freed by MADV_FREE was
// dropped with what had been written to it since. Static programs of musl, which
// frees so, died of it in every other run.
func TestWrittenAfterFree(t *testing.T) {
	same(t, program{
		args:  []string{workload.Build(t, "mapper"), "8", "7", "free-and-write"},
		limit: 4 * mib, stores: []string{"mem:"}, stderr: true,
	})
}

// TestProgramThatServesItsOwnMemory: a program that had been engaged was refused to
// register memory with a userfaultfd of its own (EBUSY), since all of it was ours.
func TestProgramThatServesItsOwnMemory(t *testing.T) {
	testutil.Need(t, os.Geteuid() == 0, "needs root, for userfaultfd(2)")
	same(t, program{
		args:  []string{workload.Build(t, "served"), "32", "7"},
		limit: 8 * mib, stores: []string{"mem:"}, bounded: true, stderr: true,
		slack: 4 * mib, // what it serves
	})
}

// TestProcs covers fork, vfork, posix_spawn, clone3, clone with CLONE_VM, exec
// from a thread, 200 threads, 1,000 children and signals, H14.
func TestProcs(t *testing.T) {
	same(t, program{
		args:  []string{workload.Build(t, "procs"), "64", "7"},
		env:   []string{"PROCS_CHILDREN=" + strconv.Itoa(smaller(1000, 50))},
		limit: 16 * mib, stores: []string{"mem:"}, stderr: true,
	})
}

// TestPins lets the kernel hold on to pages that are about to leave: direct
// I/O, vmsplice, io_uring.
func TestPins(t *testing.T) {
	same(t, program{
		args:  []string{workload.Build(t, "pins"), t.TempDir(), "48", "7"},
		limit: 12 * mib, stores: []string{"mem:"}, stderr: true,
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
			same(t, program{
				args:  []string{workload.Build(t, "confined"), how, "64"},
				limit: 12 * mib, stores: []string{"mem:"}, bounded: true, stderr: true,
			})
		})
	}
}

// TestRemote has processes read and write the memory of each other.
func TestRemote(t *testing.T) {
	same(t, program{
		args:  []string{workload.Build(t, "remote"), "32"},
		limit: 6 * mib, stores: []string{"mem:"}, stderr: true,
	})
}

// TestPagesThatKernelLocks: UFFDIO_MOVE moves pages that it does not count while
// another thread advises MADV_COLD. They were taken for resident, and lost. One run in
// six of this length showed it.
func TestPagesThatKernelLocks(t *testing.T) {
	same(t, program{
		args:  []string{workload.Build(t, "contend"), "32", strconv.Itoa(smaller(45, 15))},
		limit: 8 * mib, stores: []string{"mem:"}, bounded: true, stderr: true,
	})
}

// TestProgramThatMakesNoCode: the agent's page was written and then made executable,
// which a program may have forbidden itself, as systemd's MemoryDenyWriteExecute
// does; it then stayed unbounded.
func TestProgramThatMakesNoCode(t *testing.T) {
	same(t, program{
		args:  []string{workload.Build(t, "confined"), "mdwe", "64"},
		limit: 12 * mib, stores: []string{"mem:"}, bounded: true, stderr: true,
	})
}

// TestGo runs a Go program with garbage, goroutines and signals.
func TestGo(t *testing.T) {
	same(t, program{
		args:  []string{workload.Build(t, "gomem"), strconv.Itoa(smaller(256, 64)), "7", "3"},
		limit: uint64(smaller(64, 16)) * mib, stores: []string{"mem:", "file:"}, bounded: true, stderr: true,
	})
}
