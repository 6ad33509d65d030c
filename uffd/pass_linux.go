// SPDX-License-Identifier: Apache-2.0

package uffd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"github.com/faultline-go/faultline/internal/sys"
)

// FromProcess returns a duplicate of descriptor fd of process pid, which
// must be a userfaultfd (since Linux 5.6). It drives the memory of the
// process that made it; MOVE alone is refused to others. The process keeps
// its own descriptor. The caller needs the right to ptrace(2) the process.
func FromProcess(pid, fd int) (*FD, error) {
	pidfd, err := sys.PidfdOpen(pid)
	if err != nil {
		return nil, fmt.Errorf("take userfaultfd %d of process %d: pidfd_open: %w", fd, pid, err)
	}
	defer sys.CloseRaw(pidfd)
	raw, err := sys.PidfdGetfd(pidfd, fd)
	if err != nil {
		hint := ""
		switch sys.Errno(err) {
		case syscall.EPERM:
			hint = " (the right to ptrace the process is needed: the same user and a permissive kernel.yama.ptrace_scope, or CAP_SYS_PTRACE)"
		case syscall.EBADF:
			hint = " (the process has no such descriptor)"
		case syscall.ENOSYS:
			hint = " (needs Linux 5.6 or newer)"
		}
		return nil, fmt.Errorf("take userfaultfd %d of process %d: pidfd_getfd: %w%s", fd, pid, err, hint)
	}
	f, err := take(raw)
	if err != nil {
		return nil, fmt.Errorf("take userfaultfd %d of process %d: %w", fd, pid, err)
	}
	return f, nil
}

// Send sends payload, at least one byte, and with its first byte a duplicate
// of f over a UNIX socket such as a *net.UnixConn. f stays open.
func Send(conn syscall.Conn, payload []byte, f *FD) error {
	if len(payload) == 0 {
		return errors.New("send userfaultfd: a descriptor travels with at least one byte")
	}
	raw, ok := f.desc.Acquire()
	if !ok {
		return fmt.Errorf("send userfaultfd: %w", os.ErrClosed)
	}
	defer f.desc.Release()
	fds := []int{raw}
	sc, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("send userfaultfd: %w", err)
	}
	werr := sc.Write(func(sock uintptr) bool {
		for len(payload) > 0 {
			var n int
			n, err = sys.SendFDs(int(sock), payload, fds...)
			if err != nil {
				return !sys.Again(err)
			}
			// A stream may take less than all; the descriptor is on its way.
			payload, fds = payload[n:], nil
		}
		return true
	})
	if werr != nil {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("send userfaultfd: sendmsg: %w", err)
	}
	return nil
}

// Recv receives once from a UNIX socket such as a *net.UnixConn: up to
// len(payload) bytes and the userfaultfd that came with them. f is nil if
// none came, which is no error: a sender may split its bytes. Descriptors
// after the first are closed. The error is io.EOF at the end of the stream;
// with any other error n bytes were received and no descriptor is kept.
//
// f is close-on-exec. It may be a file that the sender keeps using.
func Recv(conn syscall.Conn, payload []byte) (n int, f *FD, err error) {
	sc, err := conn.SyscallConn()
	if err != nil {
		return 0, nil, fmt.Errorf("receive userfaultfd: %w", err)
	}
	var fds []int
	rerr := sc.Read(func(sock uintptr) bool {
		n, fds, err = sys.RecvFDs(int(sock), payload)
		return !sys.Again(err)
	})
	if rerr != nil {
		err = rerr
	}
	switch {
	case err != nil:
		return n, nil, fmt.Errorf("receive userfaultfd: recvmsg: %w", err)
	case len(fds) > 0:
		sys.CloseAll(fds[1:])
		if f, err = take(fds[0]); err != nil {
			return n, nil, fmt.Errorf("receive userfaultfd: %w", err)
		}
		return n, f, nil
	case n == 0 && len(payload) > 0:
		return 0, nil, io.EOF
	}
	return n, nil, nil
}

// take is Take for a descriptor from elsewhere, which may be anything. It
// closes raw if that is not a userfaultfd.
func take(raw int) (*FD, error) {
	// Without /proc the first ioctl tells, with ENOTTY.
	kind, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(raw))
	if err == nil && kind != "anon_inode:[userfaultfd]" {
		_ = sys.CloseRaw(raw) // unshared, nothing written
		return nil, fmt.Errorf("the descriptor is %q, not a userfaultfd", kind)
	}
	return Take(raw), nil
}
