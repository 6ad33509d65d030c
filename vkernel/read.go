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
	return th.transfer(fd, transfer{buffers: []Segment{{buf, n}}})
}

// Readv reads messages into a vector of buffers, which may cut them anywhere.
// One that has no byte reads nothing and succeeds, whatever fd is.
func (th *Thread) Readv(fd int, to []Segment) (int, syscall.Errno) {
	return th.Preadv2(fd, to, -1, 0)
}

// Pread fails: a descriptor has no positions. It is for files of
// [Thread.OpenMem].
func (th *Thread) Pread(fd int, buf mem.Addr, n uint64, off int64) (int, syscall.Errno) {
	return th.transfer(fd, transfer{buffers: []Segment{{buf, n}}, off: &off})
}

// Preadv2 is Readv with flags, of which RwfNowait does not wait for a message
// whatever the descriptor was made for. off is -1, or a position for files of
// [Thread.OpenMem].
func (th *Thread) Preadv2(fd int, to []Segment, off int64, flags int) (int, syscall.Errno) {
	t := transfer{buffers: to, vector: true, flags: flags}
	if off != -1 {
		t.off = &off
	}
	return th.transfer(fd, t)
}

// Write fails: a descriptor is not written to. It is for files of
// [Thread.OpenMem].
func (th *Thread) Write(fd int, buf mem.Addr, n uint64) (int, syscall.Errno) {
	return th.transfer(fd, transfer{buffers: []Segment{{buf, n}}, write: true})
}

// Pwrite is Write to a position.
func (th *Thread) Pwrite(fd int, buf mem.Addr, n uint64, off int64) (int, syscall.Errno) {
	return th.transfer(fd, transfer{buffers: []Segment{{buf, n}}, off: &off, write: true})
}

// transfer is a read or a write on its way.
type transfer struct {
	buffers []Segment // the caller's, not to be changed
	vector  bool      // given as such, be it of one buffer
	off     *int64    // nil is the position of the file
	flags   int
	write   bool
}

const (
	// maxTransfer is how many bytes one call transfers. What is more is left
	// out, and makes no error.
	maxTransfer = 0x7fff_f000
	// maxSegments is how many buffers a vector may have.
	maxSegments = 1024
)

// limit checks the buffers, which can all be in memory of a program or are
// refused, and takes away what is too much. It returns how many bytes are left.
func (t *transfer) limit() (n uint64, errno syscall.Errno) {
	if t.vector {
		if len(t.buffers) > maxSegments {
			return 0, EINVAL
		}
		for _, s := range t.buffers {
			if int64(s.Len) < 0 {
				return 0, EINVAL
			}
		}
		if len(t.buffers) == 1 {
			t.cut() // before it is looked at where it ends
		}
	}
	for _, s := range t.buffers {
		if !userRange(s.Addr, s.Len) {
			return 0, EFAULT
		}
	}
	return t.cut(), 0
}

// cut shortens the buffers to maxTransfer bytes in all and returns how many
// there are.
func (t *transfer) cut() (n uint64) {
	for i, s := range t.buffers {
		if s.Len > maxTransfer-n {
			t.buffers = slices.Clone(t.buffers[:i+1])
			t.buffers[i].Len = maxTransfer - n
			return maxTransfer
		}
		n += s.Len
	}
	return n
}

// userRange reports whether n bytes from a can be memory of a program.
func userRange(a mem.Addr, n uint64) bool {
	return a <= taskSize && n <= uint64(taskSize-a)
}

