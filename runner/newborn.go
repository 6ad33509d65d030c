// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/tracee"
)

// A forked child gets its agent late: most call exec, or end, before any page of
// theirs has to leave, and an agent takes a good part of the time of a fork and an
// exec. But an agent needs a stopped thread. To stop one at any moment would show:
// a blocking write(2) to a pipe ends with what it has written by then. And one that
// is in process_vm_readv(2) does not stop before its end, while it brings in
// pages that nobody can take out.
//
// So the only thread of a child is looked at before each call that it makes. Before
// the first that is not known to be brief it gets the agent. Where it makes none, it
// is in user mode, where it can be stopped unseen.

// mostBrief is the number of brief calls that are looked at: those cost about as much as
// an agent.
const mostBrief = 32

// newborn looks at the calls of a child until it has an agent.
func (e *engagement) newborn(th *tracee.Thread) {
	left := mostBrief
	th.Calls(func() bool {
		left--
		return e.beforeCall(th, left > 0)
	})
}

// beforeCall gives the child of thread th its agent if that is due before the call that
// it is about to make. It reports whether the next call is to be looked at, too.
func (e *engagement) beforeCall(th *tracee.Thread, more bool) bool {
	e.mu.Lock()
	over := e.agent != nil || e.closed
	e.mu.Unlock()
	if over {
		return false
	}
	c, err := th.Call()
	if err != nil || !c.Native {
		return more // killed meanwhile; or what it does is not known
	}
	if more && brief(c) {
		return true
	}
	e.scanMu.Lock()
	defer e.scanMu.Unlock()
	// What is refused here is tried again when a page has to leave, and reported
	// then.
	_, _ = e.plantIn(th, false)
	return false
}

// atomicWrite is how much is written to a pipe as a whole, or not at all; pipe(7).
const atomicWrite = 4096

// Of ioctl(2), for descriptors of any kind.
const (
	fionbio  = 0x5421
	fionclex = 0x5450
	fioclex  = 0x5451
)

// brief reports whether a call neither takes long, but for waiting, nor ends in a way
// that shows when the thread is stopped: it has no effect that is done in parts.
func brief(c tracee.Call) bool {
	switch c.Nr {
	case unix.SYS_READ, unix.SYS_WRITE:
		return c.Args[2] <= atomicWrite
	case unix.SYS_GETRANDOM:
		return c.Args[1] <= 256 // so much comes as a whole; random(7)
	case unix.SYS_CLONE:
		// Of several threads each would have to be looked at.
		return c.Args[0]&unix.CLONE_VM == 0
	case unix.SYS_IOCTL:
		switch c.Args[1] {
		case unix.TCGETS, unix.TIOCGPGRP, unix.TIOCSPGRP, unix.TIOCGWINSZ, fionbio, fionclex, fioclex:
			return true
		}
	}
	_, found := slices.BinarySearch(briefCalls, c.Nr)
	return found
}

// briefCalls are those that children make before they call exec, and shells in children
// that do not. All that wait are made again by the kernel after a stop; signal(7).
var briefCalls = slices.Sorted(slices.Values(append(oldCalls,
	unix.SYS_BRK,
	unix.SYS_CAPGET,
	unix.SYS_CAPSET,
	unix.SYS_CHDIR,
	unix.SYS_CLOCK_GETTIME,
	unix.SYS_CLOSE,
	unix.SYS_CLOSE_RANGE,
	unix.SYS_DUP,
	unix.SYS_DUP3,
	unix.SYS_EXECVE,
	unix.SYS_EXECVEAT,
	unix.SYS_EXIT,
	unix.SYS_EXIT_GROUP,
	unix.SYS_FACCESSAT,
	unix.SYS_FACCESSAT2,
	unix.SYS_FCHDIR,
	unix.SYS_FCNTL,
	unix.SYS_FSTAT,
	unix.SYS_FUTEX,
	unix.SYS_GETCWD,
	unix.SYS_GETEGID,
	unix.SYS_GETEUID,
	unix.SYS_GETGID,
	unix.SYS_GETGROUPS,
	unix.SYS_GETPGID,
	unix.SYS_GETPID,
	unix.SYS_GETPPID,
	unix.SYS_GETRESGID,
	unix.SYS_GETRESUID,
	unix.SYS_GETSID,
	unix.SYS_GETTID,
	unix.SYS_GETUID,
	unix.SYS_KILL,
	unix.SYS_LSEEK,
	unix.SYS_MMAP,
	unix.SYS_MPROTECT,
	unix.SYS_MUNMAP,
	unix.SYS_OPENAT,
	unix.SYS_PIPE2,
	unix.SYS_PRCTL,
	unix.SYS_PRLIMIT64,
	unix.SYS_RSEQ,
	unix.SYS_RT_SIGACTION,
	unix.SYS_RT_SIGPROCMASK,
	unix.SYS_RT_SIGRETURN,
	unix.SYS_SETGID,
	unix.SYS_SETGROUPS,
	unix.SYS_SETPGID,
	unix.SYS_SETPRIORITY,
	unix.SYS_SETREGID,
	unix.SYS_SETRESGID,
	unix.SYS_SETRESUID,
	unix.SYS_SETREUID,
	unix.SYS_SETSID,
	unix.SYS_SETUID,
	unix.SYS_SET_ROBUST_LIST,
	unix.SYS_SIGALTSTACK,
	unix.SYS_TGKILL,
	unix.SYS_TKILL,
	unix.SYS_UMASK,
	unix.SYS_UNAME,
	unix.SYS_WAIT4,
	unix.SYS_WAITID,
)))
