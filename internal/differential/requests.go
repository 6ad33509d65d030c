// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// until waits for what a thread is about to do.
func (m *machine) until(what string, f func() bool) {
	for deadline := time.Now().Add(budget); !f(); time.Sleep(50 * time.Microsecond) {
		if time.Now().After(deadline) {
			m.fail("%s does not come", what)
		}
	}
}

// fd returns the descriptor that a number chooses, and its name.
func (m *machine) fd(arg uint16) (uint64, string) {
	var open []int
	for i, fd := range m.fds {
		if fd != none {
			open = append(open, i)
		}
	}
	if len(open) == 0 {
		return none, ""
	}
	i := open[int(arg)%len(open)]
	return m.fds[i], fmt.Sprint("fd", i)
}

const sentinel = 0x5a5a_5a5a

// ioctl makes a request with a struct of words.
func (m *machine) ioctl(arg uint16, request uint64, words ...uint64) {
	fd, name := m.fd(arg)
	if fd == none {
		return
	}
	var b []byte
	for _, w := range words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	m.p.Poke(m.scratch, b)
	r := m.call(conformance.Ioctl, fd, request, m.scratch)
	m.p.Peek(m.scratch, b)
	last := binary.LittleEndian.Uint64(b[len(b)-8:])
	m.say("  %s: %v, result %d", name, r.Errno, int64(last))
}

// rng makes start and length of pages, as a number chooses borderline or bad.
func rng(r mem.Range, arg uint16) (start, n uint64) {
	start, n = uint64(r.Start), r.Len()
	switch arg {
	case 40:
		start++
	case 41:
		n++
	case 42:
		n = 0
	case 43:
		start = 1 << 63
	case 44:
		n = 1 << 63
	case 45:
		start, n = ^uint64(mem.PageSize)+1, 2*mem.PageSize
	case 46:
		n += mem.PageSize
	case 47:
		start, n = start+mem.PageSize, mem.PageSize
	case 48:
		start = 0
	case 49:
		n = 1 << 20
	}
	return start, n
}

// mode returns one of the good modes, or now and then a bad one.
func mode(arg uint16, good ...uint64) uint64 {
	if arg >= 60 {
		return []uint64{0, 8, 1 << 63, 3}[arg-60]
	}
	return good[int(arg)%len(good)]
}

var features = []uapi.Features{
	0,
	uapi.UFFD_FEATURE_WP_UNPOPULATED,
	uapi.UFFD_FEATURE_EVENT_FORK | uapi.UFFD_FEATURE_EVENT_REMAP | uapi.UFFD_FEATURE_EVENT_REMOVE | uapi.UFFD_FEATURE_EVENT_UNMAP,
	uapi.UFFD_FEATURE_EVENT_REMAP | uapi.UFFD_FEATURE_WP_UNPOPULATED,
	uapi.UFFD_FEATURE_EVENT_UNMAP | uapi.UFFD_FEATURE_THREAD_ID,
	uapi.UFFD_FEATURE_EVENT_REMOVE | uapi.UFFD_FEATURE_EXACT_ADDRESS,
	uapi.UFFD_FEATURE_SIGBUS,
	uapi.UFFD_FEATURE_WP_ASYNC,
	uapi.UFFD_FEATURE_EVENT_FORK,
}

