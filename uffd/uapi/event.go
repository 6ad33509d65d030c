// SPDX-License-Identifier: Apache-2.0

package uapi

import (
	"fmt"

	"github.com/faultline-go/faultline/mem"
)

// Event is a message as a value of its own type: one of [PageFault], [Fork],
// [Remap], [Remove], [Unmap] and [Unknown]. It shares no memory with the
// buffer that it was decoded from. Others do not implement it.
type Event interface {
	fmt.Stringer
	// Msg returns the message that decodes to the event.
	Msg() Msg
	// AppendTo appends the 32 bytes of the message to b.
	AppendTo(b []byte) []byte

	event()
}

// PageFault says that a thread sleeps on a page.
type PageFault struct {
	Addr  mem.Addr
	Flags FaultFlags
	TID   uint32 // zero without UFFD_FEATURE_THREAD_ID
}

// Fork says that the process has forked. FD drives the child's memory; it was
// installed in the reader's table by the read, and leaks if it is ignored.
type Fork struct {
	FD int32
}

// Remap says that Len bytes have moved.
type Remap struct {
	From, To mem.Addr
	Len      uint64
}

// Remove says that the pages of a range are about to be dropped; the range
// stays registered, and its pages are zero from then on.
type Remove struct {
	Range mem.Range
}

// Unmap says that a range is no longer mapped.
type Unmap struct {
	Range mem.Range
}

// Unknown is a message of a kind that this package does not know.
type Unknown struct {
	Raw Msg
}

// Typed returns m as an Event. Parts of m that its kind does not use are
// dropped.
func (m *Msg) Typed() Event {
	switch m.Event {
	case UFFD_EVENT_PAGEFAULT:
		addr, flags, tid := m.Fault()
		return PageFault{addr, flags, tid}
	case UFFD_EVENT_FORK:
		return Fork{m.ForkFD()}
	case UFFD_EVENT_REMAP:
		from, to, n := m.Remap()
		return Remap{from, to, n}
	case UFFD_EVENT_REMOVE:
		return Remove{m.Range()}
	case UFFD_EVENT_UNMAP:
		return Unmap{m.Range()}
	}
	return Unknown{*m}
}

// Decode returns the event in b, which must be exactly one message long; if
// it is not the error is a *SizeError. An unknown event is no error.
func Decode(b []byte) (Event, error) {
	m, err := ParseMsg(b)
	if err != nil {
		return nil, err
	}
	return m.Typed(), nil
}

// DecodeAll returns the events in b in their order. If b ends inside a
// message, the events before that are returned with a *SizeError.
func DecodeAll(b []byte) ([]Event, error) {
	events := make([]Event, 0, len(b)/MsgSize)
	rest := b
	for ; len(rest) >= MsgSize; rest = rest[MsgSize:] {
		ev, err := Decode(rest[:MsgSize])
		if err != nil {
			return events, err
		}
		events = append(events, ev)
	}
	if len(rest) > 0 {
		return events, &SizeError{Len: len(b)}
	}
	return events, nil
}

func (PageFault) event() {}
func (Fork) event()      {}
func (Remap) event()     {}
func (Remove) event()    {}
func (Unmap) event()     {}
func (Unknown) event()   {}

// Msg returns the message that decodes to e.
func (e PageFault) Msg() Msg {
	return Msg{Event: UFFD_EVENT_PAGEFAULT, Word: [3]uint64{uint64(e.Flags), uint64(e.Addr), uint64(e.TID)}}
}

// Msg returns the message that decodes to e.
func (e Fork) Msg() Msg {
	return Msg{Event: UFFD_EVENT_FORK, Word: [3]uint64{uint64(uint32(e.FD))}}
}

// Msg returns the message that decodes to e.
func (e Remap) Msg() Msg {
	return Msg{Event: UFFD_EVENT_REMAP, Word: [3]uint64{uint64(e.From), uint64(e.To), e.Len}}
}

// Msg returns the message that decodes to e.
func (e Remove) Msg() Msg { return rangeMsg(UFFD_EVENT_REMOVE, e.Range) }

// Msg returns the message that decodes to e.
func (e Unmap) Msg() Msg { return rangeMsg(UFFD_EVENT_UNMAP, e.Range) }

// Msg returns the message as it was read.
func (e Unknown) Msg() Msg { return e.Raw }

func rangeMsg(k EventKind, r mem.Range) Msg {
	return Msg{Event: k, Word: [3]uint64{uint64(r.Start), uint64(r.End)}}
}

// AppendTo appends the 32 bytes of e's message to b.
func (e PageFault) AppendTo(b []byte) []byte { return appendEvent(b, e) }

// AppendTo appends the 32 bytes of e's message to b.
func (e Fork) AppendTo(b []byte) []byte { return appendEvent(b, e) }

// AppendTo appends the 32 bytes of e's message to b.
func (e Remap) AppendTo(b []byte) []byte { return appendEvent(b, e) }

// AppendTo appends the 32 bytes of e's message to b.
func (e Remove) AppendTo(b []byte) []byte { return appendEvent(b, e) }

// AppendTo appends the 32 bytes of e's message to b.
func (e Unmap) AppendTo(b []byte) []byte { return appendEvent(b, e) }

// AppendTo appends the 32 bytes of e's message to b.
func (e Unknown) AppendTo(b []byte) []byte { return appendEvent(b, e) }

func appendEvent(b []byte, e Event) []byte {
	m := e.Msg()
	return m.AppendTo(b)
}

// String describes e in one line.
func (e PageFault) String() string {
	return fmt.Sprintf("PAGEFAULT %v flags %v tid %d", e.Addr, e.Flags, e.TID)
}

// String describes e in one line.
func (e Fork) String() string { return fmt.Sprintf("FORK fd %d", e.FD) }

// String describes e in one line.
func (e Remap) String() string { return fmt.Sprintf("REMAP %v to %v len %#x", e.From, e.To, e.Len) }

// String describes e in one line.
func (e Remove) String() string { return "REMOVE " + e.Range.String() }

// String describes e in one line.
func (e Unmap) String() string { return "UNMAP " + e.Range.String() }

// String describes e in one line.
func (e Unknown) String() string {
	return fmt.Sprintf("event %v reserved %x words %#x", e.Raw.Event, e.Raw.Reserved, e.Raw.Word)
}
