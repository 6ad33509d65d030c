// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"encoding/binary"
	"errors"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/vkernel"
)

// read reads messages. A read that finds none waits in its stop for a little
// while, and then in the kernel, in a poll of its own pipe: there a signal ends
// it as it would end a read.
func (t *task) read(f *file, c tracee.Call) {
	if f.device {
		t.skip(negated(unix.EINVAL))
		return
	}
	how, known := rwFlags(c)
	if !known {
		t.resume(0) // refused for a pipe as for any other file
		return
	}
	h := t.sp.handle(f)
	to, errno := t.buffers(c)
	if h < 0 {
		errno = unix.ENFILE
	}
	switch {
	case errno != 0:
		t.skip(negated(errno))
		return
	case c.Nr != unix.SYS_READ && !slices.ContainsFunc(to, func(s vkernel.Segment) bool { return s.Len != 0 }):
		t.skip(0) // before anybody is asked
		return
	}
	f.readers++
	defer f.leave()
	t.native = false
	inKernel := false // the thread stands at the exit of its poll
	for {
		t.sp.cur = t
		var n int
		t.as(waitRead, func() {
			if c.Nr == unix.SYS_READ { // of no byte it is an error
				n, errno = t.v.Read(h, to[0].Addr, to[0].Len)
				return
			}
			n, errno = t.v.Preadv2(h, to, -1, how)
		})
		if t.gone {
			return
		}
		if errno != unix.EINTR || !t.native {
			t.share() // a message may have brought a descriptor
			t.done(inKernel, c, result(n, errno))
			return
		}
		// It has waited for long. What it has under a number that was closed
		// meanwhile is another file: the stop is where it stays then.
		closed := t.closed(f, c)
		switch {
		case closed && !t.disturbed():
			t.native = false
			continue
		case inKernel && closed:
			t.restore(c, -erestartsys)
			return
		case inKernel:
			t.again(c)
			return
		}
		if !t.pollOwn(f, c, closed) {
			return
		}
		inKernel = true
		if interrupted(t.call) {
			// The kernel decides whether the call is made again.
			t.restore(c, -erestartsys)
			return
		}
		// From here on it does not wait again: another reader may have been
		// faster, and then the call is made anew.
		if t.native = !t.closed(f, c); t.native {
			t.v.Interrupt()
		}
	}
}

// closed reports whether the number by which a thread reads f means it no more.
func (t *task) closed(f *file, c tracee.Call) bool {
	return t.p.ask(t.th.Process().Pid(), int(int32(c.Args[0]))) != f
}

func result(n int, errno syscall.Errno) int64 {
	if errno != 0 {
		return negated(errno)
	}
	return int64(n)
}

// done ends a call that was decided before it was made, or at the end of a
// poll in its place.
func (t *task) done(inKernel bool, c tracee.Call, ret int64) {
	if !inKernel {
		t.skip(ret)
		return
	}
	t.restore(c, ret)
}

// restore makes another call than its own, which the thread has ended, appear to
// have been c.
func (t *task) restore(c tracee.Call, ret int64) {
	if inject.Restore(t.th.Tid(), c.Nr, c.Args, uintptr(ret)) == nil {
		t.p.ends(t.th, ret)
		t.resume(0)
	}
}

// again has the thread make its call anew.
func (t *task) again(c tracee.Call) {
	if inject.Again(t.th.Tid(), c.Nr, c.Args) == nil {
		if t.p.trace != nil {
			t.p.trace.Again(t.th)
		}
		t.resume(0)
	}
}

// ERESTARTSYS and ERESTARTNOHAND are what a call comes to in the kernel that a
// signal ends: never seen by a program.
const (
	erestartsys    = 512
	erestartnohand = 514
)

func interrupted(c tracee.Call) bool {
	return c.Errno == erestartnohand || c.Errno == erestartsys || c.Errno == unix.EINTR
}

// pollOwn has the thread wait until its own descriptor is readable, or, if it has
// closed that, only be interrupted. It reports false if the thread has died.
func (t *task) pollOwn(f *file, c tracee.Call, closed bool) bool {
	if !t.planted() {
		return false
	}
	args := [6]uintptr{0, 0, t.sp.nothing()}
	if !closed {
		// struct pollfd, in memory of ours.
		slot := t.sp.slots.take()
		if slot < 0 {
			t.p.fatal("wait for a message", errors.New("too many threads do"))
			return false
		}
		defer t.sp.slots.give(slot)
		b := t.sp.agent.Data()[slot:]
		binary.LittleEndian.PutUint32(b, uint32(c.Args[0]))
		binary.LittleEndian.PutUint32(b[4:], unix.POLLIN)
		args = [6]uintptr{uintptr(t.sp.agent.DataAddr()) + uintptr(slot), 1}
	}
	f.sleepers++
	defer func() { f.sleepers-- }()
	f.tell(true)
	if inject.Rewrite(t.th.Tid(), unix.SYS_PPOLL, args) != nil {
		return false
	}
	return t.run()
}

// The agent's data is used from its start on for what is done at once. Its second
// half begins with a struct timespec of nothing; behind that there is a place for
// each thread that waits in a call of ours.
const (
	scratch  = inject.DataSize / 2
	slotSize = 16
)

// nothing returns the address of a timeout of nothing.
func (sp *space) nothing() uintptr { return uintptr(sp.agent.DataAddr()) + scratch }

// slots are the places of an agent's data that can be had.
type slots struct {
	free []int
	made int
}

// take returns where a place is, -1 if there is none.
func (s *slots) take() int {
	if last := len(s.free) - 1; last >= 0 {
		slot := s.free[last]
		s.free = s.free[:last]
		return slot
	}
	slot := scratch + (s.made+1)*slotSize
	if slot+slotSize > inject.DataSize {
		return -1
	}
	s.made++
	return slot
}

