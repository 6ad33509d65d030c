// SPDX-License-Identifier: Apache-2.0

package place

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bell wakes one thread that sleeps. Unlike a channel it takes the kernel's
// way only: to wake a goroutine that is locked to its thread, Go's scheduler
// wakes two other threads first, on the processor of whoever wakes it, and
// they push aside what runs there.
//
// Make one with NewBell. Ring may be called by anyone, Wait by one goroutine,
// which should be locked to its thread.
type Bell struct {
	rung   atomic.Uint32 // 1 from Ring until Wait returns it
	asleep atomic.Uint32 // 1 while Wait sleeps, or is about to
}

// NewBell returns a bell that has not been rung.
func NewBell() *Bell { return &Bell{} }

// Ring ends the present Wait, or the next one. It costs a system call only if
// somebody sleeps.
func (b *Bell) Ring() {
	// Wait sets asleep before it looks at rung for the last time, in the
	// kernel: one of the two sees the other.
	if b.rung.Swap(1) == 0 && b.asleep.Load() != 0 {
		const futexWake = 1
		unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&b.rung)), futexWake|futexPrivate, 1, 0, 0, 0)
	}
}

// Wait sleeps until the bell is rung, for at most d, or without end if d is
// negative. It reports whether it was rung since the latest Wait.
func (b *Bell) Wait(d time.Duration) (rung bool) {
	if d == 0 {
		return b.rung.Load() == 1 && b.rung.Swap(0) == 1
	}
	b.asleep.Store(1)
	defer b.asleep.Store(0)
	if b.rung.Load() == 0 {
		var ts *unix.Timespec
		if d > 0 {
			t := unix.NsecToTimespec(d.Nanoseconds())
			ts = &t
		}
		const futexWait = 0
		// Whatever ends it, the caller looks again. Not a raw call: the
		// collector must not wait for this thread.
		unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&b.rung)), futexWait|futexPrivate, 0,
			uintptr(unsafe.Pointer(ts)), 0, 0)
	}
	return b.rung.Swap(0) == 1
}

const futexPrivate = 128
