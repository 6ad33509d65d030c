// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Space is one address space of the tree. It is shared by the processes made
// with CLONE_VM, as vfork(2) and posix_spawn(3) do, and left by exec.
type Space struct {
	id    uint64
	pid   atomic.Int64
	procs []*Process // in the order in which they came
	reqs  []*stopRequest
}

// ID returns a number that no other space of this tracer ever has.
func (s *Space) ID() uint64 { return s.id }

// Pid returns the id of the process that has lived in the space for longest, 0
// when it is gone: others borrow it, mostly, and leave it soon. It may be called by
// anyone at any time; the process may be gone by the time that the caller uses it.
func (s *Space) Pid() int { return int(s.pid.Load()) }

// Processes returns the processes that live in the space. For the tracer
// thread only.
func (s *Space) Processes() []*Process { return slices.Clone(s.procs) }

// Still reports whether no thread of the space can run before one is resumed: it
// has one process, and all threads of that are kept in their stops. For the tracer
// thread only.
func (s *Space) Still() bool {
	if len(s.procs) != 1 {
		return false
	}
	for _, p := range s.procs {
		for _, th := range p.threads {
			// Whoever makes a thread that is not known yet is on its way to a stop.
			if th.state != held || !th.kept {
				return false
			}
		}
	}
	return true
}

func (s *Space) add(p *Process) {
	s.procs = append(s.procs, p)
	s.pid.Store(int64(s.procs[0].pid))
	p.space.Store(s)
}

// remove reports whether p was the last one.
func (s *Space) remove(p *Process) bool {
	i := slices.Index(s.procs, p)
	if i < 0 {
		return false
	}
	if s.procs = slices.Delete(s.procs, i, i+1); len(s.procs) == 0 {
		s.pid.Store(0)
		return true
	}
	s.pid.Store(int64(s.procs[0].pid))
	return false
}

// Process is a thread group of the tree.
type Process struct {
	t       *Tracer
	pid     int
	space   atomic.Pointer[Space]
	compat  atomic.Bool
	threads map[int]*Thread
	by      *Thread
}

// Pid returns the process id, as seen from the supervisor.
func (p *Process) Pid() int { return p.pid }

// Space returns the address space that the process lives in now, or has
// lived in last.
func (p *Process) Space() *Space { return p.space.Load() }

// By returns the thread that made the process, nil for the root program. It
// may be gone.
func (p *Process) By() *Thread { return p.by }

// Compat reports whether the process runs a 32-bit program, or one of
// another architecture than this binary's.
func (p *Process) Compat() bool { return p.compat.Load() }

// Threads returns the live threads. For the tracer thread only.
func (p *Process) Threads() []*Thread {
	ths := make([]*Thread, 0, len(p.threads))
	for _, th := range p.threads {
		ths = append(ths, th)
	}
	return ths
}

// state says what a thread does, as far as the tracer has seen.
type state uint8

const (
	born      state = iota // its first stop has not been seen
	running                // or on its way to a stop that has not been seen
	listening              // in a group stop, waiting for SIGCONT
	held                   // stopped, and not resumed until something has happened
)

// Thread is a thread of the tree. It may be used on the tracer thread only,
// and most of it only while the thread is stopped.
type Thread struct {
	tid      int
	proc     *Process
	state    state
	wantExit bool        // stop at the end of the system call
	kept     bool        // by Keep
	taken    bool        // Keep was called in the callback that is under way
	vforking bool        // blocked until its vfork child is gone its way
	holds    *Thread     // parent that waits for this child's first stop
	onStop   func()      // of Interrupt, until it has been called
	onCall   func() bool // of Calls, until it has returned false
}

// Tid returns the thread id, as seen from the supervisor.
func (th *Thread) Tid() int { return th.tid }

// Process returns the process that the thread belongs to.
func (th *Thread) Process() *Process { return th.proc }

// Keep makes the thread stay in the stop in which a callback has it, until
// Resume: it may be called in a callback, and means the thread that the callback
// is about, or the one that has made a process. The thread can be killed
// meanwhile, but gets no signals.
func (th *Thread) Keep() { th.kept, th.taken, th.state = true, true, held }

// Resume lets a thread go on that was kept, with a signal if sig is not 0. With
// exit set it stops again at the end of the system call that it is about to
// make, for SyscallExit. The callback that has kept the thread may be under way.
func (th *Thread) Resume(sig syscall.Signal, exit bool) {
	th.kept, th.wantExit = false, exit
	th.proc.t.resume(th, int(sig))
}

// leave reports whether a callback has kept the thread, which then goes on when
// it says so, and may have done that already: it may be at its next stop by
// now.
func (th *Thread) leave() bool {
	taken := th.taken
	th.taken = false
	return taken
}

// nativeArch is the AUDIT_ARCH_ value of this binary.
var nativeArch = map[string]uint32{
	"amd64": unix.AUDIT_ARCH_X86_64,
	"arm64": unix.AUDIT_ARCH_AARCH64,
}[runtime.GOARCH]

// x32Bit marks the system calls of the x32 ABI, which has the 64-bit
// architecture value but 32-bit pointers.
const x32Bit = 1 << 30

// Call describes the system call that a stopped thread is in.
type Call struct {
	// Native is false for a call made through the 32-bit or x32 entry, whose
	// numbers and arguments mean something else.
	Native bool
	// Nr and Args are known before the call, in SyscallEnter.
	Nr   uintptr
	Args [6]uintptr
	// Data is what the filter gave with SECCOMP_RET_TRACE.
	Data uint16
	// Ret is known after the call, in SyscallExit, and only there. Errno is
	// the error that the call returned, or 0.
	Ret   uintptr
	Errno syscall.Errno
}

// Call reads the system call that the thread is stopped in. It fails with
// ESRCH when the thread was killed meanwhile, and with EIO on Linux before
// 5.3.
func (th *Thread) Call() (Call, error) {
	info, err := getCallInfo(th.tid)
	if err != nil {
		return Call{}, err
	}
	c := Call{Native: info.arch == nativeArch}
	switch info.op {
	case unix.PTRACE_SYSCALL_INFO_EXIT:
		c.Ret = uintptr(info.word[0])
		if byte(info.word[1]) != 0 {
			c.Errno = syscall.Errno(-int64(info.word[0]))
		}
	case unix.PTRACE_SYSCALL_INFO_ENTRY, unix.PTRACE_SYSCALL_INFO_SECCOMP:
		c.Nr = uintptr(info.word[0])
		for i := range c.Args {
			c.Args[i] = uintptr(info.word[i+1])
		}
		if info.op == unix.PTRACE_SYSCALL_INFO_SECCOMP {
			c.Data = uint16(info.data)
		}
		if runtime.GOARCH == "amd64" && c.Nr&x32Bit != 0 {
			c.Native = false
		}
	}
	return c, nil
}
