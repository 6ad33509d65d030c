// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package collect

import (
	"cmp"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/uffdtrace"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// call is one that a thread is in.
type call struct {
	uffdtrace.Call
	segs  []segment // where a read puts what it reads
	fds   []int     // that a close_range closes
	again bool      // it is about to be begun anew, which the program does not see
}

// Reports tells which system calls are worth an Enter: those about a
// userfaultfd, by their names.
func Reports(nr uintptr) (name string, ok bool) {
	name, ok = names[nr]
	return name, ok
}

// names are those of the calls that a trace shows.
var names = map[uintptr]string{
	unix.SYS_USERFAULTFD: "userfaultfd", unix.SYS_PIDFD_GETFD: "pidfd_getfd", unix.SYS_IOCTL: "ioctl",
	unix.SYS_READ: "read", unix.SYS_READV: "readv", unix.SYS_PREAD64: "pread64",
	unix.SYS_PREADV: "preadv", unix.SYS_PREADV2: "preadv2",
	unix.SYS_CLOSE: "close", unix.SYS_CLOSE_RANGE: "close_range",
	unix.SYS_DUP: "dup", unix.SYS_DUP3: "dup3", unix.SYS_FCNTL: "fcntl",
	unix.SYS_SENDMSG: "sendmsg", unix.SYS_SENDMMSG: "sendmmsg",
	unix.SYS_RECVMSG: "recvmsg", unix.SYS_RECVMMSG: "recvmmsg",
}

func words(args [6]uintptr) (w [6]uint64) {
	for i, a := range args {
		w[i] = uint64(a)
	}
	return w
}

// Enter is called when a thread is about to make a system call. It returns true
// if that has to do with a userfaultfd, or may turn out to have: then Exit, or
// End, is to follow.
func (cl *Collector) Enter(th *tracee.Thread, now tracee.Call) bool {
	at := cl.Elapsed()
	if c := cl.calls[th]; c != nil {
		if c.again && c.Name == names[now.Nr] && c.Args == words(now.Args) {
			c.again = false
			return true
		}
		cl.End(th)
	}
	p := cl.procs[th.Process().Pid()]
	if !now.Native || p == nil {
		return false
	}
	c := &call{Call: uffdtrace.Call{
		Task:  uffdtrace.Task{PID: th.Process().Pid(), TID: th.Tid()},
		Start: at, Name: names[now.Nr], Args: words(now.Args),
	}}
	if c.Name == "" || !cl.enter(th, p, c) {
		return false
	}
	cl.calls[th] = c
	return true
}

// enter decides about a call, and looks at what it is given.
func (cl *Collector) enter(th *tracee.Thread, p *process, c *call) bool {
	fd := int(int32(c.Args[0]))
	switch c.Name {
	case "userfaultfd", "pidfd_getfd":
		return true
	case "ioctl":
		return cl.enterIoctl(th, p, c, fd)
	case "sendmsg", "sendmmsg":
		return cl.enterSend(th, p, c)
	case "recvmsg", "recvmmsg":
		// Without room for the control part no descriptor comes.
		return len(cl.controls(th, c.Name, c.Args[1], int64(c.Args[2]))) > 0
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
	c.File = cl.fileAt(th, p, fd)
	switch c.Name {
	case "dup2", "dup3":
		_, closes := p.table.files[int(int32(c.Args[1]))]
		return c.File != 0 || closes
	case "read", "readv", "pread64", "preadv", "preadv2":
		if c.File != 0 {
			c.segs = cl.buffers(th, c.Name, &c.Args)
		}
	}
	return c.File != 0
}

// fileAt returns what descriptor fd of a thread is, 0 if it is no userfaultfd.
// One that was not known is from then on.
func (cl *Collector) fileAt(th *tracee.Thread, p *process, fd int) uffdtrace.File {
	f, known := p.table.files[fd]
	switch is := cl.isUserfaultfd(th.Tid(), fd); {
	case is && !known:
		return cl.add(p, th.Tid(), fd, 0, uffdtrace.Found)
	case !is && known:
		cl.drop(p, fd, uffdtrace.Found) // closed in a way that we do not see, such as io_uring(7)
		return 0
	}
	return f
}

func (cl *Collector) enterIoctl(th *tracee.Thread, p *process, c *call, fd int) bool {
	request := uint32(c.Args[1])
	if c.File = cl.fileAt(th, p, fd); c.File == 0 {
		return request == uapi.USERFAULTFD_IOC_NEW && cl.ground.Device(th.Tid(), fd)
	}
	if n := uffdtrace.ArgumentSize(request); n > 0 {
		c.Before = cl.exactly(th, c.Args[2], n)
	}
	return true
}

func (cl *Collector) enterSend(th *tracee.Thread, p *process, c *call) bool {
	for _, fd := range cl.rights(th, cl.controls(th, c.Name, c.Args[1], int64(c.Args[2]))) {
		if f := cl.fileAt(th, p, fd); f != 0 {
			c.Passed = append(c.Passed, fd)
			cl.files.send(f, true)
		}
	}
	if len(c.Passed) == 0 {
		return false
	}
	cl.ground.Passing(th)
	return true
}

// Inside reports whether a thread is in a call that was taken note of, which is
// not about to be begun anew.
func (cl *Collector) Inside(th *tracee.Thread) bool {
	c := cl.calls[th]
	return c != nil && !c.again
}

// Exit is called when a call has ended, before the thread goes on: what it has
// written is read. A call that was not taken note of is none.
func (cl *Collector) Exit(th *tracee.Thread, ret int64, errno syscall.Errno) {
	if !cl.Inside(th) {
		return
	}
	c := cl.calls[th]
	delete(cl.calls, th)
	p := cl.procs[th.Process().Pid()]
	if p == nil {
		return
	}
	c.End = cl.Elapsed()
	c.Ret, c.Errno = ret, uffdtrace.Errno(errno)
	if c.Errno != 0 {
		c.Ret = -1
	}
	cl.exit(th, p, c)
}

// Again says that the call of a thread is about to be begun anew, without the
// program's seeing it: it is the same call.
func (cl *Collector) Again(th *tracee.Thread) {
	if c := cl.calls[th]; c != nil {
		c.again = true
	}
}

// End says that the call of a thread will have no result that can be seen.
func (cl *Collector) End(th *tracee.Thread) {
	if c := cl.calls[th]; c != nil {
		delete(cl.calls, th)
		cl.end(c)
	}
}

// exit tells of a call that has ended, and of what it means for descriptors.
func (cl *Collector) exit(th *tracee.Thread, p *process, c *call) {
	ok, fd := c.Errno == 0, int(int32(c.Args[0]))
	switch c.Name {
	case "userfaultfd":
		cl.made(th, p, c, 0, c.Name)
		return
	case "pidfd_getfd":
		if ok && cl.isUserfaultfd(th.Tid(), int(c.Ret)) {
			cl.made(th, p, c, 0, c.Name)
		}
		return
	case "ioctl":
		cl.exitIoctl(th, p, c)
		return
	case "dup", "dup2", "dup3", "fcntl":
		cl.exitDup(th, p, c)
		return
	case "recvmsg", "recvmmsg":
		cl.exitReceive(th, p, c)
		return
	}
	if ok && c.segs != nil {
		c.Messages = cl.messages(th, c.segs, c.Ret)
	}
	cl.sink.Call(&c.Call)
	switch {
	case len(c.Passed) > 0 && !ok:
		for _, fd := range c.Passed {
			cl.files.send(p.table.files[fd], false)
		}
	case c.Name == "close" && !cl.isUserfaultfd(th.Tid(), fd):
		cl.drop(p, fd, c.Name) // it is closed whatever close(2) returns
	case c.Name == "close_range" && ok:
		for _, n := range c.fds {
			cl.drop(p, n, c.Name)
		}
	}
	cl.forked(th, p, c)
}

// made tells of a call that makes a descriptor of f, or if f is 0 one that is
// no duplicate of what the tree knows already, unless it turns out to be.
func (cl *Collector) made(th *tracee.Thread, p *process, c *call, f uffdtrace.File, by string) {
	cl.sink.Call(&c.Call)
	if c.Errno != 0 {
		return
	}
	if f == 0 && by != "pidfd_getfd" {
		f = cl.files.fresh()
	}
	cl.add(p, th.Tid(), int(c.Ret), f, by)
}

func (cl *Collector) exitIoctl(th *tracee.Thread, p *process, c *call) {
	request := uint32(c.Args[1])
	if request == uapi.USERFAULTFD_IOC_NEW && c.File == 0 {
		cl.made(th, p, c, 0, c.Name)
		return
	}
	if n := uffdtrace.ArgumentSize(request); n > 0 {
		c.After = cl.exactly(th, c.Args[2], n)
	}
	cl.sink.Call(&c.Call)
}

// exitDup tells of a call that makes a duplicate, or puts another file in the
// place of a userfaultfd.
func (cl *Collector) exitDup(th *tracee.Thread, p *process, c *call) {
	cl.sink.Call(&c.Call)
	if c.Errno != 0 || c.Ret == int64(int32(c.Args[0])) {
		return // onto itself, which changes nothing
	}
	cl.drop(p, int(c.Ret), c.Name)
	if c.File != 0 {
		cl.add(p, th.Tid(), int(c.Ret), c.File, c.Name)
	}
}

func (cl *Collector) exitReceive(th *tracee.Thread, p *process, c *call) {
	if c.Errno != 0 {
		return // nothing came
	}
	for _, fd := range cl.rights(th, cl.controls(th, c.Name, c.Args[1], c.Ret)) {
		if cl.isUserfaultfd(th.Tid(), fd) {
			c.Passed = append(c.Passed, fd)
		}
	}
	if len(c.Passed) == 0 {
		return
	}
	cl.sink.Call(&c.Call)
	for _, fd := range c.Passed {
		if _, found := p.table.files[fd]; found {
			continue // when another thread was interrupted in the meantime
		}
		cl.files.send(cl.add(p, th.Tid(), fd, 0, c.Name), false)
	}
}

// forked takes in the descriptors of children that messages have brought.
func (cl *Collector) forked(th *tracee.Thread, p *process, c *call) {
	for i := range c.Messages {
		m := &c.Messages[i]
		if fd := int(m.ForkFD()); m.Event == uapi.UFFD_EVENT_FORK && cl.isUserfaultfd(th.Tid(), fd) {
			cl.add(p, th.Tid(), fd, cl.files.fresh(), m.Event.String())
		}
	}
}

// endCalls tells of the calls of a process in which its threads have ended.
func (cl *Collector) endCalls(p *tracee.Process) {
	var ended []*call
	for th, c := range cl.calls {
		if th.Process() == p {
			delete(cl.calls, th)
			ended = append(ended, c)
		}
	}
	slices.SortFunc(ended, func(a, b *call) int { return cmp.Compare(a.Start, b.Start) })
	for _, c := range ended {
		cl.end(c)
	}
}

// erestartsys is what the kernel ends a call with that it may begin anew.
const erestartsys = 512

// end tells of a call that will have no result.
func (cl *Collector) end(c *call) {
	switch c.Name {
	case "recvmsg", "recvmmsg", "pidfd_getfd":
		return // not known to be about a userfaultfd
	}
	c.End = cl.Elapsed()
	if c.again {
		c.Ret, c.Errno = -1, erestartsys // a signal came first
	} else {
		c.Ended = true
	}
	cl.sink.Call(&c.Call)
}
