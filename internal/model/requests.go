// SPDX-License-Identifier: Apache-2.0

package model

import (
	"context"
	"encoding/binary"
	"fmt"
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
	"github.com/faultline-go/faultline/vkernel"
)

// noResult marks a request without a result word.
const noResult = -1

// bit is v if an option was given, and zero otherwise.
func bit(st *step, opt string, v uint64) uint64 {
	if st.has(opt) {
		return v
	}
	return 0
}

// rangeWords are the range of a request, its second operand.
func rangeWords(st *step) []uint64 {
	r := st.args[1].r
	return []uint64{uint64(r.Start), r.Len()}
}

// poke and peek reach a task's arguments from outside.
func (m *machine) poke(t *task, off mem.Addr, b []byte) {
	if err := t.proc.admin.Store(context.Background(), t.scratch+off, b); err != nil {
		m.fail("arguments cannot be written: %v", err)
	}
}

func (m *machine) peek(t *task, off mem.Addr, b []byte) {
	if err := t.proc.admin.Load(context.Background(), t.scratch+off, b); err != nil {
		m.fail("arguments cannot be read: %v", err)
	}
}

// ioctl makes a request whose argument is words, of which word number result
// is what the kernel answers in.
func (m *machine) ioctl(t *task, st *step, request uint32, name string, result int, words ...uint64) {
	m.ioctlThen(t, st, request, name, words, func(answer []uint64) string {
		if result == noResult {
			return ""
		}
		return fmt.Sprintf(", result %s", signed(int64(answer[result])))
	})
}

// signed writes a result word: bytes, or the errno that it is.
func signed(n int64) string {
	if n < 0 {
		return "-" + vkernel.ErrnoName(syscall.Errno(-n))
	}
	return fmt.Sprint(n)
}

func (m *machine) ioctlThen(t *task, st *step, request uint32, name string, words []uint64, then func(answer []uint64) string) {
	fd := m.fd(st.args[0])
	var b []byte
	for _, w := range words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	m.poke(t, 0, b)
	m.callThen(t, name, func() (int64, error) {
		_, errno := t.th.Ioctl(fd, request, t.scratch)
		return errnoOnly(errno)
	}, func(*result) string {
		m.peek(t, 0, b)
		answer := make([]uint64, len(words))
		for i := range answer {
			answer[i] = binary.LittleEndian.Uint64(b[8*i:])
		}
		return then(answer)
	})
}

func doOpen(m *machine, t *task, st *step) {
	name := st.args[0].name
	flags := vkernel.OCloexec | int(bit(st, "USER_MODE_ONLY", uapi.UFFD_USER_MODE_ONLY))
	if !st.has("blocking") {
		flags |= vkernel.ONonblock
	}
	m.callThen(t, "userfaultfd", func() (int64, error) {
		fd, errno := t.th.Userfaultfd(flags)
		if errno != 0 {
			return -1, errno
		}
		return int64(fd), nil
	}, func(r *result) string {
		if r.errno != 0 {
			return ""
		}
		m.fds[name] = int(r.value)
		return fmt.Sprintf(", descriptor %d", r.value)
	})
}

func doAPI(m *machine, t *task, st *step) {
	var asked uapi.Features
	for _, f := range uapi.FeatureTable() {
		if st.has(f.Name) {
			asked |= f.Bit
		}
	}
	m.ioctlThen(t, st, uapi.UFFDIO_API, "API", []uint64{uapi.UFFD_API, uint64(asked), 0}, func(answer []uint64) string {
		if answer[0] == 0 {
			return ", the argument is zeroed"
		}
		// That of 2015 called the word bits, and they meant something else.
		return fmt.Sprintf(", version %#x, features %#x, ioctls %#x", answer[0], answer[1], answer[2])
	})
}

func doRegister(m *machine, t *task, st *step) {
	mode := bit(st, missing, uint64(uapi.UFFDIO_REGISTER_MODE_MISSING)) |
		bit(st, modeWP, uint64(uapi.UFFDIO_REGISTER_MODE_WP)) | bit(st, minor, uint64(uapi.UFFDIO_REGISTER_MODE_MINOR))
	m.ioctl(t, st, uapi.UFFDIO_REGISTER, "REGISTER", noResult, append(rangeWords(st), mode, 0)...)
}

// checkCopy bounds what is copied: the source has to have a place.
func checkCopy(_ *parser, st *step) error {
	if n := st.args[1].r.Len(); n > 4*vkernel.HugePageSize {
		return fmt.Errorf("%d bytes are too many to copy at once", n)
	}
	return nil
}

func doCopy(m *machine, t *task, st *step) {
	to := st.args[1]
	for off := uint64(0); off < to.r.Len(); off += to.region.unit {
		// What a page before had here is gone from the start of each.
		page := make([]byte, maxText)
		copy(page, st.args[2].text)
		m.poke(t, scratchSrc+mem.Addr(off), page)
	}
	mode := bit(st, dontWake, uint64(uapi.UFFDIO_COPY_MODE_DONTWAKE)) | bit(st, modeWP, uint64(uapi.UFFDIO_COPY_MODE_WP))
	m.ioctl(t, st, uapi.UFFDIO_COPY, "COPY", 4, uint64(to.r.Start), uint64(t.scratch+scratchSrc), to.r.Len(), mode, 0)
}

