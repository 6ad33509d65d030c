// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package collect

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/tracee"
)

const (
	msghdrSize = 56
	// mmsghdrSize is that of struct mmsghdr: a msghdr and a count.
	mmsghdrSize = 64
	// maxVectors is the most messages of one sendmmsg(2).
	maxVectors = 1024
	// maxControl bounds what is looked at of the control part of a message:
	// more than the greatest number of descriptors in one needs.
	maxControl = 4 << 10
)

// control is the control part of a message, in the program's memory.
type control struct {
	addr, len uint64
}

func parseMsghdr(b []byte) control {
	return control{binary.LittleEndian.Uint64(b[32:]), binary.LittleEndian.Uint64(b[40:])}
}

// controls returns the control parts of the first n messages that a call of
// sendmsg(2) and its like is about.
func (cl *Collector) controls(th *tracee.Thread, name string, addr uint64, n int64) (cs []control) {
	size := uint64(mmsghdrSize)
	if name == "sendmsg" || name == "recvmsg" {
		n = 1
	}
	for i := range uint64(max(0, min(n, maxVectors))) {
		b := cl.exactly(th, addr+i*size, msghdrSize)
		if b == nil {
			break
		}
		if c := parseMsghdr(b); c.addr != 0 && c.len != 0 {
			cs = append(cs, c)
		}
	}
	return cs
}

// rights returns the numbers of all descriptors in control parts.
func (cl *Collector) rights(th *tracee.Thread, cs []control) (fds []int) {
	for _, c := range cs {
		fds = append(fds, parseRights(cl.read(th, c.addr, int(min(c.len, maxControl))))...)
	}
	return fds
}

// parseRights returns the descriptors in a control part, up to where it is no
// longer well formed.
func parseRights(b []byte) (fds []int) {
	for len(b) >= unix.SizeofCmsghdr {
		n := binary.LittleEndian.Uint64(b)
		level, kind := binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
		if n < unix.SizeofCmsghdr || n > uint64(len(b)) {
			break
		}
		if level == unix.SOL_SOCKET && kind == unix.SCM_RIGHTS {
			for data := b[unix.SizeofCmsghdr:n]; len(data) >= 4; data = data[4:] {
				fds = append(fds, int(int32(binary.LittleEndian.Uint32(data))))
			}
		}
		b = b[min((n+7)&^7, uint64(len(b))):]
	}
	return fds
}
