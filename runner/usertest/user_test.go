// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package usertest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/sandbox"
	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/runner/internal/runtest"
)

// user runs a program with the engine in software.
func user(t *testing.T, limit uint64, args ...string) {
	t.Helper()
	runtest.Same(t, runtest.Program{Args: args, Limit: limit, Stores: []string{"mem:"}, Stderr: true, Engine: "user"})
}

// TestUserTouch fills, reads and rewrites memory in several orders.
func TestUserTouch(t *testing.T) {
	user(t, 4*runtest.MiB, workload.Build(t, "touch"), "16", "2", "7")
}

// TestUserMapper changes mappings under pressure: moved, guarded, locked, growing,
// with other permissions, unmapped in part.
func TestUserMapper(t *testing.T) {
	user(t, 4*runtest.MiB, workload.Build(t, "mapper"), strconv.Itoa(runtest.Smaller(64, 8)), "7")
}

// TestUserGuards: an access to a guard that was set before the memory was managed never
// came to an end, and memory was brought in there.
func TestUserGuards(t *testing.T) {
	user(t, 12*runtest.MiB, workload.Build(t, "mapper"), "1", "7", "guards-in-stream")
}

// TestUserWiped is TestWiped. What leaves is sealed by guards, of which a child has none
// there: what it wrote was dropped when they came back, or its faults never ended.
func TestUserWiped(t *testing.T) {
	user(t, 12*runtest.MiB, workload.Build(t, "mapper"), "1", "7", "wiped")
}

// TestUserExecutableMemory is TestExecutableMemory.
func TestUserExecutableMemory(t *testing.T) {
	user(t, 4*runtest.MiB, workload.Build(t, "mapper"), "1", "7", "executable")
}

// TestUserMemoryFile is TestMemoryFile.
func TestUserMemoryFile(t *testing.T) {
	user(t, 4*runtest.MiB, workload.Build(t, "mapper"), "16", "7", "memory-file")
}

// TestUserRoam is TestRoam.
func TestUserRoam(t *testing.T) {
	user(t, runtest.MiB, workload.Build(t, "roam"), "1", strconv.Itoa(runtest.Smaller(10000, 3000)), "7")
}

// TestUserProcs forks while pages are outside. A page that was brought in or taken
// out between the kernel's copy of a space and ours read as zeros in the child, or
// as what the parent had written since.
func TestUserProcs(t *testing.T) {
	var steps []string // all
	if runtest.Smaller(1, 0) == 0 {
		steps = []string{"fork-early", "interrupted", "alternate-stacks", "rare-calls", "cold-ids", "rseq", "fork-both-write", "fork-nested", "vfork-exec", "exec-from-thread", "leader-ends", "threads", "children", "signals", "stack-overflow"}
	}
	runtest.Same(t, runtest.Program{
		Args:  append([]string{workload.Build(t, "procs"), strconv.Itoa(runtest.Smaller(64, 8)), "7"}, steps...),
		Env:   []string{"PROCS_CHILDREN=" + strconv.Itoa(runtest.Smaller(100, 4))},
		Limit: 4 * runtest.MiB, Stores: []string{"mem:"}, Stderr: true, Engine: "user",
	})
}

// TestUserGo has goroutines, signals by which the runtime interrupts them, stacks
// for handlers, and a collector.
func TestUserGo(t *testing.T) {
	user(t, 3*runtest.MiB, workload.Build(t, "gomem"), strconv.Itoa(runtest.Smaller(64, 12)), "7", "1")
}

// TestUserPins has the kernel use pages that are about to leave.
func TestUserPins(t *testing.T) {
	user(t, 2*runtest.MiB, workload.Build(t, "pins"), t.TempDir(), strconv.Itoa(runtest.Smaller(48, 4)), "7", "direct-io", "vmsplice", "vmsplice-read")
}

// TestUserRemote: process_vm_readv(2) failed with EFAULT for what was outside, even in
// the memory of who called it.
func TestUserRemote(t *testing.T) {
	user(t, 4*runtest.MiB, workload.Build(t, "remote"), "16")
}

