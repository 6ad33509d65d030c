// SPDX-License-Identifier: Apache-2.0

package uapi

import (
	"encoding/binary"
	"fmt"

	"github.com/faultline-go/faultline/mem"
)

// MsgSize is the size of one message in bytes.
const MsgSize = 32

// EventKind says what a message is about.
type EventKind uint8

// Kinds of messages.
const (
	UFFD_EVENT_PAGEFAULT EventKind = 0x12
	UFFD_EVENT_FORK      EventKind = 0x13
	UFFD_EVENT_REMAP     EventKind = 0x14
	UFFD_EVENT_REMOVE    EventKind = 0x15
	UFFD_EVENT_UNMAP     EventKind = 0x16
)

// String returns the name of k, or its number in hexadecimal.
func (k EventKind) String() string {
	switch k {
	case UFFD_EVENT_PAGEFAULT:
		return "PAGEFAULT"
	case UFFD_EVENT_FORK:
		return "FORK"
	case UFFD_EVENT_REMAP:
		return "REMAP"
	case UFFD_EVENT_REMOVE:
		return "REMOVE"
	case UFFD_EVENT_UNMAP:
		return "UNMAP"
	}
	return fmt.Sprintf("%#x", uint8(k))
}

// Msg is struct uffd_msg: read(2) fills a slice of them in place. The
// accessors allocate nothing; each is meaningful for its own kinds only.
type Msg struct {
	Event    EventKind
	Reserved [7]byte // zero in all kernels so far
	Word     [3]uint64
}

// Fault returns the contents of a PAGEFAULT. The address is that of the page,
// or with EXACT_ADDRESS of the access; tid is zero without THREAD_ID.
func (m *Msg) Fault() (addr mem.Addr, flags FaultFlags, tid uint32) {
	return mem.Addr(m.Word[1]), FaultFlags(m.Word[0]), uint32(m.Word[2])
}

// ForkFD returns the descriptor of the child's memory that reading a FORK has
// installed in the table of the process that read it. Whoever drops the
// message must close it.
func (m *Msg) ForkFD() int32 { return int32(uint32(m.Word[0])) }

// Remap returns the contents of a REMAP: n bytes, the old length, have moved.
func (m *Msg) Remap() (from, to mem.Addr, n uint64) {
	return mem.Addr(m.Word[0]), mem.Addr(m.Word[1]), m.Word[2]
}

// Range returns the range of a REMOVE or an UNMAP. That of an UNMAP is what
// munmap(2) was asked for, of which perhaps only a part was registered.
func (m *Msg) Range() mem.Range {
	return mem.Range{Start: mem.Addr(m.Word[0]), End: mem.Addr(m.Word[1])}
}

// AppendTo appends the 32 bytes of m to b.
func (m *Msg) AppendTo(b []byte) []byte {
	b = append(b, byte(m.Event))
	b = append(b, m.Reserved[:]...)
	for _, w := range m.Word {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

// ParseMsg reads the message that b consists of. A b of another size than
// MsgSize is a *SizeError.
func ParseMsg(b []byte) (Msg, error) {
	if len(b) != MsgSize {
		return Msg{}, &SizeError{Len: len(b)}
	}
	m := Msg{Event: EventKind(b[0]), Reserved: [7]byte(b[1:8])}
	for i := range m.Word {
		m.Word[i] = binary.LittleEndian.Uint64(b[8+8*i:])
	}
	return m, nil
}

// SizeError reports bytes that are not a whole number of messages.
type SizeError struct {
	Len int
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("%d bytes are not whole messages of %d bytes: the stream was cut or is not from a userfaultfd",
		e.Len, MsgSize)
}
