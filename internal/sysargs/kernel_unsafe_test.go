// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package sysargs

import (
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
)

// room is memory for one pointer of a call: pages that can be used, and one behind
// them that cannot.
type room struct{ start, end uintptr }

const roomPages = 3

func newRoom(t *testing.T) room {
	t.Helper()
	const n = (roomPages + 1) * mem.PageSize
	at, _, errno := unix.RawSyscall6(unix.SYS_MMAP, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	t.Cleanup(func() { unix.RawSyscall(unix.SYS_MUNMAP, at, n, 0) })
	r := room{at, at + roomPages*mem.PageSize}
	if _, _, errno := unix.RawSyscall(unix.SYS_MPROTECT, r.end, mem.PageSize, unix.PROT_NONE); errno != 0 {
		t.Fatal(errno)
	}
	return r
}

func (r room) protect(prot uintptr) {
	if _, _, errno := unix.RawSyscall(unix.SYS_MPROTECT, r.start, r.end-r.start, prot); errno != 0 {
		panic(errno)
	}
}

// put writes what there is room for.
func (r room) put(at uintptr, b []byte) {
	for i := range b {
		if a := at + uintptr(i); a >= r.start && a < r.end {
			*(*byte)(memory(a)) = b[i]
		}
	}
}

// memory is a pointer to memory that Go does not manage.
func memory(a uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&a)) }

// readMemory is what Ranges reads by.
func readMemory(a mem.Addr, dst []byte) int {
	local := unix.Iovec{Base: &dst[0], Len: uint64(len(dst))}
	remote := unix.RemoteIovec{Base: uintptr(a), Len: len(dst)}
	n, _, errno := unix.RawSyscall6(unix.SYS_PROCESS_VM_READV, uintptr(unix.Getpid()),
		uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	runtime.KeepAlive(dst)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// make6 makes a call.
func make6(nr uintptr, a [6]uintptr) (uintptr, syscall.Errno) {
	r, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	return r, errno
}
