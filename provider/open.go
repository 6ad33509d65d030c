// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"strings"

	"golang.org/x/sys/unix"

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
	case strings.HasPrefix(path, "/proc/"):
		t.openProc(path, int(int32(c.Args[o.flags])))
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
