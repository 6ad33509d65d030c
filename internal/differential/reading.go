// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"encoding/binary"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

func poll(m *machine, o Op) {
	fd, name := m.fd(o.Arg[0])
	if fd == none {
		return
	}
	m.p.Poke(m.scratch, binary.LittleEndian.AppendUint64(nil, fd|conformance.PollIn<<32))
	m.do(conformance.Poll, m.scratch, 1, 0)
	var b [8]byte
	m.p.Peek(m.scratch, b[:])
	text, err := m.p.Fdinfo(int(fd))
	m.must(err)
	_, text, _ = strings.Cut(text, "pending:")
	m.say("  %s: %#x, pending%s", name, binary.LittleEndian.Uint64(b[:])>>48, strings.ReplaceAll(text, "\n", " "))
}

// epoll asks two epolls about a descriptor, which they watch from the first time
// on: one tells how things are, the other what is new.
func epoll(m *machine, o Op) {
	if len(m.fds) == 0 {
		return
	}
	i := int(o.Arg[0]) % len(m.fds)
	if m.fds[i] != none && m.epolls[i] == nil {
		var pair [2]uint64
		for k, events := range []uint64{conformance.PollIn, conformance.PollIn | conformance.EpollET} {
			pair[k] = m.do(conformance.EpollCreate, 0)
			m.p.Poke(m.scratch, binary.LittleEndian.AppendUint64(nil, events))
			m.do(conformance.EpollCtl, pair[k], conformance.EpollCtlAdd, m.fds[i], m.scratch)
		}
		m.epolls[i] = &pair
	}
	pair := m.epolls[i]
	if pair == nil {
		return // it was closed before
	}
	var seen [2]string
	for k, ep := range pair {
		r := m.call(conformance.EpollWait, ep, m.scratch, 1, 0)
		var b [4]byte
		m.p.Peek(m.scratch, b[:])
		if seen[k] = r.String(); r.Value == 1 {
			seen[k] = fmt.Sprintf("%#x", binary.LittleEndian.Uint32(b[:]))
		}
	}
	m.say("  fd%d: level %s, edge %s", i, seen[0], seen[1])
}

// read reads messages. When their order is anybody's it reads all there are
// of every descriptor.
func read(m *machine, o Op) {
	if m.unmuddle() {
		return
	}
	fd, name := m.fd(o.Arg[0])
	if fd == none {
		return
	}
	size := pick([]int{32, 64, 320, 63, 31, 0, 95}, o.Arg[1])
	buf := m.scratch
	if o.Arg[2] == 63 {
		buf = 8
	}
	m.tellRead(name, m.call(conformance.Read, fd, buf, size))
}

// tellRead tells what a call has read to the scratch memory.
func (m *machine) tellRead(name string, r conformance.Result) {
	msgs, errno := m.messages(r)
	m.say("  %s: %v %s", name, errno, strings.Join(msgs, ", "))
	events := 0
	for _, msg := range msgs {
		if !strings.HasPrefix(msg, faultName) {
			events++
		}
	}
	// Threads that are told at once go on to the next events of their calls
	// at once.
	m.muddled = m.muddled || events > 1
}

// unmuddle reads all messages if their order is anybody's, and reports whether
// it was.
func (m *machine) unmuddle() bool {
	if !m.muddled {
		return false
	}
	m.muddled = false
	for i := range m.fds {
		if m.fds[i] != none {
			m.drain(i)
		}
	}
	return true
}

// vectors are the lengths of buffers that messages are read to.
var vectors = [][]uint64{
	{32}, {16, 16}, {31, 1}, {16, 0, 16}, {0, 32}, {33, 31}, {1, 30, 1, 32}, {64, 0, 0}, {20, 20, 20, 36}, {48, 48},
	{0, 0}, {}, {10}, {16, 15}, {31, 0, 32}, {320, 1},
	{1 << 63, 32}, {1<<63 - 1}, // the first is refused
}

// readv reads messages to several buffers, one of which may be bad.
func readv(m *machine, o Op) {
	if m.unmuddle() {
		return
	}
	fd, name := m.fd(o.Arg[0])
	if fd == none {
		return
	}
	lengths, iov := even(vectors, o.Arg[1]), m.scratch+4096
	bad := -1
	if len(lengths) > 0 && o.Arg[2] >= 48 {
		bad = int(o.Arg[2]) % len(lengths)
	}
	var b []byte
	at := m.scratch
	for i, n := range lengths {
		buf := at
		if at += mem.Addr(n); i == bad {
			buf = 8
		}
		b = binary.LittleEndian.AppendUint64(b, uint64(buf))
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	m.p.Poke(iov, b)
	count := len(lengths)
	if o.Arg[3] == 63 {
		count = 1025
	}
	var r conformance.Result
	switch o.Arg[4] % 8 {
	case 6:
		r = m.call(conformance.Preadv2, fd, iov, count, 0, 0) // it has no positions
	case 7:
		r = m.call(conformance.Preadv2, fd, iov, count, none, conformance.RwfNowait)
	default:
		r = m.call(conformance.Readv, fd, iov, count)
	}
	m.tellRead(name, r)
	// A message that found no place is lost. It may have been an event, as may
	// those before it.
	m.muddled = m.muddled || bad >= 0 && r.Errno == 0 && r.Value > 0
}

// drain reads all messages of a descriptor and sorts them.
func (m *machine) drain(i int) {
	var all []string
	for {
		msgs, errno := m.messages(m.call(conformance.Read, m.fds[i], m.scratch, 32*uapi.MsgSize))
		if errno != conformance.OK {
			sort.Strings(all)
			m.say("  fd%d: %s, %v", i, strings.Join(all, ", "), errno)
			return
		}
		all = append(all, msgs...)
		m.settleQuietly()
	}
}

// settleQuietly lets threads whose events were read go on to the next, which
// is part of what is being drained.
func (m *machine) settleQuietly() {
	for calm := 0; calm < 2; {
		calm++
		for _, a := range m.everybody() {
			if a.task.State() == conformance.Running {
				calm = 0
				a.task.Wait(100 * time.Microsecond)
			}
		}
	}
}

// messages returns those that a call has read to the scratch memory.
func (m *machine) messages(r conformance.Result) ([]string, conformance.Errno) {
	if r.Errno != 0 {
		return nil, r.Errno
	}
	b := make([]byte, r.Value)
	m.p.Peek(m.scratch, b)
	var out []string
	for ; len(b) > 0; b = b[uapi.MsgSize:] {
		msg, err := uapi.ParseMsg(b[:uapi.MsgSize])
		m.must(err)
		out = append(out, m.message(msg))
	}
	return out, 0
}

// faultName is what a fault is printed as, and no other message.
var faultName = uapi.UFFD_EVENT_PAGEFAULT.String()

// message prints one, with numbers of the machine replaced by names.
func (m *machine) message(msg uapi.Msg) string {
	switch msg.Event {
	case uapi.UFFD_EVENT_FORK:
		m.fds = append(m.fds, uint64(msg.ForkFD()))
		return fmt.Sprintf("FORK fd%d %x %x", len(m.fds)-1, msg.Word[1:], msg.Reserved)
	case uapi.UFFD_EVENT_PAGEFAULT:
		if tid := int(uint32(msg.Word[2])); tid != 0 {
			name := "nobody"
			for _, a := range m.everybody() {
				if a.task.TID() == tid {
					name = a.name
				}
			}
			return fmt.Sprintf("%s %x of %s", faultName, msg.Word[:2], name)
		}
	}
	return fmt.Sprintf("%v %x %x", msg.Event, msg.Word, msg.Reserved)
}
