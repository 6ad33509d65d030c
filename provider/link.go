// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/tracee"
)

// linkName is what /proc says that a descriptor is a link to. Libraries look.
const linkName = "anon_inode:[userfaultfd]"

// readlink answers for a descriptor of ours, which the kernel calls a pipe.
func (t *task) readlink(c tracee.Call, path, buf int) {
	f := t.linked(t.readString(addr(c.Args[path])))
	if f == nil || f.device {
		t.resume(0)
		return
	}
	n := int(int32(c.Args[buf+1]))
	if n <= 0 {
		t.skip(negated(unix.EINVAL))
		return
	}
	name := []byte(linkName)[:min(n, len(linkName))]
	if t.sp.Store(addr(c.Args[buf]), name) < len(name) {
		t.skip(negated(unix.EFAULT))
		return
	}
	t.skip(int64(len(name)))
}

// linked returns the descriptor that a path of /proc names, of a process of the
// tree.
func (t *task) linked(path string) *file {
	pr, rest := t.p.procPath(t.th.Process(), path)
	if pr == nil || len(rest) != 2 || rest[0] != "fd" {
		return nil
	}
	fd, err := strconv.Atoi(rest[1])
	if err != nil {
		return nil
	}
	return t.p.ask(pr.Pid(), fd)
}
