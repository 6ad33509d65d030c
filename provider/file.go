// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
)

// file is a descriptor as the program has it: the reading end of a pipe, of
// which we have the other end. So close, dup, fork, exec and the passing of
// descriptors are the kernel's own, poll and epoll too, since the pipe has a
// byte in it while there is something to read; and when nobody has the
// reading end any more, the kernel tells us on ours. The inode of the pipe
// tells which descriptor a number means.
type file struct {
	p       *Provider
	ino     uint64
	write   int // our end
	reg     int // its number in the registry
	device  bool
	pending func() bool // whether there is something to read
	handles map[*space]int
	owner   *space // whose faults it takes; nil for the device

	// polled is set once somebody has waited for it in another way than by a
	// read, which we see: only then the pipe must say at once what there is.
	polled   bool
	edged    bool // by epoll(7), which may want to know of each message
	fresh    bool // there is one that the pipe has not told of
	sleepers int  // reads that wait in the kernel
	readers  int  // reads, wherever they wait
	hold     int  // a reading end of ours, for those whose number was closed; or -1
	ready    bool // the byte is in the pipe
	changed  bool // in Provider.changed
	closed   bool
}

// create makes a descriptor for the thread's process, and returns its number
// or a negated errno.
func (t *task) create(flags int) int64 {
	h, errno := t.v.Userfaultfd(flags)
	if errno != 0 {
		return negated(errno)
	}
	fd := t.number(h, flags, false)
	t.share()
	return fd
}

// number gives descriptor h of the mirror a number in the program.
func (t *task) number(h, flags int, device bool) int64 {
	f := &file{p: t.p, write: -1, hold: -1, device: device, handles: map[*space]int{t.sp: h}}
	if !device {
		f.owner, _ = t.sp.v.Memory(h).(*space)
	}
	fd, errno := -1, syscall.Errno(0)
	ok := t.session("make a descriptor", func(s *inject.Session) (err error) {
		fd, errno, err = f.make(t.sp, s, flags&(unix.O_CLOEXEC|unix.O_NONBLOCK))
		if err == nil && errno == 0 {
			err = t.arm(s, fd)
		}
		return err
	})
	if !ok || errno != 0 {
		t.v.Close(h)
		f.close()
		return negated(errno)
	}
	t.got = true
	var err syscall.Errno
	if f.reg, err = t.v.PassFD(h, t.p.registry); err != 0 {
		t.p.fatal("keep a descriptor", err)
	}
	if k := t.p.filters[t.th.Process()]; k != nil {
		delete(k.reused, fd)
		delete(k.fds, fd)
	}
	f.pending = t.p.registry.OnReadable(f.reg, func() {
		f.fresh = true
		f.touch()
	})
	t.p.files[f.ino] = f
	t.p.hangups.add(f.write, f.ino)
	return int64(fd)
}

// make makes the pipe in the thread's process. errno is what the program is
// told.
func (f *file) make(sp *space, s *inject.Session, flags int) (fd int, errno syscall.Errno, err error) {
	if err := sp.plant(s); err != nil {
		return -1, 0, err
	}
	_, err = s.Syscall(unix.SYS_PIPE2, uintptr(sp.agent.DataAddr()), uintptr(flags))
	if errors.As(err, &errno) {
		return -1, errno, nil
	} else if err != nil {
		return -1, 0, err
	}
	data := sp.agent.Data()
	fd = int(binary.LittleEndian.Uint32(data))
	other := int(binary.LittleEndian.Uint32(data[4:]))
	path := fmt.Sprintf("/proc/%d/fd/%d", s.Tid(), other)
	f.write, err = unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, 0, fmt.Errorf("take the writing end of a pipe: %w", err)
	}
	if _, err := s.Syscall(unix.SYS_CLOSE, uintptr(other)); err != nil {
		return -1, 0, fmt.Errorf("close the writing end of a pipe: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.write, &st); err != nil {
		return -1, 0, fmt.Errorf("look at a pipe: %w", err)
	}
	f.ino = st.Ino
	return fd, 0, nil
}

