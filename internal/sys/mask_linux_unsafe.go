// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// StopSignals are the stop signals that can be blocked, as a mask: bit n-1 is
// signal n.
const StopSignals = 1<<(unix.SIGTSTP-1) | 1<<(unix.SIGTTIN-1) | 1<<(unix.SIGTTOU-1)

// BlockSignals adds to the calling thread's signal mask and returns it as it
// was. A process that the thread makes inherits the mask. The goroutine must
// be locked to its thread until [SetSignalMask] has put the mask back.
func BlockSignals(set uint64) (old uint64, err error) { return changeMask(unix.SIG_BLOCK, set) }

// UnblockSignals takes from the calling thread's signal mask.
func UnblockSignals(set uint64) error {
	_, err := changeMask(unix.SIG_UNBLOCK, set)
	return err
}

// SetSignalMask sets the calling thread's signal mask, which cannot fail.
func SetSignalMask(mask uint64) { _, _ = changeMask(unix.SIG_SETMASK, mask) }

// changeMask is rt_sigprocmask(2). The runtime has no way to change the mask
// of a thread.
func changeMask(how int, set uint64) (old uint64, err error) {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, uintptr(how),
		uintptr(unsafe.Pointer(&set)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return old, nil
}
