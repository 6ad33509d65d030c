// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ReadAt reads the program's memory at address off, raising page faults as
// the program would. It returns the bytes read before unreadable memory, and
// an error then.
func (s *Session) ReadAt(p []byte, off int64) (int, error) {
	n, err := vmIO(unix.SYS_PROCESS_VM_READV, s.tid, uintptr(off), p)
	if err != nil {
		return n, fmt.Errorf("read [%#x+%#x] of thread %d: %w", off, len(p), s.tid, err)
	}
	return n, nil
}

// WriteAt writes the program's memory at address off. It respects
// protections: read-only memory gives an error.
func (s *Session) WriteAt(p []byte, off int64) (int, error) {
	n, err := vmIO(unix.SYS_PROCESS_VM_WRITEV, s.tid, uintptr(off), p)
	if err != nil {
		return n, fmt.Errorf("write [%#x+%#x] of thread %d: %w", off, len(p), s.tid, err)
	}
	return n, nil
}

// isInsn reports whether a system call instruction is at addr.
func (s *Session) isInsn(addr uintptr) bool {
	var b [insnLen]byte
	_, err := vmIO(unix.SYS_PROCESS_VM_READV, s.tid, addr, b[:])
	return err == nil && b == insn
}

// findInsn finds a system call instruction to borrow. No code is patched:
// other threads may be running it.
func (s *Session) findInsn() error {
	// The instruction before pc, if the thread was in a call: the cheap case.
	if at := pc(&s.saved) - insnLen; s.isInsn(at) {
		s.insn = at
		return nil
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", s.tid))
	if err != nil {
		return fmt.Errorf("find a system call instruction in thread %d: %w", s.tid, err)
	}
	// The vdso holds one in every process that has a vdso. Elsewhere the C
	// library does, or the program itself.
	for _, vdso := range []bool{true, false} {
		for line := range strings.Lines(string(maps)) {
			start, end, ok := executable(line)
			if !ok || strings.HasSuffix(line, "[vdso]\n") != vdso {
				continue
			}
			if s.insn = s.scan(start, end); s.insn != 0 {
				return nil
			}
		}
	}
	return fmt.Errorf("no system call instruction in the code of thread %d", s.tid)
}

// executable parses a line of /proc/PID/maps and reports whether the mapping
// is readable and executable memory of the program.
func executable(line string) (start, end uintptr, ok bool) {
	f := strings.Fields(line)
	if len(f) < 5 || len(f[1]) < 3 || f[1][0] != 'r' || f[1][2] != 'x' || strings.HasSuffix(line, "[vsyscall]\n") {
		return 0, 0, false
	}
	lo, hi, _ := strings.Cut(f[0], "-")
	a, err1 := strconv.ParseUint(lo, 16, 64)
	b, err2 := strconv.ParseUint(hi, 16, 64)
	return uintptr(a), uintptr(b), err1 == nil && err2 == nil
}

// scan looks for the instruction in [start, end), chunk by chunk; chunks
// overlap so that one across a border is not missed.
func (s *Session) scan(start, end uintptr) uintptr {
	buf := make([]byte, 64<<10)
	for at := start; at+insnLen <= end; at += uintptr(len(buf)) - insnLen {
		n, _ := vmIO(unix.SYS_PROCESS_VM_READV, s.tid, at, buf[:min(uintptr(len(buf)), end-at)])
		for i := 0; i < n; {
			j := bytes.Index(buf[i:n], insn[:])
			if j < 0 {
				break
			}
			if hit := at + uintptr(i+j); insnLen == 2 || hit%insnLen == 0 {
				return hit
			}
			i += j + 1
		}
	}
	return 0
}

// status is what /proc/PID/status says that matters here.
type status struct {
	ppid    int
	nspid   []string // thread group id in each namespace, outermost first
	seccomp int      // 0 off, 1 strict, 2 filter
	pending sigset   // of the thread and of the process
	ignored sigset
	caught  sigset
}

// readStatus reads it, with an error matching ErrGone if the thread is.
func readStatus(tid int) (st status, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return st, fmt.Errorf("read status of thread %d: %w", tid, ErrGone)
	} else if err != nil {
		return st, err
	}
	for line := range strings.Lines(string(b)) {
		key, val, _ := strings.Cut(line, ":")
		f := strings.Fields(val)
		if len(f) == 0 {
			continue
		}
		switch key {
		case "PPid":
			st.ppid, _ = strconv.Atoi(f[0])
		case "NStgid":
			st.nspid = f
		case "SigPnd", "ShdPnd":
			m, _ := strconv.ParseUint(f[0], 16, 64)
			st.pending |= sigset(m)
		case "SigIgn":
			m, _ := strconv.ParseUint(f[0], 16, 64)
			st.ignored = sigset(m)
		case "SigCgt":
			m, _ := strconv.ParseUint(f[0], 16, 64)
			st.caught = sigset(m)
		case "Seccomp":
			st.seccomp, _ = strconv.Atoi(f[0])
		}
	}
	return st, nil
}

// HasFilter reports whether the thread has seccomp filters of its own. Such a
// program may be killed by a call that is injected into it, where its filter
// says so, and there is no way to ask beforehand.
func HasFilter(tid int) (bool, error) {
	st, err := readStatus(tid)
	return st.seccomp != 0, err
}
