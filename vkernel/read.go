// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"encoding/binary"
	"slices"
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// Segment is one buffer of a vector.
type Segment struct {
	Addr mem.Addr
	Len  uint64
}

// Read reads messages of a descriptor into memory of the thread.
func (th *Thread) Read(fd int, buf mem.Addr, n uint64) (int, syscall.Errno) {
	return th.Readv(fd, []Segment{{buf, n}})
}

// Readv reads messages into a vector of buffers, which may cut them anywhere.
func (th *Thread) Readv(fd int, to []Segment) (int, syscall.Errno) {
	th.enter()
	defer th.leave()
	f := th.p.file(fd)
	if f == nil {
		return -1, EBADF
	}
	defer f.put()
	if f.uffd == nil {
		return -1, EINVAL
	}
	return f.uffd.readTo(th, f.nonblock(), to)
}

// Write fails: a descriptor is not written to.
func (th *Thread) Write(fd int, _ mem.Addr, _ uint64) (int, syscall.Errno) {
	f := th.p.file(fd)
	if f == nil {
		return -1, EBADF
	}
	defer f.put()
	if f.mode() == ORdonly {
		return -1, EBADF
	}
	return -1, EINVAL
}

// readTo is read(2). Only the first message is waited for; an error after it
// ends the read short.
func (u *uffd) readTo(th *Thread, nonblock bool, to []Segment) (int, syscall.Errno) {
	if !u.ready() {
		return -1, EINVAL
	}
	size := u.k.profile.recordSize
	var left uint64
	for _, s := range to {
		left += s.Len
	}
	out := vector{th: th, to: slices.Clone(to)}
	record := make([]byte, size)
	for done := 0; ; done += size {
		if left < uint64(size) {
			if done == 0 {
				return -1, EINVAL
			}
			return done, 0
		}
		left -= uint64(size)
		msg, errno := u.next(th, th.p, nonblock || done > 0)
		if errno == 0 {
			u.k.reach(PhaseRead, th, 0)
			u.k.profile.encode(record, &msg)
			// What cannot be stored is lost; its thread sleeps on.
			errno = out.write(record)
		}
		if errno != 0 {
			if done == 0 {
				return -1, errno
			}
			return done, 0
		}
	}
}

// vector writes to a list of buffers one after the other.
type vector struct {
	th *Thread
	to []Segment
}

func (o *vector) write(b []byte) syscall.Errno {
	for len(b) > 0 {
		s := &o.to[0]
		n := min(uint64(len(b)), s.Len)
		if got, errno := o.th.copyOut(s.Addr, b[:n]); uint64(got) < n {
			return argErrno(errno)
		}
		s.Addr += mem.Addr(n)
		s.Len -= n
		b = b[n:]
		if s.Len == 0 && len(o.to) > 1 {
			o.to = o.to[1:]
		}
	}
	return 0
}

// next takes the next message: faults before events. A fork event installs a
// descriptor in p.
func (u *uffd) next(th *Thread, p *Process, nonblock bool) (uapi.Msg, syscall.Errno) {
	msg, ok, errno := u.poll(p)
	if ok || errno != 0 {
		return msg, errno
	}
	switch {
	case th.interrupted(), th.killed():
		return msg, EINTR
	case nonblock:
		return msg, EAGAIN
	}
	r := &reader{poke: th.poke}
	u.addReader(r)
	defer u.dropReader(r)
	for {
		msg, ok, errno := u.poll(p)
		switch {
		case ok || errno != 0:
			return msg, errno
		case th.interrupted(), th.killed():
			return msg, EINTR
		}
		th.sleep(InRead)
	}
}

// poll takes the next message if there is one.
func (u *uffd) poll(p *Process) (msg uapi.Msg, ok bool, errno syscall.Errno) {
	u.mu.Lock()
	if w := u.faults.take(); w != nil {
		msg = w.message()
		if w.th.interrupted() {
			w.th.poke() // see sleepInFault
		}
		u.mu.Unlock()
		return msg, true, 0
	}
	if len(u.events) == 0 {
		u.mu.Unlock()
		return msg, false, 0
	}
	e := u.events[0]
	if e.child != nil {
		// The event leaves the queue only with a descriptor to show for it.
		fd, errno := p.installUffd(e.child)
		if out := p.as.Load().out; out != nil && errno == 0 {
			fd, errno = out.Install(fd)
		}
		if errno != 0 {
			u.mu.Unlock()
			return msg, false, errno
		}
		e.msg = uapi.Fork{FD: int32(fd)}.Msg()
	}
	u.events = u.events[1:]
	e.read = true
	e.th.poke()
	u.mu.Unlock()
	return e.msg, true, 0
}

// encodeSeed makes the 8 bytes that the first version had: the address of the
// page, whose low bits say what the fault was.
func encodeSeed(b []byte, m *uapi.Msg) {
	addr, flags, _ := m.Fault()
	binary.LittleEndian.PutUint64(b, uint64(addr.Down())|uint64(flags))
}
