// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxRights is the greatest number of descriptors that the kernel lets one
// message carry (SCM_MAX_FD, unix(7)).
const maxRights = 253

// ErrTruncated says that descriptors of a message were lost, for which the
// usual cause is that no number was free (RLIMIT_NOFILE).
var ErrTruncated = errors.New("descriptors of the message were lost: raise the limit of open files (ulimit -n)")

// RecvFDs is recvmsg(2) on a socket: the bytes of a message and the
// descriptors in it, close-on-exec. If it fails it has kept none.
func RecvFDs(sock int, b []byte) (n int, fds []int, err error) {
	oob := make([]byte, unix.CmsgSpace(4*maxRights))
	var oobn, flags int
	n, err = retry(func() (n int, err error) {
		n, oobn, flags, _, err = unix.Recvmsg(sock, b, oob, unix.MSG_CMSG_CLOEXEC)
		return n, err
	})
	if err != nil {
		return 0, nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	for i := range msgs {
		rights, rerr := unix.ParseUnixRights(&msgs[i])
		if rerr == nil { // others, such as credentials, are not asked for
			fds = append(fds, rights...)
		}
	}
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = ErrTruncated
	}
	if err != nil {
		CloseAll(fds)
		return n, nil, err
	}
	return n, fds, nil
}

// SendFDs is sendmsg(2) on a socket: bytes, at least one, and descriptors.
// It returns how many bytes went; the descriptors went with the first.
func SendFDs(sock int, b []byte, fds ...int) (n int, err error) {
	return retry(func() (int, error) {
		return unix.SendmsgN(sock, b, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
	})
}

// CloseAll closes every descriptor of fds.
func CloseAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // ours, unshared, and nothing was written to it
	}
}

// Again reports whether err says that a socket is not ready.
func Again(err error) bool { return err == syscall.EAGAIN }