func doMove(m *machine, t *task, st *step) {
	to, from := st.args[1].r, st.args[2].r
	mode := bit(st, dontWake, uint64(uapi.UFFDIO_MOVE_MODE_DONTWAKE)) | bit(st, allowHoles, uint64(uapi.UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES))
	m.ioctl(t, st, uapi.UFFDIO_MOVE, "MOVE", 4, uint64(to.Start), uint64(from.Start), to.Len(), mode, 0)
}

// checkRead sees to it that a read says how many messages it has room for.
func checkRead(_ *parser, st *step) error {
	if len(st.args) == 1 {
		st.args = append(st.args, operand{n: 1})
	}
	if n := st.args[1].n; n == 0 || n > 64 {
		return fmt.Errorf("a read has room for 1 to 64 messages, not %d", n)
	}
	return nil
}

// messageSize is how long a message is on the profile.
func (m *machine) messageSize() int {
	if m.profile == vkernel.Seed {
		return 8
	}
	return uapi.MsgSize
}

func doRead(m *machine, t *task, st *step) {
	fd, size := m.fd(st.args[0]), m.messageSize()
	for _, other := range m.tasks {
		if other.state() == inRead {
			m.fail("%s sleeps in a read already: which of the two gets a message is anybody's", other.name)
		}
	}
	t.write = true
	m.callThen(t, "read", func() (int64, error) {
		n, errno := t.th.Read(fd, t.scratch+scratchBuf, uint64(size)*st.args[1].n)
		if errno != 0 {
			return -1, errno
		}
		return int64(n), nil
	}, func(r *result) string {
		if r.errno != 0 {
			return ""
		}
		b := make([]byte, r.value)
		m.peek(t, scratchBuf, b)
		for ; len(b) >= size; b = b[size:] {
			r.read = append(r.read, m.message(b[:size]))
		}
		return fmt.Sprintf(", %d bytes", r.value)
	})
}

// message decodes a message into one line.
func (m *machine) message(b []byte) string {
	if m.profile == vkernel.Seed {
		w := binary.LittleEndian.Uint64(b)
		access := "READ"
		if w&1 != 0 {
			access = "WRITE"
		}
		return fmt.Sprintf("%#x: %s %s", w, m.place(mem.Addr(w).Down()), access)
	}
	ev, err := uapi.Decode(b)
	if err != nil {
		m.fail("a message cannot be decoded: %v", err)
	}
	switch e := ev.(type) {
	case uapi.PageFault:
		text := fmt.Sprintf("PAGEFAULT %s %s", m.place(e.Addr), faultFlags(e.Flags))
		if e.TID != 0 {
			text += " of " + m.threadName(int(e.TID))
		}
		return text
	case uapi.Fork:
		m.forkFD = int(e.FD)
		return fmt.Sprintf("FORK descriptor %d", e.FD)
	case uapi.Remap:
		return fmt.Sprintf("REMAP %s to %s (%#x bytes)", m.place(e.From), m.place(e.To), e.Len)
	case uapi.Remove:
		return "REMOVE " + m.span(e.Range)
	case uapi.Unmap:
		return "UNMAP " + m.span(e.Range)
	}
	return fmt.Sprint(ev)
}

// faultFlags says what a fault was; a message without flags is of a read of
// what is missing.
func faultFlags(f uapi.FaultFlags) string {
	access, kind := "READ", "MISSING"
	if f&uapi.UFFD_PAGEFAULT_FLAG_WRITE != 0 {
		access = "WRITE"
	}
	switch {
	case f&uapi.UFFD_PAGEFAULT_FLAG_WP != 0:
		kind = "WP"
	case f&uapi.UFFD_PAGEFAULT_FLAG_MINOR != 0:
		kind = "MINOR"
	}
	return access + " " + kind
}

// threadName names the thread of a number.
func (m *machine) threadName(tid int) string {
	for _, t := range m.tasks {
		if t.th.TID() == tid {
			return t.name
		}
	}
	return fmt.Sprint("thread ", tid)
}

func doPoll(m *machine, t *task, st *step) {
	fds := []vkernel.PollFD{{FD: m.fd(st.args[0]), Events: vkernel.PollIn}}
	m.callThen(t, "poll", func() (int64, error) {
		n, errno := t.th.Poll(fds, 0)
		if errno != 0 {
			return -1, errno
		}
		return int64(n), nil
	}, func(r *result) string {
		r.revents = "nothing"
		for _, f := range []struct {
			bit  int
			name string
		}{{vkernel.PollIn, "POLLIN"}, {vkernel.PollErr, "POLLERR"}, {vkernel.PollHup, "POLLHUP"}, {vkernel.PollNval, "POLLNVAL"}} {
			if fds[0].Revents&f.bit != 0 {
				r.revents = f.name
			}
		}
		return ", " + r.revents
	})
}
