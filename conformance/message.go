// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// Fault flags under short names.
const (
	readFault  uapi.FaultFlags = 0
	writeFault                 = uapi.UFFD_PAGEFAULT_FLAG_WRITE
	wpFault                    = uapi.UFFD_PAGEFAULT_FLAG_WRITE | uapi.UFFD_PAGEFAULT_FLAG_WP
	minorFault                 = uapi.UFFD_PAGEFAULT_FLAG_MINOR
)

// ReadN makes read(2) with a buffer of n bytes, and returns what came.
func (u *UFFD) ReadN(n int) ([]uapi.Msg, Errno) {
	a := u.th.scratch(max(n, 8))
	r := u.th.Call(Read, u.fd, a, n)
	return u.messages(a, r), r.Errno
}

// messages takes the messages of a read that ended with r out of its buffer.
func (u *UFFD) messages(a mem.Addr, r Result) (msgs []uapi.Msg) {
	if r.Errno != OK {
		return nil
	}
	for b := u.th.get(a, int(r.Value)); len(b) > 0; b = b[uapi.MsgSize:] {
		m, err := uapi.ParseMsg(b[:min(len(b), uapi.MsgSize)])
		u.th.c.Must(err)
		if m.Reserved != [7]byte{} {
			u.th.c.Failf("message %x has padding that is not zero", b[:uapi.MsgSize])
		}
		msgs = append(msgs, m)
	}
	return msgs
}

// Next reads one message, which must be there.
func (u *UFFD) Next() uapi.Msg {
	msgs, errno := u.ReadN(uapi.MsgSize)
	if errno != OK || len(msgs) != 1 {
		u.th.c.Failf("read: %d messages and %v, want one", len(msgs), errno)
	}
	return msgs[0]
}

// Quiet checks that there is nothing to read.
func (u *UFFD) Quiet() {
	if msgs, errno := u.ReadN(uapi.MsgSize); errno != EAGAIN {
		u.th.c.Failf("read: %v and %v, want EAGAIN", describe(msgs...), errno)
	}
	Is(u.th.c, "poll", u.Poll(), 0)
}

// WantFault reads one message, which must be a fault at a.
func (u *UFFD) WantFault(a mem.Addr, flags uapi.FaultFlags) {
	u.want(uapi.Msg{Event: uapi.UFFD_EVENT_PAGEFAULT, Word: [3]uint64{uint64(flags), uint64(a)}})
}

// WantRemap reads one message, which must be a REMAP.
func (u *UFFD) WantRemap(from, to mem.Addr, n uint64) {
	u.want(uapi.Msg{Event: uapi.UFFD_EVENT_REMAP, Word: [3]uint64{uint64(from), uint64(to), n}})
}

// WantRange reads one message, which must be an UNMAP or a REMOVE.
func (u *UFFD) WantRange(kind uapi.EventKind, r mem.Range) {
	u.want(uapi.Msg{Event: kind, Word: [3]uint64{uint64(r.Start), uint64(r.End)}})
}

// WantFork reads one message, which must be a FORK, and returns the
// descriptor of the child's memory.
func (u *UFFD) WantFork() *UFFD {
	m := u.Next()
	if m.Event != uapi.UFFD_EVENT_FORK || m.Word[0]>>32 != 0 || m.Word[1] != 0 || m.Word[2] != 0 {
		u.th.c.Failf("read: %s, want a FORK", describe(m))
	}
	return &UFFD{th: u.th, fd: uint64(m.ForkFD())}
}

func (u *UFFD) want(want uapi.Msg) {
	if got := u.Next(); got != want {
		u.th.c.Failf("read: %s, want %s", describe(got), describe(want))
	}
}

// describe prints messages.
func describe(msgs ...uapi.Msg) string {
	s := ""
	for i, m := range msgs {
		if i > 0 {
			s += ", "
		}
		s += fmt.Sprintf("%v%x", m.Event, m.Word)
	}
	if s == "" {
		return "nothing"
	}
	return s
}

// probe returns the features that a fresh process is offered.
func probe(p Process) (uapi.Features, error) {
	var has uapi.Features
	c := &C{}
	r := p.Scratch()
	proc := c.wrap(p, &space{free: r.Start, end: r.End, fills: map[string]mem.Addr{}, next: arenaStart})
	c.backend = anyBackend{}
	c.protect(func() {
		u := proc.NewUFFD(ONonblock | OCloexec)
		a := u.API(uapi.UFFD_API, 0)
		a.Err(OK)
		has = uapi.Features(a.Words[1])
	})
	if len(c.failed) > 0 {
		return 0, fmt.Errorf("no userfaultfd: %s", c.failed[0])
	}
	return has, nil
}

// anyBackend is for helpers that run before a suite exists.
type anyBackend struct{ Backend }

func (anyBackend) Lacks(Call) bool { return false }