// transfer reads or writes.
func (th *Thread) transfer(fd int, t transfer) (int, syscall.Errno) {
	th.enter()
	defer th.leave()
	if t.off != nil && *t.off < 0 {
		return -1, EINVAL
	}
	f := th.p.file(fd)
	if f == nil {
		return -1, EBADF
	}
	defer f.put()
	switch {
	case f.uffd != nil && t.off != nil:
		return -1, ESPIPE
	case f.mode() == ORdonly && t.write || f.mode() == OWronly && !t.write:
		return -1, EBADF
	}
	n, errno := t.limit()
	switch {
	case errno != 0:
		return -1, errno
	case n == 0 && t.vector:
		return 0, 0
	case t.flags&^(RwfHipri|RwfDsync|RwfSync|RwfNowait) != 0, t.flags&RwfNowait != 0 && (f.mem != nil || f.uffd != nil && !f.nowait):
		return -1, EOPNOTSUPP
	case f.mem != nil:
		return f.transfer(th, &t, n)
	case f.uffd != nil && !t.write:
		return f.uffd.readTo(th, f.nonblock() || t.flags&RwfNowait != 0, t.buffers)
	}
	return -1, EINVAL
}

// transfer reads or writes n bytes of memory.
func (f *file) transfer(th *Thread, t *transfer, n uint64) (int, syscall.Errno) {
	at := f.pos.Load()
	if t.off != nil {
		at = *t.off
	}
	if at < 0 && n >= uint64(-at) {
		return -1, EOVERFLOW // positions are addresses, of which there are no more
	}
	done, errno := th.memory(f.mem, mem.Addr(at), t.buffers, t.write)
	if errno != 0 {
		return -1, errno
	}
	if t.off == nil {
		f.pos.Store(at + int64(done))
	}
	return done, 0
}

// Lseek moves the position of a file of [Thread.OpenMem], and returns it.
// A descriptor has none: its position stays zero.
func (th *Thread) Lseek(fd int, off int64, whence int) (int64, syscall.Errno) {
	f := th.p.file(fd)
	if f == nil {
		return -1, EBADF
	}
	defer f.put()
	switch {
	case whence < SeekSet || whence > SeekHole:
		return -1, EINVAL
	case f.obj != nil:
		return -1, EOPNOTSUPP // what a file has is not read by position here
	case f.mem == nil:
		return 0, 0
	case whence == SeekCur:
		off += f.pos.Load()
	case whence != SeekSet:
		return -1, EINVAL
	}
	f.pos.Store(off)
	if off < 0 && off > -mem.PageSize {
		// It is there now, and cannot be told from an errno.
		return -1, syscall.Errno(-off)
	}
	return off, 0
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
		u.k.reach(PhaseWait, th, 0)
		th.sleep(InRead)
	}
}

// poll takes the next message if there is one.
func (u *uffd) poll(p *Process) (msg uapi.Msg, ok bool, errno syscall.Errno) {
	var fault [1]uapi.Msg
	if u.faults.take(fault[:]) > 0 {
		return fault[0], true, 0
	}
	return u.takeEvent(p)
}

// takeEvent takes the next event if there is one.
func (u *uffd) takeEvent(p *Process) (msg uapi.Msg, ok bool, errno syscall.Errno) {
	if !u.eventful.Load() {
		return msg, false, 0
	}
	u.mu.Lock()
	if len(u.events) == 0 {
		u.mu.Unlock()
		return msg, false, 0
	}
	e := u.events[0]
	if e.child != nil {
		// The event leaves the queue only with a descriptor to show for it.
		fd, errno := p.installUffd(e.child, false)
		if out := p.as.Load().out; out != nil && errno == 0 {
			fd, errno = out.Install(fd)
		}
		if errno != 0 {
			u.mu.Unlock()
			return msg, false, errno
		}
		e.msg = uapi.Fork{FD: int32(fd)}.Msg()
	}
	u.setEvents(u.events[1:])
	e.read = true
	e.th.poke()
	more := len(u.events) > 0
	u.mu.Unlock()
	if more {
		// Who waits for another event is woken by this one too, and says again
		// that there is something before it sleeps on.
		u.wakeReaders()
	}
	return e.msg, true, 0
}

// encodeSeed makes the 8 bytes that the first version had: the address of the
// page, whose low bits say what the fault was.
func encodeSeed(b []byte, m *uapi.Msg) {
	addr, flags, _ := m.Fault()
	binary.LittleEndian.PutUint64(b, uint64(addr.Down())|uint64(flags))
}