func open(m *machine, o Op) {
	count := 0
	for _, fd := range m.fds {
		if fd != none {
			count++
		}
	}
	if count == maxFDs {
		return
	}
	flags := pick([]int{conformance.ONonblock, conformance.ONonblock | uapi.UFFD_USER_MODE_ONLY,
		conformance.ONonblock | 2}, o.Arg[0])
	r := m.call(conformance.Userfaultfd, flags)
	if r.Errno != 0 {
		m.say("  %v", r.Errno)
		return
	}
	m.fds = append(m.fds, r.Value)
	// Not by way of m.fd: it is the newest.
	var b []byte
	asked := even(features, o.Arg[1])
	if o.Arg[3] >= 48 {
		asked |= uapi.UFFD_FEATURE_WP_ASYNC
	}
	for _, w := range []uint64{uapi.UFFD_API, uint64(asked), sentinel} {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	if o.Arg[2] == 60 {
		m.say("  without a handshake")
		return
	}
	m.p.Poke(m.scratch, b)
	res := m.call(conformance.Ioctl, r.Value, uint64(uapi.UFFDIO_API), m.scratch)
	m.p.Peek(m.scratch, b)
	m.say("  %v %x", res.Errno, b)
}

func closeFD(m *machine, o Op) {
	fd, name := m.fd(o.Arg[0])
	if fd == none {
		return
	}
	if m.waiting() > 1 {
		return // they would race for ordinary pages
	}
	for _, a := range m.actors {
		// A child that is to be has it too, and nobody could end the fork.
		// Who sleeps for an event would race with those who fault.
		if a.child != nil || a.last == conformance.InEvent {
			return
		}
	}
	m.say("  %s: %v", name, m.call(conformance.Close, fd).Errno)
	m.fds[slices.Index(m.fds, fd)] = none
}

// waiting counts the threads that sleep in a fault.
func (m *machine) waiting() (n int) {
	for _, a := range m.everybody() {
		if a.last == conformance.InFault {
			n++
		}
	}
	return n
}

// inEvent reports whether a thread sleeps until its event is read.
func (m *machine) inEvent() bool {
	return slices.ContainsFunc(m.everybody(), func(a *actor) bool { return a.last == conformance.InEvent })
}

func api(m *machine, o Op) {
	m.ioctl(o.Arg[0], uapi.UFFDIO_API, pick([]uint64{uapi.UFFD_API, 0xab}, o.Arg[1]), uint64(even(features, o.Arg[2])), sentinel)
}

// request makes one with a bad number or a bad struct.
func request(m *machine, o Op) {
	fd, name := m.fd(o.Arg[0])
	if fd == none {
		return
	}
	number := even([]uint64{uapi.UFFDIO_REGISTER, uapi.UFFDIO_UNREGISTER, uapi.UFFDIO_WAKE, uapi.UFFDIO_COPY,
		uapi.UFFDIO_ZEROPAGE, uapi.UFFDIO_MOVE, uapi.UFFDIO_WRITEPROTECT, uapi.UFFDIO_CONTINUE, uapi.UFFDIO_POISON,
		uapi.UFFDIO_API, 0xaa09, conformance.FionRead}, o.Arg[1])
	m.say("  %s: %v", name, m.call(conformance.Ioctl, fd, number, 8).Errno)
}

func register(m *machine, o Op) {
	reg, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3]|1)
	start, n := rng(r, o.Arg[5])
	modes := mode(o.Arg[4], 1, 3, 1, 2, 3, 5, 4, 7)
	if reg.marked && modes&uint64(uapi.UFFDIO_REGISTER_MODE_WP) == 0 {
		// Where a mode without protection replaces one with it, Linux 6.18
		// leaves the protection, and a write to a huge page faults for ever.
		return
	}
	m.ioctl(o.Arg[0], uapi.UFFDIO_REGISTER, start, n, modes, sentinel)
}

func unregister(m *machine, o Op) {
	if m.waiting() > 1 {
		return // see closeFD
	}
	_, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
	start, n := rng(r, o.Arg[5])
	m.ioctl(o.Arg[0], uapi.UFFDIO_UNREGISTER, start, n)
}

func wake(m *machine, o Op) {
	_, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
	start, n := rng(r, o.Arg[5])
	m.ioctl(o.Arg[0], uapi.UFFDIO_WAKE, start, n)
}

func copyPages(m *machine, o Op) {
	reg, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
	reg.mark()
	start, n := rng(r, o.Arg[5])
	src := uint64(m.fill(int(o.Arg[6]) % fillKinds))
	switch o.Arg[7] {
	case 60:
		src = 0x1000
	case 61:
		src = 1 << 63
	case 62:
		src += 5
	}
	m.ioctl(o.Arg[0], uapi.UFFDIO_COPY, start, min(n, smallest(n, r)), src, mode(o.Arg[4], 0, 0, 1, 2), sentinel)
}

// smallest keeps a length from reaching past what may be copied from.
func smallest(n uint64, r mem.Range) uint64 {
	if n > 1<<32 {
		return n // refused
	}
	return max(r.Len(), mem.PageSize) + n%mem.PageSize
}

func zeropage(m *machine, o Op) {
	_, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
	start, n := rng(r, o.Arg[5])
	m.ioctl(o.Arg[0], uapi.UFFDIO_ZEROPAGE, start, n, mode(o.Arg[4], 0, 0, 1), sentinel)
}

func continuePages(m *machine, o Op) {
	reg, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
	reg.mark()
	start, n := rng(r, o.Arg[5])
	m.ioctl(o.Arg[0], uapi.UFFDIO_CONTINUE, start, n, mode(o.Arg[4], 0, 0, 1, 2), sentinel)
}

func poison(m *machine, o Op) {
	_, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
	start, n := rng(r, o.Arg[5])
	m.ioctl(o.Arg[0], uapi.UFFDIO_POISON, start, n, mode(o.Arg[4], 0, 0, 1), sentinel)
}

func move(m *machine, o Op) {
	_, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
	_, src := m.pages(o.Arg[6], o.Arg[7], 0)
	start, n := rng(r, o.Arg[5])
	m.ioctl(o.Arg[0], uapi.UFFDIO_MOVE, start, uint64(src.Start), n, mode(o.Arg[4], 0, 2, 1), sentinel)
}

func protect(m *machine, o Op) {
	reg, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
	reg.mark()
	start, n := rng(r, o.Arg[5])
	m.ioctl(o.Arg[0], uapi.UFFDIO_WRITEPROTECT, start, n, mode(o.Arg[4], 1, 0, 1, 2))
}