// touch says that there may be something to read now, or nothing any more.
func (f *file) touch() {
	if !f.changed && !f.closed {
		f.changed = true
		f.p.changed = append(f.p.changed, f)
	}
}

// publish makes the pipe say what there is to read.
func (f *file) publish() { f.tell(f.polled || f.sleepers > 0) }

func (f *file) tell(now bool) {
	if f.closed || f.device {
		return
	}
	want := f.pending()
	switch {
	case want && now && (!f.ready || f.edged && f.fresh):
		_, err := unix.Write(f.write, zeros[:1])
		// EPIPE: nobody is left to read it. EAGAIN: it is full.
		f.set(err == nil || f.ready && err == unix.EAGAIN)
		f.fresh = false
	case !want && f.ready:
		f.drain()
	}
}

// set notes whether the byte is in the pipe.
func (f *file) set(ready bool) {
	if f.ready != ready {
		f.ready = ready
		if ready {
			f.p.ready++
		} else {
			f.p.ready--
		}
	}
}

// waited notes that somebody waits for f in the kernel, from now on: the pipe
// says what there is before the thread that does so is let go.
func (f *file) waited() {
	f.polled = true
	f.publish()
}

// drain takes the byte out again, by an end of our own that lives for a
// moment.
func (f *file) drain() {
	fd, err := f.reopen()
	if err != nil {
		f.p.fatal("reopen a pipe", err)
		return
	}
	var b [mem.PageSize]byte
	for {
		// EAGAIN: that was all, or the program has read it past us.
		if n, err := unix.Read(fd, b[:]); n < len(b) || err != nil {
			break
		}
	}
	_ = unix.Close(fd)
	f.set(false)
}

// keepReaders is called before numbers are closed: a thread that is in a read has
// the file, whatever becomes of the number, while one that waits in a stop is in
// no read yet.
func (p *Provider) keepReaders() {
	for _, f := range p.files {
		if f.readers == 0 || f.hold >= 0 {
			continue
		}
		fd, err := f.reopen()
		if err != nil {
			p.fatal("reopen a pipe", err)
			return
		}
		f.hold = fd
	}
}

// leave is the end of a read.
func (f *file) leave() {
	if f.readers--; f.readers == 0 && f.hold >= 0 {
		_ = unix.Close(f.hold)
		f.hold = -1
	}
}

// reopen opens the reading end.
func (f *file) reopen() (int, error) {
	return unix.Open("/proc/self/fd/"+strconv.Itoa(f.write), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
}

// close gives up our side.
func (f *file) close() {
	if f.closed {
		return
	}
	f.set(false)
	f.closed = true
	if f.write >= 0 {
		_ = unix.Close(f.write)
	}
	if f.hold >= 0 {
		_ = unix.Close(f.hold)
		f.hold = -1
	}
}

// identify returns the descriptor that fd of a process is, nil if it is none
// of ours.
func (p *Provider) identify(pr *tracee.Process, fd int) *file {
	if fd < 0 || len(p.files) == 0 {
		return nil
	}
	known := p.filters[pr]
	if known == nil {
		return nil
	}
	if f := known.fds[fd]; f != nil && !f.closed {
		return f
	}
	f := p.ask(pr.Pid(), fd)
	if f != nil && known.numbers[fd] && !known.shared && !known.reused[fd] {
		if known.fds == nil {
			known.fds = make(map[int]*file)
		}
		known.fds[fd] = f
	}
	return f
}

// ask has the kernel say what fd of a process is.
func (p *Provider) ask(pid, fd int) *file {
	var buf [64]byte
	link := func(tid int) (int, error) {
		path := append(append(strconv.AppendInt([]byte("/proc/"), int64(tid), 10), "/fd/"...), strconv.Itoa(fd)...)
		return unix.Readlink(string(path), buf[:])
	}
	n, err := link(pid)
	if err != nil {
		tid := procmem.Task(pid)
		if tid == pid {
			return nil
		}
		if n, err = link(tid); err != nil {
			return nil
		}
	}
	rest, ok := strings.CutPrefix(string(buf[:n]), "pipe:[")
	if !ok {
		return nil
	}
	ino, err := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 64)
	if err != nil {
		return nil
	}
	return p.files[ino]
}

