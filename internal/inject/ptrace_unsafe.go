// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
)

// regs is the general register set of the architecture.
type regs = unix.PtraceRegs

// ptrace issues one request. It returns ErrGone for ESRCH, which the kernel
// gives for a thread that is dead, dying, or not stopped.
func ptrace(req, tid int, addr, data uintptr) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(req), uintptr(tid), addr, data, 0, 0)
	switch errno {
	case 0:
		return nil
	case unix.ESRCH:
		return ErrGone
	}
	return errno
}

func ptracePtr(req, tid int, addr uintptr, p unsafe.Pointer) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(req), uintptr(tid), addr, uintptr(p), 0, 0)
	switch errno {
	case 0:
		return nil
	case unix.ESRCH:
		return ErrGone
	}
	return errno
}

// getRegs reads the general registers. It returns ErrForeign for a thread
// that runs in another mode than ours (32-bit), whose register set is
// shorter.
func getRegs(tid int, r *regs) error {
	iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(r)), Len: uint64(unsafe.Sizeof(*r))}
	if err := ptracePtr(unix.PTRACE_GETREGSET, tid, unix.NT_PRSTATUS, unsafe.Pointer(&iov)); err != nil {
		return fmt.Errorf("read registers of thread %d: %w", tid, err)
	}
	if iov.Len != uint64(unsafe.Sizeof(*r)) || foreign(r) {
		return fmt.Errorf("read registers of thread %d: %w", tid, ErrForeign)
	}
	return nil
}

func setRegs(tid int, r *regs) error {
	iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(r)), Len: uint64(unsafe.Sizeof(*r))}
	if err := ptracePtr(unix.PTRACE_SETREGSET, tid, unix.NT_PRSTATUS, unsafe.Pointer(&iov)); err != nil {
		return fmt.Errorf("write registers of thread %d: %w", tid, err)
	}
	return nil
}

// sigset is the kernel's signal set: bit n-1 is signal n.
type sigset uint64

func bit(sig unix.Signal) sigset { return 1 << (uint(sig) - 1) }

func getMask(tid int) (m sigset, err error) {
	if err := ptracePtr(unix.PTRACE_GETSIGMASK, tid, 8, unsafe.Pointer(&m)); err != nil {
		return 0, fmt.Errorf("read signal mask of thread %d: %w", tid, err)
	}
	return m, nil
}

func setMask(tid int, m sigset) error {
	if err := ptracePtr(unix.PTRACE_SETSIGMASK, tid, 8, unsafe.Pointer(&m)); err != nil {
		return fmt.Errorf("write signal mask of thread %d: %w", tid, err)
	}
	return nil
}

// siginfo is the head of the kernel's siginfo_t: enough to tell stops apart.
type siginfo struct {
	signo, errno, code int32
	_                  int32
	pid, uid, status   int32
	_                  [128 - 28]byte
}

func getSiginfo(tid int) (si siginfo, err error) {
	if err := ptracePtr(unix.PTRACE_GETSIGINFO, tid, 0, unsafe.Pointer(&si)); err != nil {
		return si, fmt.Errorf("read stop of thread %d: %w", tid, err)
	}
	return si, nil
}

func setSiginfo(tid int, si *siginfo) error {
	if err := ptracePtr(unix.PTRACE_SETSIGINFO, tid, 0, unsafe.Pointer(si)); err != nil {
		return fmt.Errorf("write signal of thread %d: %w", tid, err)
	}
	return nil
}

// tkill signals one thread. It is stopped by us, so its id is its own.
func tkill(tid int, sig unix.Signal) error {
	_, _, errno := unix.RawSyscall(unix.SYS_TKILL, uintptr(tid), uintptr(sig), 0)
	switch errno {
	case 0:
		return nil
	case unix.ESRCH:
		return ErrGone
	}
	return fmt.Errorf("signal thread %d: %w", tid, errno)
}

func eventMsg(tid int) (msg uintptr, err error) {
	if err := ptracePtr(unix.PTRACE_GETEVENTMSG, tid, 0, unsafe.Pointer(&msg)); err != nil {
		return 0, fmt.Errorf("read event of thread %d: %w", tid, err)
	}
	return msg, nil
}

// syscallOp says where in a system call the thread is stopped, one of the
// PTRACE_SYSCALL_INFO_ values. Needs Linux 5.3.
func syscallOp(tid int) (op byte, err error) {
	var info [88]byte
	if err := ptracePtr(unix.PTRACE_GET_SYSCALL_INFO, tid, unsafe.Sizeof(info), unsafe.Pointer(&info)); err != nil {
		return 0, fmt.Errorf("read system call stop of thread %d (needs Linux 5.3): %w", tid, err)
	}
	return info[0], nil
}

