// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package collect

import (
	"encoding/binary"

	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// read returns n bytes from addr of the address space that th lives in, or those
// that can be read before the first that cannot.
func (cl *Collector) read(th *tracee.Thread, addr uint64, n int) []byte {
	b := make([]byte, n)
	return b[:cl.ground.Read(th, addr, b)]
}

// exactly is read that returns all or nil.
func (cl *Collector) exactly(th *tracee.Thread, addr uint64, n int) []byte {
	if b := cl.read(th, addr, n); len(b) == n {
		return b
	}
	return nil
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
func (cl *Collector) buffers(th *tracee.Thread, name string, args *[6]uint64) []segment {
	if name == "read" || name == "pread64" {
		return []segment{{args[1], args[2]}}
	}
	return parseIovecs(cl.read(th, args[1], int(min(args[2], maxIovecs))*iovecSize))
}

func parseIovecs(b []byte) (segs []segment) {
	for ; len(b) >= iovecSize; b = b[iovecSize:] {
		segs = append(segs, segment{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])})
	}
	return segs
}

// messages reads the first n bytes in segs as messages.
func (cl *Collector) messages(th *tracee.Thread, segs []segment, n int64) (msgs []uapi.Msg) {
	rest := uint64(max(0, min(n, maxRead)))
	var b []byte
	for _, s := range segs {
		part := cl.read(th, s.addr, int(min(s.len, rest)))
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
