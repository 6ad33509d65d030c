// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/tracee"
)

// mostPolled is how many descriptors of a poll are looked at.
const mostPolled = 64

// poll lets the kernel answer, which knows from the pipe what can be read. It
// cannot know that poll is an error on a descriptor before its handshake, or on
// one that blocks: such a one is reported at once.
func (t *task) poll(c tracee.Call) {
	if c.Nr != sysPoll && c.Nr != unix.SYS_PPOLL {
		// Select does not ask for errors.
		for _, f := range t.p.files {
			f.waited()
		}
		t.resume(0)
		return
	}
	n := min(int(c.Args[1]), mostPolled)
	fds := make([]byte, 8*max(n, 0))
	fds = fds[:t.sp.Load(addr(c.Args[0]), fds)&^7]
	var bad []int
	for i := 0; i < len(fds); i += 8 {
		f := t.p.identify(t.th.Process(), int(int32(binary.LittleEndian.Uint32(fds[i:]))))
		if f != nil {
			f.waited()
		}
		if f != nil && !f.device && t.sp.v.Blocking(t.sp.handle(f)) {
			bad = append(bad, i)
		}
	}
	if len(bad) == 0 {
		t.resume(0)
		return
	}
	// The others are looked at without waiting: by ppoll, with a timeout of
	// zero in memory of ours.
	if !t.planted() {
		return
	}
	slot := t.pollSlot()
	clear(t.sp.agent.Data()[slot : slot+16])
	args := [6]uintptr{c.Args[0], c.Args[1], uintptr(t.sp.agent.DataAddr()) + uintptr(slot)}
	if inject.Rewrite(t.th.Tid(), unix.SYS_PPOLL, args) != nil || !t.run() {
		return
	}
	ready := int64(t.call.Ret)
	if t.call.Errno == 0 {
		for _, i := range bad {
			revents := addr(c.Args[0]) + addr(uintptr(i+6))
			var b [2]byte
			t.sp.Load(revents, b[:])
			if b == [2]byte{} {
				ready++
			}
			binary.LittleEndian.PutUint16(b[:], unix.POLLERR)
			t.sp.Store(revents, b[:])
		}
	}
	t.restore(c, ready)
}