func (s *slots) give(slot int) { s.free = append(s.free, slot) }

// rwFlags returns the flags of a preadv2(2), and false for those, and an offset,
// that the kernel refuses for a pipe as for what we show in its place.
func rwFlags(c tracee.Call) (flags int, known bool) {
	if c.Nr != unix.SYS_PREADV2 {
		return 0, true
	}
	const idle = unix.RWF_HIPRI | unix.RWF_DSYNC | unix.RWF_SYNC
	flags = int(int32(c.Args[5]))
	return flags & unix.RWF_NOWAIT, flags&^(idle|unix.RWF_NOWAIT) == 0 && int64(c.Args[3]) == -1
}

// maxTransfer is how many bytes a read is of at most.
const maxTransfer = 0x7fff_f000

// buffers returns where a read goes. The checks are the kernel's, in its order.
func (t *task) buffers(c tracee.Call) ([]vkernel.Segment, syscall.Errno) {
	if c.Nr == unix.SYS_READ {
		s := vkernel.Segment{Addr: addr(c.Args[1]), Len: uint64(c.Args[2])}
		if !ofUser(s) {
			return nil, unix.EFAULT
		}
		return []vkernel.Segment{s}, 0
	}
	n := int(int32(c.Args[2]))
	if n < 0 || n > 1024 {
		return nil, unix.EINVAL
	}
	raw := make([]byte, 16*n)
	if t.sp.Load(addr(c.Args[1]), raw) < len(raw) {
		return nil, unix.EFAULT
	}
	to := make([]vkernel.Segment, n)
	for i := range to {
		to[i].Addr = mem.Addr(binary.LittleEndian.Uint64(raw[16*i:]))
		to[i].Len = binary.LittleEndian.Uint64(raw[16*i+8:])
		if int64(to[i].Len) < 0 {
			return nil, unix.EINVAL
		}
	}
	if n == 1 {
		to[0].Len = min(to[0].Len, maxTransfer) // before it is looked at where it ends
	}
	for _, s := range to {
		if !ofUser(s) {
			return nil, unix.EFAULT
		}
	}
	return to, 0
}

// ofUser reports whether a buffer lies where a program can have memory at all.
func ofUser(s vkernel.Segment) bool {
	end := uint64(s.Addr) + s.Len
	return end >= s.Len && end <= userEnd
}

// fcntl follows the flags of a descriptor, and finds the numbers of its
// duplicates.
func (t *task) fcntl(f *file, c tracee.Call) {
	if c.Args[1] != unix.F_SETFL {
		t.receive(c)
		return
	}
	if t.run() && t.call.Errno == 0 {
		t.v.Fcntl(t.sp.handle(f), vkernel.FSetfl, int(int32(c.Args[2])))
	}
	t.resume(0)
}

// lseek succeeds, and does nothing.
func (t *task) lseek(c tracee.Call) {
	const seekHole = 4
	if uint32(c.Args[2]) > seekHole {
		t.skip(negated(unix.EINVAL))
		return
	}
	t.skip(0)
}

// setNonblock follows ioctl(FIONBIO).
func (t *task) setNonblock(f *file, c tracee.Call) {
	var on [4]byte
	t.sp.Load(addr(c.Args[2]), on[:])
	if t.run() && t.call.Errno == 0 {
		flags := 0
		if on != [4]byte{} {
			flags = unix.O_NONBLOCK
		}
		t.v.Fcntl(t.sp.handle(f), vkernel.FSetfl, flags)
	}
	t.resume(0)
}

// receive has a thread make a call that may give it a descriptor of ours under
// another number.
func (t *task) receive(c tracee.Call) {
	if !t.run() {
		return
	}
	if t.call.Errno == 0 {
		for _, fd := range t.received(c) {
			if t.p.identify(t.th.Process(), fd) != nil {
				t.session("install a filter", func(s *inject.Session) error {
					if err := t.sp.plant(s); err != nil {
						return err
					}
					return t.arm(s, fd)
				})
				t.got = true
				t.share()
			}
		}
	}
	t.resume(0)
}

// received returns the numbers that a call may have given.
func (t *task) received(c tracee.Call) []int {
	switch c.Nr {
	case unix.SYS_RECVMSG:
		return t.rights(addr(c.Args[1]), 1)
	case unix.SYS_RECVMMSG:
		return t.rights(addr(c.Args[1]), int(t.call.Ret))
	}
	return []int{int(int32(t.call.Ret))}
}

// rights returns the descriptors in n messages, whose headers follow each other
// if there are several.
func (t *task) rights(hdr mem.Addr, n int) (fds []int) {
	const sizeofMmsghdr, most = 64, 1024
	for i := range min(n, most) {
		var h [56]byte // struct msghdr
		if t.sp.Load(hdr+mem.Addr(i*sizeofMmsghdr), h[:]) < len(h) {
			break
		}
		size := binary.LittleEndian.Uint64(h[40:])
		if size == 0 || size > 64<<10 {
			continue
		}
		control := make([]byte, size)
		control = control[:t.sp.Load(mem.Addr(binary.LittleEndian.Uint64(h[32:])), control)]
		msgs, err := unix.ParseSocketControlMessage(control)
		if err != nil {
			continue
		}
		for k := range msgs {
			if got, err := unix.ParseUnixRights(&msgs[k]); err == nil {
				fds = append(fds, got...)
			}
		}
	}
	return fds
}

// Requests of ioctl(2) that the kernel answers for every file. FIONBIO is
// O_NONBLOCK by another name.
const (
	fionbio  = 0x5421
	fioclex  = 0x5451
	fionclex = 0x5450
	fioqsize = 0x5460
	figetbsz = 2
)
