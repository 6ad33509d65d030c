// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package watch

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// memory reads what programs point to. It reads /proc/PID/mem, where a page that
// is missing and registered with a userfaultfd is an error. process_vm_readv(2)
// would wait for it, and the one who is to bring it would wait for us.
type memory struct {
	open map[*tracee.Space]int // descriptors
}

func newMemory() *memory { return &memory{open: map[*tracee.Space]int{}} }

// read returns n bytes from addr of the address space that th lives in, or those
// that can be read before the first that cannot.
func (m *memory) read(th *tracee.Thread, addr uint64, n int) []byte {
	s := th.Process().Space()
	raw, ok := m.open[s]
	if !ok {
		var err error
		if raw, err = unix.Open(fmt.Sprintf("/proc/%d/mem", th.Tid()), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return nil // it is gone, or not ours to look into
		}
		m.open[s] = raw
	}
	b := make([]byte, n)
	for done := 0; done < n; {
		// Up to the end of the page, since the file gives nothing of a read
		// whose end is missing.
		at := addr + uint64(done)
		part := min(n-done, int(mem.PageSize-at%mem.PageSize))
		got, err := unix.Pread(raw, b[done:done+part], int64(at))
		if err == unix.EINTR {
			continue
		}
		if err != nil || got <= 0 {
			return b[:done]
		}
		done += got
	}
	return b
}

// exactly is read that returns all or nil.
func (m *memory) exactly(th *tracee.Thread, addr uint64, n int) []byte {
	if b := m.read(th, addr, n); len(b) == n {
		return b
	}
	return nil
}

// forget is called when an address space is gone.
func (m *memory) forget(s *tracee.Space) {
	if raw, ok := m.open[s]; ok {
		delete(m.open, s)
		_ = unix.Close(raw) // nothing was written
	}
}

// segment is a part of a program's memory.
type segment struct {
	addr uint64
	len  uint64
}

const (
	// maxIovecs is the kernel's own limit (UIO_MAXIOV).
	maxIovecs = 1024
	iovecSize = 16
	// maxRead bounds what is looked at of one read: 32768 messages.
	maxRead = 1 << 20
)

// buffers returns where a read puts what it reads, from its arguments.
func (m *memory) buffers(th *tracee.Thread, name string, args *[6]uint64) []segment {
	if name == "read" || name == "pread64" {
		return []segment{{args[1], args[2]}}
	}
	return parseIovecs(m.read(th, args[1], int(min(args[2], maxIovecs))*iovecSize))
}

func parseIovecs(b []byte) (segs []segment) {
	for ; len(b) >= iovecSize; b = b[iovecSize:] {
		segs = append(segs, segment{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])})
	}
	return segs
}

// messages reads the first n bytes in segs as messages.
func (m *memory) messages(th *tracee.Thread, segs []segment, n int64) (msgs []uapi.Msg) {
	rest := uint64(max(0, min(n, maxRead)))
	var b []byte
	for _, s := range segs {
		part := m.read(th, s.addr, int(min(s.len, rest)))
		b = append(b, part...)
		rest -= uint64(len(part))
		if rest == 0 || uint64(len(part)) < s.len {
			break
		}
	}
	return parseMessages(b)
}

func parseMessages(b []byte) (msgs []uapi.Msg) {
	for ; len(b) >= uapi.MsgSize; b = b[uapi.MsgSize:] {
		msg, err := uapi.ParseMsg(b[:uapi.MsgSize])
		if err != nil {
			return msgs
		}
		msgs = append(msgs, msg)
	}
	return msgs
}
