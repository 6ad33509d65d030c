// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package puppet

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
)

// The area is a memfd that we and every process of a family of puppets have
// mapped: slots, then scratch memory. The assembly source has the same
// numbers.
const (
	// AreaStart is where puppets map the area.
	AreaStart mem.Addr = 0x10_0000_0000
	areaSize           = 64 << 20
	areaFD             = 3

	slotSize = 1 << 16
	maxSlots = 64
	// The rest of a slot is the stack of signal handlers. A frame with all
	// vector registers in it has some 11 KiB.
	altStackOff = 0x4000

	scratchOff = maxSlots * slotSize
	// ScratchSize is the length of the memory at [Process.Scratch].
	ScratchSize = areaSize - scratchOff
)

// slot is how a thread is told what to do. We write op, nr and args and then
// seq; from then on they are the thread's until it has written the same
// number to done.
type slot struct {
	seq    atomic.Uint32
	done   atomic.Uint32
	op     uint32
	tid    uint32
	pid    uint32
	signal uint32
	code   int32
	count  atomic.Uint32 // changes at any time
	nr     uint64
	args   [6]uint64
	result uint64
	addr   uint64
}

// A slip must not compile.
var (
	_ [0x60 - unsafe.Offsetof(slot{}.addr)]struct{}
	_ [unsafe.Offsetof(slot{}.addr) - 0x60]struct{}
	_ [0x28 - unsafe.Offsetof(slot{}.args)]struct{}
	_ [unsafe.Offsetof(slot{}.args) - 0x28]struct{}
)

// area is our mapping.
type area struct {
	fd   int
	b    []byte
	used int // slots given out so far; they are not used again
	// eyes are nil where the kernel is what there is to see.
	eyes eyes
}

// eyes see what somebody shows of puppets who is between them and the kernel.
type eyes interface {
	// state says what a thread is at that is held up.
	state(tid int) (s State, held bool)
	// read reads up to n bytes of a file of /proc, from off on.
	read(path string, off int64, n int) ([]byte, error)
}

func newArea() (*area, error) {
	fd, err := unix.MemfdCreate("puppets", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	if err = unix.Ftruncate(fd, areaSize); err == nil {
		var b []byte
		b, err = unix.Mmap(fd, 0, areaSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err == nil {
			return &area{fd: fd, b: b}, nil
		}
	}
	_ = unix.Close(fd)
	return nil, fmt.Errorf("shared area: %w", err)
}

func (a *area) close() {
	_ = unix.Munmap(a.b)
	_ = unix.Close(a.fd)
}

// take gives out a slot with a command in it, which the thread that comes to
// serve it answers first.
func (a *area) take() (s *slot, addr mem.Addr, index int, err error) {
	if a.used == maxSlots {
		return nil, 0, 0, fmt.Errorf("%d threads are all that a family of puppets can have", maxSlots)
	}
	index = a.used
	a.used++
	s = (*slot)(unsafe.Pointer(&a.b[index*slotSize]))
	s.seq.Store(1)
	return s, AreaStart + mem.Addr(index*slotSize), index, nil
}

// publish starts the command that has been written to s.
func (s *slot) publish() {
	s.seq.Add(1)
	unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&s.seq)), futexWake, 1, 0, 0, 0)
}

// finished reports whether the last command is done.
func (s *slot) finished() bool { return s.done.Load() == s.seq.Load() }

// wait returns when the last command is done, or after d, or for no reason.
func (s *slot) wait(d time.Duration) {
	done := s.done.Load()
	if done == s.seq.Load() {
		return
	}
	ts := unix.NsecToTimespec(int64(d))
	// Every result means: look again. The area is shared between processes,
	// so this is no private futex.
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&s.done)), futexWait, uintptr(done),
		uintptr(unsafe.Pointer(&ts)), 0, 0)
}

const (
	futexWait = 0
	futexWake = 1
)
