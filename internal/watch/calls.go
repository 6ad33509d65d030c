// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package watch

import (
	"cmp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/uffdtrace"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// call is one that a thread is in.
type call struct {
	uffdtrace.Call
	segs []segment // where a read puts what it reads
	fds  []int     // that a close_range closes
}

// SyscallEnter is tracee.Handler's: a filter has reported a call. It returns
// true if the call is one that has to do with a userfaultfd, or may turn out to
// have.
func (w *watcher) SyscallEnter(th *tracee.Thread) bool {
	at := w.now()
	if c := w.calls[th]; c != nil {
		delete(w.calls, th)
		w.end(c)
	}
	now, err := th.Call()
	p := w.procs[th.Process().Pid()]
	if err != nil || !now.Native || p == nil {
		return false
	}
	c := &call{Call: uffdtrace.Call{
		Task:  uffdtrace.Task{PID: th.Process().Pid(), TID: th.Tid()},
		Start: at, Name: names[now.Nr],
	}}
	for i, a := range now.Args {
		c.Args[i] = uint64(a)
	}
	if c.Name == "" || !w.enter(th, p, c) {
		return false
	}
	w.calls[th] = c
	return true
}

// enter decides about a call, and looks at what it is given.
func (w *watcher) enter(th *tracee.Thread, p *process, c *call) bool {
	fd := int(int32(c.Args[0]))
	switch c.Name {
	case "userfaultfd", "pidfd_getfd":
		return true
	case "ioctl":
		return w.enterIoctl(th, p, c, fd)
	case "sendmsg", "sendmmsg":
		return w.enterSend(th, p, c)
	case "recvmsg", "recvmmsg":
		// Without room for the control part no descriptor comes.
		return len(w.memory.controls(th, c.Name, c.Args[1], int64(c.Args[2]))) > 0
	case "close_range":
		const cloexec = 4
		for _, n := range p.table.numbers() {
			if c.Args[2]&cloexec == 0 && uint32(n) >= uint32(c.Args[0]) && uint32(n) <= uint32(c.Args[1]) {
				c.fds = append(c.fds, n)
			}
		}
		return len(c.fds) > 0
	case "fcntl":
		if cmd := uint32(c.Args[1]); cmd != unix.F_DUPFD && cmd != unix.F_DUPFD_CLOEXEC {
			return false
		}
	}
	c.File = w.fileAt(th, p, fd)
	switch c.Name {
	case "dup2", "dup3":
		_, closes := p.table.files[int(int32(c.Args[1]))]
		return c.File != 0 || closes
	case "read", "readv", "pread64", "preadv", "preadv2":
		if c.File != 0 {
			c.segs = w.memory.buffers(th, c.Name, &c.Args)
		}
	}
	return c.File != 0
}

// fileAt returns what descriptor fd of a thread is, 0 if it is no userfaultfd.
// One that was not known is from then on.
func (w *watcher) fileAt(th *tracee.Thread, p *process, fd int) uffdtrace.File {
	f, known := p.table.files[fd]
	switch is := isUserfaultfd(th.Tid(), fd); {
	case is && !known:
		return w.add(p, th.Tid(), fd, 0, uffdtrace.Found)
	case !is && known:
		w.drop(p, fd, uffdtrace.Found) // closed in a way that we do not see, such as io_uring(7)
		return 0
	}
	return f
}

func (w *watcher) enterIoctl(th *tracee.Thread, p *process, c *call, fd int) bool {
	request := uint32(c.Args[1])
	if c.File = w.fileAt(th, p, fd); c.File == 0 {
		return request == uapi.USERFAULTFD_IOC_NEW && strings.HasSuffix(link(th.Tid(), fd), linkDevice)
	}
	if n := uffdtrace.ArgumentSize(request); n > 0 {
		c.Before = w.memory.exactly(th, c.Args[2], n)
	}
	return true
}

func (w *watcher) enterSend(th *tracee.Thread, p *process, c *call) bool {
	for _, fd := range w.memory.rights(th, w.memory.controls(th, c.Name, c.Args[1], int64(c.Args[2]))) {
		if f := w.fileAt(th, p, fd); f != 0 {
			c.Passed = append(c.Passed, fd)
			w.files.send(f, true)
		}
	}
	if len(c.Passed) == 0 {
		return false
	}
	w.passing = true
	w.coverAll(th)
	return true
}

// SyscallExit is tracee.Handler's.
func (w *watcher) SyscallExit(th *tracee.Thread) {
	c := w.calls[th]
	delete(w.calls, th)
	now, err := th.Call()
	p := w.procs[th.Process().Pid()]
	if c == nil || p == nil {
		return
	}
	if err != nil { // killed at its end
		w.end(c)
		return
	}
	c.End = w.now()
	c.Ret, c.Errno = int64(now.Ret), uffdtrace.Errno(now.Errno)
	if c.Errno != 0 {
		c.Ret = -1
	}
	w.exit(th, p, c)
	w.cover(th, p)
}

// exit tells of a call that has ended, and of what it means for descriptors.
func (w *watcher) exit(th *tracee.Thread, p *process, c *call) {
	ok, fd := c.Errno == 0, int(int32(c.Args[0]))
	switch c.Name {
	case "userfaultfd":
		w.made(th, p, c, 0, c.Name)
		return
	case "pidfd_getfd":
		if ok && isUserfaultfd(th.Tid(), int(c.Ret)) {
			w.made(th, p, c, 0, c.Name)
		}
		return
	case "ioctl":
		w.exitIoctl(th, p, c)
		return
	case "dup", "dup2", "dup3", "fcntl":
		w.exitDup(th, p, c)
		return
	case "recvmsg", "recvmmsg":
		w.exitReceive(th, p, c)
		return
	}
	if ok && c.segs != nil {
		c.Messages = w.memory.messages(th, c.segs, c.Ret)
	}
	w.sink.Call(&c.Call)
	switch {
	case len(c.Passed) > 0 && !ok:
		for _, fd := range c.Passed {
			w.files.send(p.table.files[fd], false)
		}
	case c.Name == "close" && !isUserfaultfd(th.Tid(), fd):
		w.drop(p, fd, c.Name) // it is closed whatever close(2) returns
	case c.Name == "close_range" && ok:
		for _, n := range c.fds {
			w.drop(p, n, c.Name)
		}
	}
	w.forked(th, p, c)
}

// made tells of a call that makes a descriptor of f, or if f is 0 one that is
// no duplicate of what the tree knows already, unless it turns out to be.
func (w *watcher) made(th *tracee.Thread, p *process, c *call, f uffdtrace.File, by string) {
	w.sink.Call(&c.Call)
	if c.Errno != 0 {
		return
	}
	if f == 0 && by != "pidfd_getfd" {
		f = w.files.fresh()
	}
	w.add(p, th.Tid(), int(c.Ret), f, by)
}

func (w *watcher) exitIoctl(th *tracee.Thread, p *process, c *call) {
	request := uint32(c.Args[1])
	if request == uapi.USERFAULTFD_IOC_NEW && c.File == 0 {
		w.made(th, p, c, 0, c.Name)
		return
	}
	if n := uffdtrace.ArgumentSize(request); n > 0 {
		c.After = w.memory.exactly(th, c.Args[2], n)
	}
	w.sink.Call(&c.Call)
}

// exitDup tells of a call that makes a duplicate, or puts another file in the
// place of a userfaultfd.
func (w *watcher) exitDup(th *tracee.Thread, p *process, c *call) {
	w.sink.Call(&c.Call)
	if c.Errno != 0 || c.Ret == int64(int32(c.Args[0])) {
		return // onto itself, which changes nothing
	}
	w.drop(p, int(c.Ret), c.Name)
	if c.File != 0 {
		w.add(p, th.Tid(), int(c.Ret), c.File, c.Name)
	}
}

func (w *watcher) exitReceive(th *tracee.Thread, p *process, c *call) {
	if c.Errno != 0 {
		return // nothing came
	}
	for _, fd := range w.memory.rights(th, w.memory.controls(th, c.Name, c.Args[1], c.Ret)) {
		if isUserfaultfd(th.Tid(), fd) {
			c.Passed = append(c.Passed, fd)
		}
	}
	if len(c.Passed) == 0 {
		return
	}
	w.sink.Call(&c.Call)
	for _, fd := range c.Passed {
		if _, found := p.table.files[fd]; found {
			continue // when another thread was interrupted in the meantime
		}
		w.files.send(w.add(p, th.Tid(), fd, 0, c.Name), false)
	}
}

// forked takes in the descriptors of children that messages have brought.
func (w *watcher) forked(th *tracee.Thread, p *process, c *call) {
	for i := range c.Messages {
		m := &c.Messages[i]
		if fd := int(m.ForkFD()); m.Event == uapi.UFFD_EVENT_FORK && isUserfaultfd(th.Tid(), fd) {
			w.add(p, th.Tid(), fd, w.files.fresh(), m.Event.String())
		}
	}
}

// endCalls tells of the calls of a process in which its threads have ended.
func (w *watcher) endCalls(p *tracee.Process) {
	var ended []*call
	for th, c := range w.calls {
		if th.Process() == p {
			delete(w.calls, th)
			ended = append(ended, c)
		}
	}
	slices.SortFunc(ended, func(a, b *call) int { return cmp.Compare(a.Start, b.Start) })
	for _, c := range ended {
		w.end(c)
	}
}

// end tells of a call that will have no result.
func (w *watcher) end(c *call) {
	switch c.Name {
	case "recvmsg", "recvmmsg", "pidfd_getfd":
		return // not known to be about a userfaultfd
	}
	c.End, c.Ended = w.now(), true
	w.sink.Call(&c.Call)
}
