// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/tracee"
)

const devicePath = "/dev/userfaultfd"

// open looks for the device, which is ours, and for what /proc says of a
// descriptor.
func (t *task) open(c tracee.Call, o openCall) {
	path := t.readString(addr(c.Args[o.path]))
	switch {
	case path == devicePath:
		t.openDevice(int(int32(c.Args[o.flags])))
	case strings.HasPrefix(path, "/proc/") && strings.Contains(path, "/fdinfo/"):
		t.openFdinfo(path, int(int32(c.Args[o.flags])))
	default:
		t.resume(0)
	}
}

// openDevice opens the device.
func (t *task) openDevice(flags int) {
	h, errno := t.v.OpenDevice()
	if errno != 0 {
		t.skip(negated(errno))
		return
	}
	fd := t.number(h, flags&(unix.O_CLOEXEC|unix.O_NONBLOCK), true)
	t.share()
	t.skip(fd)
}

// openFdinfo opens a file in memory in the place of one of /proc, if that is of
// a descriptor of ours.
func (t *task) openFdinfo(path string, flags int) {
	part := strings.Split(path, "/") // "", proc, PID, fdinfo, N
	var f *file
	fd := -1
	if len(part) == 5 && (part[2] == "self" || part[2] == "thread-self" || part[2] == strconv.Itoa(t.th.Process().Pid())) {
		var err error
		if fd, err = strconv.Atoi(part[4]); err == nil {
			f = t.p.identify(t.th.Process(), fd)
		}
	}
	if f == nil || f.device {
		t.resume(0)
		return
	}
	text := t.fdinfo(f, fd)
	ret := int64(0)
	ok := t.session("show what /proc says of a descriptor", func(s *inject.Session) error {
		n, err := t.textFile(s, text, flags&unix.O_CLOEXEC)
		ret = n
		return err
	})
	if ok {
		t.skip(ret)
	}
}

// textFile makes a file with the text in the thread's process and returns its
// number, or a negated errno.
func (t *task) textFile(s *inject.Session, text string, flags int) (int64, error) {
	if err := t.sp.plant(s); err != nil {
		return 0, err
	}
	at, data := uintptr(t.sp.agent.DataAddr()), t.sp.agent.Data()
	copy(data, "fdinfo\x00")
	memfdFlags := 0
	if flags != 0 {
		memfdFlags = unix.MFD_CLOEXEC
	}
	var errno syscall.Errno
	fd, err := s.Syscall(unix.SYS_MEMFD_CREATE, at, uintptr(memfdFlags))
	if errors.As(err, &errno) {
		return negated(errno), nil
	} else if err != nil {
		return 0, err
	}
	copy(data, text)
	_, err = s.Syscall(unix.SYS_PWRITE64, fd, at, uintptr(len(text)), 0)
	return int64(fd), err
}

// fdinfo returns what the kernel would say. The head of it is the pipe's, which
// is open as the descriptor is.
func (t *task) fdinfo(f *file, fd int) string {
	head := readFdinfo(t.th.Tid(), fd)
	return head + t.sp.v.Fdinfo(t.sp.handle(f))
}

// readFdinfo returns the lines that /proc has for every descriptor.
func readFdinfo(tid, fd int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return ""
	}
	return string(b)
}
