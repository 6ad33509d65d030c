// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tracee

import "golang.org/x/sys/unix"

// cloneArgs returns what thread tid passed to the call that it is in, read as
// one of clone(2).
func cloneArgs(tid int) (nr, flags, childID uintptr, err error) {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &r); err != nil {
		return 0, 0, 0, err
	}
	return uintptr(r.Orig_rax), uintptr(r.Rdi), uintptr(r.R10), nil
}
