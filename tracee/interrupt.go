// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import "golang.org/x/sys/unix"

// Interrupt stops the thread as soon as it can be, calls f with it stopped and
// lets it go on. Once Interrupt has returned, the thread executes no instruction
// of the program before f has run, but those that it may have time for on its
// way into the stop; a call that it is in may end first, or be interrupted as by
// any ptrace stop. f is not called if the thread dies. Only one f can wait: the
// last one.
//
// f finds the thread in a PTRACE_EVENT_STOP and may leave it in another stop,
// which it must then have consumed. For the tracer thread only.
func (th *Thread) Interrupt(f func()) {
	th.onStop = f
	_ = ptrace(unix.PTRACE_INTERRUPT, th.tid, 0, 0) // ESRCH: it dies
}

// Calls has f called at the begin of each system call of a thread that is stopped
// now, until f returns false or the thread calls exec. Each of these calls costs the
// thread two stops.
//
// f finds the thread before the call, and may bring it to another stop, which it
// must then have consumed. For the tracer thread only.
func (th *Thread) Calls(f func() bool) { th.onCall = f }
