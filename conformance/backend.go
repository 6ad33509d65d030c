// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// Backend is a kernel: the running one, or a model of one. Its methods and
// those of what it makes belong to one goroutine at a time.
type Backend interface {
	// Name is how the report calls it.
	Name() string
	// Seed reports whether it is the 2015 patch rather than Linux 6.18.
	Seed() bool
	// Features returns what UFFDIO_API answers. The error says why there is
	// no userfaultfd.
	Features() (uapi.Features, error)
	// Release is the version of Linux, such as "6.18.44".
	Release() string
	// Lacks reports whether a call does not exist here.
	Lacks(Call) bool
	// Privileged reports whether its processes have CAP_SYS_PTRACE.
	Privileged() bool
	// Huge sees to it that n huge pages are free. The error says why not.
	Huge(n int) error
	// Start makes a process with an empty address space but for some scratch
	// memory, /dev/null in its first descriptors, and one thread.
	Start() (Process, error)
	// Close undoes what Huge has changed.
	Close() error
}

// Process is a process of a backend.
type Process interface {
	// PID is for ProcessVMRead.
	PID() int
	Main() Task
	// Spawn makes another thread by the hand of by, which is idle.
	Spawn(by Task) (Task, error)
	// BeginFork makes a process by the hand of by, which is idle. What it
	// returns waits until the child is alive: with an event, that is not
	// before the event was read.
	BeginFork(by Task) (child func() (Process, error), err error)
	// Exec replaces the address space and all threads but the main one.
	Exec() error
	// Take puts descriptor fd of another process into the table of this one,
	// as SCM_RIGHTS would.
	Take(from Process, fd int) (int, error)
	// DropPrivilege takes all capabilities from the main thread, before
	// there is another.
	DropPrivilege() error
	// Handle chooses whether SIGUSR1 restarts the calls it interrupts.
	Handle(restart bool) error
	// Ptrace attaches to target, peeks at the word at a, and detaches.
	Ptrace(target Process, a mem.Addr) (Errno, error)
	Kill() error
	Exited() bool
	// Close ends the process and all that it has forked.
	Close() error

	// Scratch is memory that is never registered, and shared by a process
	// and its children.
	Scratch() mem.Range
	// Poke and Peek write and read scratch memory from outside.
	Poke(mem.Addr, []byte)
	Peek(mem.Addr, []byte)

	// Maps returns the mappings that overlap a range.
	Maps(mem.Range) ([]VMA, error)
	// Fdinfo returns the text of /proc/PID/fdinfo/FD.
	Fdinfo(fd int) (string, error)
	// Pagemap returns the words of /proc/PID/pagemap about the pages of 4 KiB
	// of a range.
	Pagemap(mem.Range) ([]uint64, error)
}

// Task is a thread of a process. It does one thing at a time.
type Task interface {
	TID() int
	// Start begins a call. The last one has ended.
	Start(call Call, args [6]uint64)
	// State is what the thread is at.
	State() State
	// Wait returns when the call has ended, or after d, or for no reason.
	Wait(d time.Duration)
	// Result is how the last call, which has ended, did so.
	Result() Result
	// Signal sends a signal.
	Signal(sig int) error
	// Handled is how many signals but SIGSEGV and SIGBUS were handled.
	Handled() int
	// Describe says what the thread is at, for a person.
	Describe() string
}

// State is what a thread is at.
type State uint8

// States of a thread.
const (
	Running State = iota // or about to: look again
	Idle                 // its last call has ended
	InFault              // asleep in a fault, the message of which is queued
	InEvent              // asleep until an event is read
	Asleep               // in something else
	Gone                 // it has ended
)

// String returns the name of s in lower case.
func (s State) String() string {
	return [...]string{"running", "idle", "in a fault", "in an event", "asleep", "gone"}[s]
}

// Result is how a call ended.
type Result struct {
	Value uint64
	Errno Errno
	// Signal is SIGSEGV or SIGBUS if the access raised one.
	Signal int
	Code   int
	Addr   mem.Addr
}

// VMA is a mapping as /proc/PID/smaps shows it.
type VMA struct {
	mem.Range
	Perms string // such as "rw-p"
	Flags string // VmFlags
}

// Memory is a kind of memory that can be registered.
type Memory uint8

// Kinds of memory. None is for cases that map none, or choose by themselves.
const (
	None Memory = iota
	Anon
	Shmem
	PrivateShmem
	Hugetlb
	PrivateHugetlb
)

// Sets of kinds of memory.
var (
	all     = []Memory{Anon, Shmem, PrivateShmem, Hugetlb, PrivateHugetlb}
	small   = []Memory{Anon, Shmem, PrivateShmem}
	files   = []Memory{Shmem, PrivateShmem, Hugetlb, PrivateHugetlb}
	shared  = []Memory{Shmem, Hugetlb}
	huge    = []Memory{Hugetlb, PrivateHugetlb}
	anon    = []Memory{Anon}
	shmem   = []Memory{Shmem}
	private = []Memory{Anon, PrivateShmem, PrivateHugetlb}
)

// String returns the name of m.
func (m Memory) String() string {
	return [...]string{"none", "anon", "shmem", "private-shmem", "hugetlb", "private-hugetlb"}[m]
}

// Huge reports whether the pages are of 2 MiB.
func (m Memory) Huge() bool { return m == Hugetlb || m == PrivateHugetlb }

// Shared reports whether what is written is seen through other mappings.
func (m Memory) Shared() bool { return m == Shmem || m == Hugetlb }

// File reports whether a memfd is behind it.
func (m Memory) File() bool { return m > Anon }

// PageSize returns the size of its pages.
func (m Memory) PageSize() uint64 {
	if m.Huge() {
		return 2 << 20
	}
	return mem.PageSize
}
