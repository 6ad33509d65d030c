// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/tracee"
)

// procPath returns the process of the tree that a path of /proc is about, and the
// rest of it, if it is self who says so; nil for another path.
func (p *Provider) procPath(self *tracee.Process, path string) (*tracee.Process, []string) {
	part := strings.Split(path, "/") // "", proc, PID, ...
	if len(part) < 4 || part[0] != "" || part[1] != "proc" {
		return nil, nil
	}
	who, rest := part[2], part[3:]
	if len(rest) > 2 && rest[0] == "task" {
		rest = rest[2:]
	}
	if who == "self" || who == "thread-self" {
		return self, rest
	}
	pid, err := strconv.Atoi(who)
	if err != nil {
		return nil, nil
	}
	for _, pr := range p.tracer.Processes() {
		if pr.Pid() == pid {
			return pr, rest
		}
	}
	return nil, nil
}

// openProc opens a file in the place of one of /proc that tells what is not so for
// a program that has the call from us.
func (t *task) openProc(path string, flags int) {
	pr, rest := t.p.procPath(t.th.Process(), path)
	if isWatched(rest) {
		t.openWatched(rest[0])
		return
	}
	if pr == nil || flags&unix.O_ACCMODE != unix.O_RDONLY {
		t.resume(0)
		return
	}
	sp := t.p.spaces[pr.Space()]
	var text string
	switch {
	case rest[0] == "fdinfo" && len(rest) == 2:
		text = t.fdinfo(pr, rest[1])
	case sp == nil || len(sp.guarded) == 0:
	case rest[0] == "maps" || rest[0] == "smaps":
		text = sp.mapsText(pr.Pid(), rest[0])
	}
	if text == "" {
		t.resume(0)
		return
	}
	ret := int64(0)
	ok := t.session("show what /proc says", func(s *inject.Session) error {
		n, err := t.textFile(s, text, flags&unix.O_CLOEXEC)
		ret = n
		return err
	})
	if ok {
		t.skip(ret)
	}
}

// fdinfo returns what the kernel would say of a descriptor of ours; it is empty for
// others. The head of it is the pipe's, which is open as the descriptor is.
func (t *task) fdinfo(pr *tracee.Process, number string) string {
	fd, err := strconv.Atoi(number)
	if err != nil {
		return ""
	}
	f := t.p.ask(pr.Pid(), fd)
	if f == nil || f.device {
		return ""
	}
	head, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pr.Pid(), fd))
	if err != nil {
		return ""
	}
	return string(head) + t.sp.v.Fdinfo(t.sp.handle(f))
}

// textFile makes a file with the text in the thread's process and returns its
// number, or a negated errno.
func (t *task) textFile(s *inject.Session, text string, flags int) (int64, error) {
	if err := t.sp.plant(s); err != nil {
		return 0, err
	}
	at, data := uintptr(t.sp.agent.DataAddr()), t.sp.agent.Data()[:scratch]
	copy(data, "proc\x00")
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
	for off := 0; off < len(text); {
		n := copy(data, text[off:])
		if _, err := s.Syscall(unix.SYS_PWRITE64, fd, at, uintptr(n), uintptr(off)); err != nil {
			return 0, err
		}
		off += n
	}
	return int64(fd), nil
}