// forget notes that fd may be another file from now on. The call that makes it
// so is still to come: what is found under the number meanwhile is not
// remembered, until a descriptor is made under it.
func (k *filters) forget(fd int) {
	delete(k.fds, fd)
	if k.reused == nil {
		k.reused = make(map[int]bool)
	}
	k.reused[fd] = true
}

// handle returns the number of f in the mirror of sp.
func (sp *space) handle(f *file) int {
	if h, ok := f.handles[sp]; ok {
		return h
	}
	h, errno := sp.p.keeper.PassFD(f.reg, sp.v)
	if errno != 0 {
		return -1
	}
	f.handles[sp] = h
	return h
}

// hungUp is the end of a descriptor that nobody has any more.
func (p *Provider) hungUp(ino uint64) {
	f := p.files[ino]
	if f == nil || !f.abandoned() {
		return // an end of our own was open for a moment, or it is done
	}
	p.release(f)
	p.settle()
}

// abandoned asks the kernel whether the reading end is closed everywhere.
func (f *file) abandoned() bool {
	fds := []unix.PollFd{{Fd: int32(f.write), Events: 0}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&unix.POLLERR != 0
}

// reap ends the descriptors that nobody has any more. The kernel would tell us
// of them a moment later: what is decided now must not count them in. The caller
// settles.
func (p *Provider) reap() {
	if len(p.files) == 0 {
		return
	}
	p.polls = p.polls[:0]
	for _, f := range p.files {
		p.polls = append(p.polls, unix.PollFd{Fd: int32(f.write)})
	}
	if n, err := unix.Poll(p.polls, 0); err != nil || n == 0 {
		return
	}
	for _, f := range p.files {
		if f.abandoned() {
			p.release(f)
		}
	}
}

func (p *Provider) release(f *file) {
	delete(p.files, f.ino)
	f.close()
	for sp, h := range f.handles {
		sp.keeper.Close(h)
	}
	p.keeper.Close(f.reg)
	if f.owner != nil && p.spaces[f.owner.ts] == f.owner {
		f.owner.follow()
	}
}

// hangups tells when the reading end of a pipe is gone.
type hangups struct {
	epoll, stop int
	done        sync.WaitGroup
}

func newHangups() (*hangups, error) {
	h := &hangups{}
	var err error
	if h.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make an epoll descriptor: %w", err)
	}
	if h.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		_ = unix.Close(h.epoll)
		return nil, fmt.Errorf("make an event descriptor: %w", err)
	}
	h.add(h.stop, 0)
	return h, nil
}

// add watches fd until it is closed.
func (h *hangups) add(fd int, ino uint64) {
	ev := unix.EpollEvent{Events: unix.EPOLLET, Fd: int32(uint32(ino)), Pad: int32(uint32(ino >> 32))}
	if ino == 0 {
		ev.Events = unix.EPOLLIN
	}
	_ = unix.EpollCtl(h.epoll, unix.EPOLL_CTL_ADD, fd, &ev) // a failure costs time: see reap
}

// watch calls f with the inode of each pipe that hangs up.
func (h *hangups) watch(f func(ino uint64)) {
	h.done.Go(func() {
		var evs [16]unix.EpollEvent
		for {
			n, err := unix.EpollWait(h.epoll, evs[:], -1)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
			for _, ev := range evs[:max(n, 0)] {
				ino := uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
				if ino == 0 {
					return
				}
				f(ino)
			}
		}
	})
}

func (h *hangups) close() {
	_, _ = unix.Write(h.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	h.done.Wait()
	_ = unix.Close(h.stop)
	_ = unix.Close(h.epoll)
}
