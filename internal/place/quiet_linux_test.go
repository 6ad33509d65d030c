// SPDX-License-Identifier: Apache-2.0

package place

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
)

// slacks returns the timer slack of every thread of this process, by id.
func slacks(t *testing.T) map[int]string {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[int]string)
	for _, task := range tasks {
		b, err := os.ReadFile("/proc/" + task.Name() + "/timerslack_ns")
		if os.IsPermission(err) {
			testutil.Need(t, false, "CAP_SYS_NICE, to see the timer slack of other threads")
		}
		if tid, _ := strconv.Atoi(task.Name()); err == nil { // else it has ended
			all[tid] = strings.TrimSpace(string(b))
		}
	}
	return all
}

// TestQuiet lets one thread sleep longer, and that neither the main one, whose
// setting programs would inherit, nor any that serves.
func TestQuiet(t *testing.T) {
	before := slacks(t)
	Quiet()
	tid := monitor()
	defer setSlack(tid, usualSlack)
	if tid == 0 || tid == os.Getpid() {
		t.Fatalf("the monitor is thread %d of %d", tid, os.Getpid())
	}
	for other, slack := range slacks(t) {
		want, known := before[other]
		if other == tid {
			want = strconv.FormatInt(quietSlack.Nanoseconds(), 10)
		} else if !known {
			continue
		}
		if slack != want {
			t.Errorf("thread %d has a slack of %s ns, want %s", other, slack, want)
		}
	}
}

// TestSelfKeepsTime makes a thread precise that has the monitor's slack, as one
// does that the monitor has made.
func TestSelfKeepsTime(t *testing.T) {
	runtime.LockOSThread() // not unlocked: the thread ends with the test
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(quietSlack.Nanoseconds()), 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	th := Self()
	defer th.Close()
	got, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || got != int(usualSlack.Nanoseconds()) {
		t.Errorf("slack of %d ns (%v), want %v", got, err, usualSlack)
	}
}
