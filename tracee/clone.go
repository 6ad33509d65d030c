// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
)

// clearedID returns the word that the kernel will clear when the task ends
// which thread tid has just made, 0 if there is none. The thread stands in
// its clone event.
func clearedID(tid int) mem.Addr {
	flags, childID, ok := cloneFlags(tid)
	if !ok || flags&unix.CLONE_CHILD_CLEARTID == 0 {
		return 0
	}
	return mem.Addr(childID)
}

// cloneFlags returns the flags of the clone(2) or clone3(2) in whose event
// thread tid stands, with the arguments in its registers, and where the child's
// id goes. It does not know other calls, and none of a thread that was killed.
func cloneFlags(tid int) (flags, childID uintptr, ok bool) {
	nr, flags, childID, err := cloneArgs(tid)
	if err != nil {
		return 0, 0, false
	}
	if nr == unix.SYS_CLONE3 {
		// The first argument is a struct clone_args: flags, pidfd, child_tid.
		var args [3 * 8]byte
		local := []unix.Iovec{{Base: &args[0], Len: uint64(len(args))}}
		remote := []unix.RemoteIovec{{Base: flags, Len: len(args)}}
		if n, err := unix.ProcessVMReadv(tid, local, remote, 0); err != nil || n != len(args) {
			return 0, 0, false
		}
		return uintptr(binary.LittleEndian.Uint64(args[0:])), uintptr(binary.LittleEndian.Uint64(args[16:])), true
	}
	return flags, childID, nr == unix.SYS_CLONE
}
