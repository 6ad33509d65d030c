// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The area shared with the agent, a sealed memfd mapped on both sides. The
// assembly source has the same numbers.
//
// The two sides work in lock step. A request is written to count and ops,
// and published by writing its number to seq; from then on the agent owns
// them until it has written the same number to done. Each word that one side
// writes and the other polls has a line of its own. Go's atomic stores are
// full barriers, and the agent's are written to be, which two places need:
//
//   - seq is stored before asleep is loaded here; asleep is stored before
//     seq is loaded there,
//   - waiting is stored before done is loaded here; done is stored before
//     waiting is loaded there,
//
// so in both pairs at least one side sees the other's store, and no sleeper
// is left without a wake-up.
//
// The program can write to the area too. It gains nothing by it that it
// could not do itself, and what is read from here is never trusted to be a
// length or an address on our side.
type area struct {
	seq    atomic.Uint32
	asleep atomic.Uint32
	_      [56]byte

	done    atomic.Uint32
	waiting atomic.Uint32
	ran     uint32
	_       [52]byte

	count uint32
	spin  atomic.Uint32
	_     [opsOff - 136]byte

	ops [MaxOps]slot
}

// slot is one operation as the agent reads it.
type slot struct {
	nr    uint64
	args  [6]uint64
	ret   uint64
	flags uint64
}

const (
	opsOff = 0x1000
	// MaxOps is how many operations go into one round trip. Longer batches
	// take several.
	MaxOps = 512

	dataOff  = 0xa000
	areaSize = 1 << 20
	// DataSize is the length of Agent.Data.
	DataSize = areaSize - dataOff

	// buried is written to done when the agent is dead, so that a waiter that
	// is just about to sleep does not. It is no request's number.
	buried = ^uint32(0)
)

// The constants above are repeated in assembly: a slip must not compile.
var (
	_ [opsOff - unsafe.Offsetof(area{}.ops)]struct{}
	_ [unsafe.Offsetof(area{}.ops) - opsOff]struct{}
	_ [72 - unsafe.Sizeof(slot{})]struct{}
	_ [unsafe.Sizeof(slot{}) - 72]struct{}
	_ [0x40 - unsafe.Offsetof(area{}.done)]struct{}
	_ [unsafe.Offsetof(area{}.done) - 0x40]struct{}
	_ [0x80 - unsafe.Offsetof(area{}.count)]struct{}
	_ [unsafe.Offsetof(area{}.count) - 0x80]struct{}
	_ [dataOff - unsafe.Sizeof(area{})]struct{}
)

// mapArea maps the memfd on our side.
func mapArea(fd int) (*area, []byte, error) {
	b, err := unix.Mmap(fd, 0, areaSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, err
	}
	return (*area)(unsafe.Pointer(&b[0])), b, nil
}

// Shared between processes, so without FUTEX_PRIVATE_FLAG.
const (
	futexOpWait = 0
	futexOpWake = 1
)

// futexWait sleeps while *word is val, at most for the given time. Every
// result means: look again.
func futexWait(word *atomic.Uint32, val uint32, ts *unix.Timespec) {
	// A blocking call, which lets the Go scheduler go on without us: the
	// agent may depend on a page that another goroutine has to bring.
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexOpWait,
		uintptr(val), uintptr(unsafe.Pointer(ts)), 0, 0)
}

func futexWake(word *atomic.Uint32) {
	unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexOpWake, 1, 0, 0, 0)
}

// pidfdDead reports whether the process behind a pidfd has ended, a zombie
// that waits for the tracer included.
func pidfdDead(fd int) bool {
	pfd := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	ts := unix.Timespec{}
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&pfd)), 1,
		uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	return errno == 0 && n == 1
}