// queuedFromFilter reports whether a SIGSYS raised by a seccomp filter waits
// in the thread's own queue.
func queuedFromFilter(tid int) bool {
	args := struct {
		off   uint64
		flags uint32
		nr    int32
	}{nr: 8}
	var si [8]siginfo
	n, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_PEEKSIGINFO, uintptr(tid),
		uintptr(unsafe.Pointer(&args)), uintptr(unsafe.Pointer(&si)), 0, 0)
	if errno != 0 {
		return false
	}
	for _, s := range si[:min(n, 8)] {
		if s.signo == int32(unix.SIGSYS) && s.code > 0 {
			return true
		}
	}
	return false
}

// poke writes to memory of a stopped thread that is all zeros, whatever its
// protection. The length of b is a multiple of 8.
func poke(tid int, addr uintptr, b []byte) error {
	for i := 0; i < len(b); i += 8 {
		word := *(*uintptr)(unsafe.Pointer(&b[i]))
		if word == 0 {
			continue
		}
		if err := ptrace(unix.PTRACE_POKEDATA, tid, addr+uintptr(i), word); err != nil {
			return fmt.Errorf("write %#x of thread %d: %w", addr+uintptr(i), tid, err)
		}
	}
	return nil
}

// rseqArea returns the address of the thread's restartable-sequence area, 0
// if it has registered none or the kernel is older than 5.13.
func rseqArea(tid int) uintptr {
	var conf struct {
		ptr             uint64
		size, sig, f, _ uint32
	}
	if ptracePtr(unix.PTRACE_GET_RSEQ_CONFIGURATION, tid, unsafe.Sizeof(conf), unsafe.Pointer(&conf)) != nil {
		return 0
	}
	return uintptr(conf.ptr)
}

// waitStop waits for the next ptrace stop of tid and consumes it. It returns
// the stop's code, a signal number with the event in the bits above 8.
//
// Only stops are waited for. A death makes the kernel answer ECHILD and
// leaves the exit status for the tracer, which must see it.
func waitStop(tid int) (int, error) {
	var si siginfo
	for {
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_PID, uintptr(tid),
			uintptr(unsafe.Pointer(&si)), unix.WSTOPPED|unix.WALL, 0, 0)
		switch errno {
		case 0:
			return int(si.status), nil
		case unix.EINTR:
		case unix.ECHILD, unix.ESRCH:
			return 0, fmt.Errorf("wait for thread %d: %w", tid, ErrGone)
		default:
			return 0, fmt.Errorf("wait for thread %d: %w", tid, errno)
		}
	}
}

// vmIO copies between p and the memory of tid at addr through
// process_vm_readv(2) or process_vm_writev(2), which raise page faults like
// the program itself would: a page that is outside comes in.
func vmIO(nr uintptr, tid int, addr uintptr, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	local := unix.Iovec{Base: &p[0], Len: uint64(len(p))}
	remote := unix.RemoteIovec{Base: addr, Len: len(p)}
	n, _, errno := unix.Syscall6(nr, uintptr(tid), uintptr(unsafe.Pointer(&local)), 1,
		uintptr(unsafe.Pointer(&remote)), 1, 0)
	switch {
	case errno == unix.ESRCH:
		return 0, ErrGone
	case errno != 0:
		return 0, errno
	case int(n) < len(p):
		return int(n), errShort
	}
	return int(n), nil
}

// ReadMemory copies from the memory of a process as the process could read it
// itself, and returns how many bytes came before the first that it could not. The
// error matches ErrGone if the thread of that id has ended.
func ReadMemory(pid int, a mem.Addr, dst []byte) (int, error) {
	return vmIO(unix.SYS_PROCESS_VM_READV, pid, uintptr(a), dst)
}

// WriteMemory is ReadMemory for writing.
func WriteMemory(pid int, a mem.Addr, src []byte) (int, error) {
	return vmIO(unix.SYS_PROCESS_VM_WRITEV, pid, uintptr(a), src)
}

var errShort = errors.New("ends in unmapped or protected memory")

// subreaper reports whether this process is a child subreaper.
func subreaper() (bool, error) {
	var v int32
	if err := unix.Prctl(unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&v)), 0, 0, 0); err != nil {
		return false, fmt.Errorf("ask for child subreaper: %w", err)
	}
	return v != 0, nil
}

// currentCPU returns the CPU that the calling thread runs on.
func currentCPU() (cpu int, ok bool) {
	var c uint32
	_, _, errno := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&c)), 0, 0)
	return int(c), errno == 0
}
