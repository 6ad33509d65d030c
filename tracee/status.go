// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/sys"
)

// Status says how a process ended.
type Status struct{ ws unix.WaitStatus }

// Code returns the exit status, 0 to 255. It is -1 for a process that was
// killed by a signal.
func (s Status) Code() int { return s.ws.ExitStatus() }

// Signal returns the signal that killed the process, 0 if it exited.
func (s Status) Signal() syscall.Signal {
	if !s.ws.Signaled() {
		return 0
	}
	return s.ws.Signal()
}

// Core reports whether the kernel wrote a core dump.
func (s Status) Core() bool { return s.ws.CoreDump() }

// String is meant for messages.
func (s Status) String() string {
	switch {
	case s.Core():
		return fmt.Sprintf("killed by signal %d (%v, core dumped)", int(s.Signal()), s.Signal())
	case s.Signal() != 0:
		return fmt.Sprintf("killed by signal %d (%v)", int(s.Signal()), s.Signal())
	}
	return fmt.Sprintf("exited with status %d", s.Code())
}

// MirrorExit ends this process as s says: by the same exit status, or by the
// same signal, without a core dump of our own. It never returns. Deferred
// functions do not run.
func MirrorExit(s Status) {
	sig := s.Signal()
	if sig == 0 {
		os.Exit(s.Code())
	}
	// The program has dumped its core where it wanted one; ours would be
	// about the wrong program. Failure only costs a file.
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	runtime.LockOSThread()
	signal.Reset(sig)
	_ = setAction(int(sig), sigaction{handler: sigDfl}) // fails for SIGKILL, which needs nothing
	_ = sys.UnblockSignals(1 << (sig - 1))
	// Sent to this very thread the signal is delivered before the call
	// returns.
	_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), sig)
	os.Exit(128 + int(sig))
}