// TestUserJoin is TestJoinOfThreadWhoseStackWasOutside.
func TestUserJoin(t *testing.T) {
	user(t, 2*runtest.MiB, workload.Build(t, "join"), "10", "16")
}

// TestUserRobust: who waits for a robust futex whose owner had ended waited for ever
// where a part of the owner's list was outside.
func TestUserRobust(t *testing.T) {
	user(t, 4*runtest.MiB, workload.Build(t, "robust"), "16")
}

// TestUserPython has files, threads and children.
func TestUserPython(t *testing.T) {
	user(t, 12*runtest.MiB, runtest.Tool(t, "python3"), "-c", `
import hashlib, os, subprocess, sys, threading
d = [bytes([i % 251]) * 5000 for i in range(5000)]
def check(k):
    for i in range(k, len(d), 4):
        assert d[i] == bytes([i % 251]) * 5000
threads = [threading.Thread(target=check, args=(k,)) for k in range(4)]
for t in threads: t.start()
for t in threads: t.join()
r, w = os.pipe()
def send():
    with os.fdopen(w, "wb") as f: f.write(b"".join(d))
t = threading.Thread(target=send); t.start()
with os.fdopen(r, "rb") as f: got = f.read()
t.join()
print(hashlib.md5(got).hexdigest(), len(got))
print(subprocess.run(["/bin/echo", "hello"], capture_output=True).stdout)
check(0)
`)
}

// TestUserByItself takes the engine in software where the kernel's call is refused,
// and says so once.
func TestUserByItself(t *testing.T) {
	public := t.TempDir()
	for dir := public; strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	bin, program := filepath.Join(public, "faultline"), filepath.Join(public, "touch")
	for from, to := range map[string]string{runtest.Command(t): bin, workload.Build(t, "touch"): program} {
		if out, err := exec.CommandContext(t.Context(), "install", from, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	alone, err := exec.CommandContext(t.Context(), program, "8", "1", "7").Output()
	if err != nil {
		t.Fatal(err)
	}
	testutil.Need(t, os.Geteuid() == 0, "only root can give up what it has")
	for name, o := range map[string]sandbox.Options{"container": {Container: true}, "user": {User: sandbox.Nobody}} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), runtest.Patience)
			defer cancel()
			cmd, err := sandbox.Command(ctx, o, bin, "run", "--limit", "4MiB", "--store", "mem:", "--", program, "8", "1", "7")
			if err != nil {
				t.Fatal(err)
			}
			var out, told bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &told
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v\n%s", err, told.String())
			}
			if n := strings.Count(told.String(), "--engine user"); n != 1 || !bytes.Equal(out.Bytes(), alone) {
				t.Errorf("told %d times, output %q, alone %q; stderr:\n%s", n, out.String(), alone, told.String())
			}
		})
	}
}

// TestWindowByDevice refuses the system call, where the device is there for those who
// may open it. The program's descriptor was taken that way, but not that of the window
// by which pages leave, so that none could.
func TestWindowByDevice(t *testing.T) {
	bin := runtest.Command(t)
	_, err := os.Stat("/dev/userfaultfd")
	testutil.Need(t, err == nil && os.Geteuid() == 0, "needs /dev/userfaultfd and the right to open it")
	o := sandbox.Options{Refuse: []sandbox.Refusal{{Call: unix.SYS_USERFAULTFD, Errno: unix.ENOSYS}}}
	ctx, cancel := context.WithTimeout(t.Context(), runtest.Patience)
	defer cancel()
	cmd, err := sandbox.Command(ctx, o, bin, "run", "--limit", "4MiB", "--engine", "kernel", "--store", "mem:", "--",
		workload.Build(t, "touch"), "16", "1", "7")
	if err != nil {
		t.Fatal(err)
	}
	var told bytes.Buffer
	cmd.Stderr = &told
	if err := cmd.Run(); err != nil || told.Len() > 0 {
		t.Errorf("%v\n%s", err, told.String())
	}
}
