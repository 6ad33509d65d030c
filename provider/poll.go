// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"encoding/binary"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
)

// mostPolled is how many descriptors of a poll are looked at.
const mostPolled = 64

// poll lets the kernel answer, which knows from the pipe what can be read. It
// cannot know that poll is an error on a descriptor before its handshake, or on
// one that blocks, nor that the device is always ready: such a one is reported
// at once.
func (t *task) poll(c tracee.Call) {
	if c.Nr != sysPoll && c.Nr != unix.SYS_PPOLL {
		t.selects(c)
		return
	}
	p := t.polled(c)
	if len(p) == 0 {
		t.resume(0)
		return
	}
	if slices.ContainsFunc(p, func(e polled) bool { return e.revents != 0 }) {
		// The others are looked at without waiting: by ppoll, with a timeout
		// of zero in memory of ours.
		if !t.planted() {
			return
		}
		args := [6]uintptr{c.Args[0], c.Args[1], t.sp.nothing()}
		if inject.Rewrite(t.th.Tid(), unix.SYS_PPOLL, args) != nil {
			return
		}
	}
	if !t.run() {
		return
	}
	ready := int64(t.call.Ret)
	if t.call.Errno == 0 {
		for _, e := range p {
			ready += t.correct(e)
		}
	}
	t.restore(c, ready)
}

// mostSelected is how many numbers a select is about.
const mostSelected = 1024

// selects is poll for select(2), to which an error is readable and writable.
func (t *task) selects(c tracee.Call) {
	for _, f := range t.p.files {
		f.waited()
	}
	size := (min(int(int32(c.Args[0])), mostSelected) + 63) / 64 * 8
	var sets [2][]byte // of those to read and to write
	any := false
	for i := range sets {
		a := addr(c.Args[1+i])
		if size <= 0 || a == 0 {
			continue
		}
		set := make([]byte, size)
		for fd := range 8 * t.sp.Load(a, set) {
			on := set[fd/8]>>(fd%8)&1 != 0 && fd < int(c.Args[0])
			f := (*file)(nil)
			if on {
				f = t.p.identify(t.th.Process(), fd)
			}
			if f == nil || f.device || !t.sp.v.Blocking(t.sp.handle(f)) {
				set[fd/8] &^= 1 << (fd % 8)
				continue
			}
			any = true
		}
		sets[i] = set
	}
	if !any {
		t.resume(0)
		return
	}
	// Without waiting, as poll does it.
	if !t.planted() {
		return
	}
	zero := t.sp.nothing()
	if !t.instead(unix.SYS_PSELECT6, c.Args[0], c.Args[1], c.Args[2], c.Args[3], zero) {
		return
	}
	ready := int64(t.call.Ret)
	for i, set := range sets {
		if t.call.Errno != 0 || set == nil {
			continue
		}
		now := make([]byte, len(set))
		t.sp.Load(addr(c.Args[1+i]), now)
		for k := range set {
			ready += int64(bits.OnesCount8(set[k] &^ now[k]))
			now[k] |= set[k]
		}
		t.sp.Store(addr(c.Args[1+i]), now)
	}
	t.restore(c, ready)
}

// polled is an entry of a poll about which the kernel cannot be right.
type polled struct {
	at      mem.Addr // of the struct pollfd
	revents uint16   // what is so at once
}

// What pipes have and descriptors do not, and what a device without a poll of its
// own has.
const (
	pollRdnorm = 0x40
	pollDevice = unix.POLLIN | unix.POLLOUT | pollRdnorm | 0x100
)

// polled finds the entries that need a correction, and notes what is waited for.
func (t *task) polled(c tracee.Call) (all []polled) {
	n := min(int(uint32(c.Args[1])), mostPolled)
	fds := make([]byte, 8*n)
	fds = fds[:t.sp.Load(addr(c.Args[0]), fds)&^7]
	for i := 0; i < len(fds); i += 8 {
		f := t.p.identify(t.th.Process(), int(int32(binary.LittleEndian.Uint32(fds[i:]))))
		if f == nil {
			continue
		}
		f.waited()
		e := polled{at: addr(c.Args[0]) + mem.Addr(i)}
		events := binary.LittleEndian.Uint16(fds[i+4:])
		switch {
		case f.device:
			e.revents = events & pollDevice
		case t.sp.v.Blocking(t.sp.handle(f)):
			e.revents = unix.POLLERR
		}
		// Nobody waits for POLLRDNORM alone, which never comes.
		if e.revents != 0 || events&(pollRdnorm|unix.POLLIN) == pollRdnorm|unix.POLLIN {
			all = append(all, e)
		}
	}
	return all
}

// correct makes an entry say what the kernel would, and returns by how much that
// changes the number of those that are ready.
func (t *task) correct(e polled) int64 {
	var b [2]byte
	t.sp.Load(e.at+6, b[:])
	was := binary.LittleEndian.Uint16(b[:])
	is := e.revents
	if is == 0 {
		is = was &^ pollRdnorm
	}
	if is == was {
		return 0
	}
	binary.LittleEndian.PutUint16(b[:], is)
	t.sp.Store(e.at+6, b[:])
	if was == 0 {
		return 1
	}
	return 0
}
