// SPDX-License-Identifier: Apache-2.0

package place

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// usualSlack is what the kernel gives to a process that asks for nothing
	// else (PR_SET_TIMERSLACK of prctl(2)).
	usualSlack = 50 * time.Microsecond
	// quietSlack is long against the 20 µs after which Go's monitor wants to
	// look again, and short against the 10 ms after which it would take a
	// processor from a goroutine.
	quietSlack = 4 * time.Millisecond
)

// Quiet lets the monitor thread of Go's runtime sleep for milliseconds. It
// sleeps for 20 µs at a time while threads come back from long system calls,
// as a tracer's do, and each time it wakes it pushes something aside: a program
// of two threads lost a seventh of its time to it.
//
// What the monitor is for must not be urgent: GOMAXPROCS has to be larger than
// the number of threads that are in long system calls, since a goroutine that
// has to wait for one of their places waits longer. The program to be
// traced must have been started, as it would inherit the setting from a thread
// that has it. Quiet does nothing without CAP_SYS_NICE.
func Quiet() {
	if tid := monitor(); tid > 0 {
		setSlack(tid, quietSlack)
	}
}

// monitor returns the id of the monitor's thread, 0 if it is not found. The
// runtime makes it before any other, and ids go up, but for one turn.
func monitor() int {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0
	}
	const turn = 1 << 22 // ids are below that (PID_MAX_LIMIT)
	pid, first, found := os.Getpid(), turn, 0
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil || tid == pid {
			continue
		}
		if after := (tid - pid + turn) % turn; after < first {
			first, found = after, tid
		}
	}
	return found
}

// setSlack says by how much the sleeps of a thread of ours may be prolonged.
// Only this file works for other threads (since Linux 4.6).
func setSlack(tid int, d time.Duration) {
	// Not permitted, or no such file: the thread wakes as often as before.
	_ = os.WriteFile("/proc/"+strconv.Itoa(tid)+"/timerslack_ns", strconv.AppendInt(nil, d.Nanoseconds(), 10), 0)
}

// keepTime gives the calling thread the usual precision, which it may lack if
// it was made by the monitor.
func keepTime() {
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(usualSlack.Nanoseconds()), 0, 0, 0)
}
