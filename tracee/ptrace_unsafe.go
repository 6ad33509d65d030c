// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
)

// options are set once on the program's first thread; every task that the
// tree makes is born with them.
const options = inject.Options

// waitFlags: every kind of child, but only what belongs to this OS thread.
// Children that other code of the supervisor starts are left to it.
const waitFlags = unix.WALL | unix.WNOTHREAD

// ptrace issues one request. ESRCH means that the thread is dead, dying or
// not stopped, which SIGKILL can make it at any time.
func ptrace(req, tid int, addr, data uintptr) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(req), uintptr(tid), addr, data, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func ptracePtr(req, tid int, addr uintptr, p unsafe.Pointer) (n int, err error) {
	r, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(req), uintptr(tid), addr, uintptr(p), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// siginfo is the head of the kernel's siginfo_t. The sender's pid is there
// for signals that a process has sent.
type siginfo struct {
	signo, errno, code, _, pid int32
	_                          [128 - 20]byte
}

func getSiginfo(tid int) (si siginfo, err error) {
	_, err = ptracePtr(unix.PTRACE_GETSIGINFO, tid, 0, unsafe.Pointer(&si))
	return si, err
}

func eventMsg(tid int) (msg uintptr, err error) {
	_, err = ptracePtr(unix.PTRACE_GETEVENTMSG, tid, 0, unsafe.Pointer(&msg))
	return msg, err
}

func setMask(tid int, mask uint64) error {
	_, err := ptracePtr(unix.PTRACE_SETSIGMASK, tid, 8, unsafe.Pointer(&mask))
	return err
}

// callInfo is struct ptrace_syscall_info of ptrace(2), since Linux 5.3.
type callInfo struct {
	op   uint8
	_    [3]uint8
	arch uint32
	_    [2]uint64 // instruction and stack pointer
	// What follows depends on op. Entry and seccomp: number and arguments.
	// Exit: return value, then a byte that says whether it is an error.
	word [7]uint64
	data uint32 // seccomp: the filter's SECCOMP_RET_DATA
	_    uint32
}

func getCallInfo(tid int) (info callInfo, err error) {
	_, err = ptracePtr(unix.PTRACE_GET_SYSCALL_INFO, tid, unsafe.Sizeof(info), unsafe.Pointer(&info))
	return info, err
}

// sigaction is the kernel's struct sigaction.
type sigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

const (
	sigDfl    = 0
	sigIgn    = 1
	saRestart = 0x10000000
)

// getAction and setAction go behind the runtime's back: os/signal has no way
// to ask for a disposition, or for one without SA_RESTART.
func getAction(sig int) (sa sigaction, err error) {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&sa)), 8, 0, 0)
	if errno != 0 {
		return sa, errno
	}
	return sa, nil
}

func setAction(sig int, sa sigaction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&sa)), 0, 8, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// sameSpace asks kcmp(2) whether two tasks share their memory. It fails where
// the kernel was built without it (CONFIG_KCMP) and for tasks that we may
// not inspect.
func sameSpace(a, b int) (bool, error) {
	const kcmpVM = 1
	r, _, errno := unix.RawSyscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), kcmpVM, 0, 0, 0)
	if errno != 0 {
		return false, errno
	}
	return r == 0, nil
}

// findWord returns where in [start, end) of our own memory the word v is
// found, if exactly one place holds it. Pages that nobody has written are
// left alone: they hold nothing, and there may be very many of them.
func findWord(start, end, v uintptr) (at uintptr, ok bool) {
	page := uintptr(unix.Getpagesize())
	resident := make([]byte, (end-start)/page)
	if len(resident) == 0 {
		return 0, false
	}
	_, _, errno := unix.RawSyscall(unix.SYS_MINCORE, start, end-start, uintptr(unsafe.Pointer(&resident[0])))
	if errno != 0 {
		return 0, false
	}
	buf := make([]uintptr, page/unsafe.Sizeof(v))
	found := 0
	for i, r := range resident {
		if r&1 == 0 {
			continue
		}
		pos := start + uintptr(i)*page
		for j, w := range buf[:readSelf(pos, buf)] {
			if w == v {
				at = pos + uintptr(j)*unsafe.Sizeof(v)
				found++
			}
		}
	}
	return at, found == 1
}

// readSelf copies our own memory at addr by process_vm_readv(2), which fails
// where a plain read would crash, and returns the number of words read.
func readSelf(addr uintptr, buf []uintptr) int {
	size := uintptr(len(buf)) * unsafe.Sizeof(addr)
	local := unix.Iovec{Base: (*byte)(unsafe.Pointer(&buf[0])), Len: uint64(size)}
	remote := unix.RemoteIovec{Base: addr, Len: int(size)}
	n, _, errno := unix.RawSyscall6(unix.SYS_PROCESS_VM_READV, uintptr(unix.Getpid()),
		uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	if errno != 0 {
		return 0
	}
	return int(n / unsafe.Sizeof(addr))
}
