// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tracee

import "golang.org/x/sys/unix"

// cloneArgs returns what thread tid passed to the call that it is in, read as
// one of clone(2). Its result is not in the registers before it returns, which
// is after the event.
func cloneArgs(tid int) (nr, flags, childID uintptr, err error) {
	var r unix.PtraceRegsArm64
	if err := unix.PtraceGetRegSetArm64(tid, unix.NT_PRSTATUS, &r); err != nil {
		return 0, 0, 0, err
	}
	return uintptr(r.Regs[8]), uintptr(r.Regs[0]), uintptr(r.Regs[4]), nil
}
