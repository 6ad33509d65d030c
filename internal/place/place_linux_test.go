// SPDX-License-Identifier: Apache-2.0

package place

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProcessor(t *testing.T) {
	line := "7 (a) b) (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 1 37 38 39\n"
	// Field 3 is S; the 36th field after it is number 39.
	if got := processor([]byte(line)); got != 1 {
		t.Errorf("processor = %d, want 1", got)
	}
	for _, bad := range []string{"", "7 (a", "7 (a) S 1 2"} {
		if got := processor([]byte(bad)); got != -1 {
			t.Errorf("processor(%q) = %d, want -1", bad, got)
		}
	}
}

// TestPinAndCPUOf pins the thread to each processor in turn and asks the
// kernel, by the way that the pager asks about a faulting thread.
func TestPinAndCPUOf(t *testing.T) {
	runtime.LockOSThread() // not unlocked: the affinity must not leak to other tests
	th := Self()
	defer th.Close()
	set := allowed()
	for cpu, left := 0, set.Count(); left > 0; cpu++ {
		if !set.IsSet(cpu) {
			continue
		}
		left--
		th.Pin(cpu)
		if got := th.CPUOf(os.Getpid(), unix.Gettid()); got != cpu {
			t.Errorf("pinned to %d, runs on %d", cpu, got)
		}
	}
	if got := th.CPUOf(os.Getpid(), 1<<22-1); got != -1 {
		t.Errorf("a thread that does not exist runs on %d", got)
	}
}

func TestIdleAndBack(t *testing.T) {
	runtime.LockOSThread()
	th := Self()
	if !th.Idle() {
		t.Skip("may not leave the idle class again: no CAP_SYS_NICE and RLIMIT_NICE forbids it")
	}
	if attr, err := unix.SchedGetAttr(0, 0); err != nil || attr.Policy != unix.SCHED_IDLE {
		t.Errorf("policy %v, %v, want SCHED_IDLE", attr, err)
	}
	th.Normal()
	if attr, err := unix.SchedGetAttr(0, 0); err != nil || attr.Policy != unix.SCHED_NORMAL {
		t.Errorf("policy %v, %v, want SCHED_NORMAL", attr, err)
	}
}
