// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/sysargs"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
)

// pieceSize is the most of a buffer that must be present at once, where a call can
// be made in pieces: a large one must not push everything else out.
const pieceSize = 256 << 10

// piece is a read or write that is made in pieces.
type piece struct {
	c    tracee.Call
	done uintptr
	pc   uintptr // behind the call
}

// pieces makes a call with a large buffer.
func (t *task) pieces(c tracee.Call) {
	if !t.sp.touches(mem.MakeRange(addr(c.Args[1]), uint64(c.Args[2]))) {
		t.use(c)
		return
	}
	t.own.piece = piece{c: c, pc: t.at.Registers().PC}
	t.nextPiece(c)
}

// nextPiece makes the next piece of a call, at whose begin the thread stands.
func (t *task) nextPiece(c tracee.Call) {
	p := &t.own.piece
	write := c.Nr == unix.SYS_READ || c.Nr == unix.SYS_PREAD64 // to memory
	args := c.Args
	args[1] += p.done
	args[2] = min(pieceSize, c.Args[2]-p.done)
	if c.Nr == unix.SYS_PREAD64 || c.Nr == unix.SYS_PWRITE64 {
		args[3] += p.done
	}
	t.ranges = append(t.ranges[:0], sysargs.Range{Range: mem.MakeRange(addr(args[1]), uint64(args[2])), Write: write})
	if !t.hold() {
		return
	}
	if inject.Rewrite(t.th.Tid(), c.Nr, args) != nil || !t.run() {
		return
	}
	t.unpin()
	n := t.call.Ret
	if t.call.Errno != 0 {
		n = 0
	}
	p.done += n
	switch {
	case t.call.Errno != 0 && p.done == 0:
		t.endPiece(negated(t.call.Errno))
	case n < args[2], p.done == c.Args[2], write && !t.regular(int(int32(c.Args[0]))):
		t.endPiece(int64(p.done))
	default:
		t.again(c)
	}
}

// endPiece ends a call that was made in pieces with ret.
func (t *task) endPiece(ret int64) {
	c := t.own.piece.c
	t.own.piece = piece{}
	t.restore(c, ret)
}

// breakOff ends a call that was made in pieces before a signal is handled: what
// the handler does must not be taken for the next piece.
func (t *task) breakOff() {
	p := t.own.piece
	t.own.piece = piece{}
	if p.done != 0 && t.at.Registers().PC == p.pc-callLen && inject.Finish(t.th.Tid(), p.done) == nil {
		_ = t.at.Read(t.th.Tid()) // an error is a death
	}
}

// regular reports whether reads of fd come short only at the end of a file: one of
// anything else must return what there is.
func (t *task) regular(fd int) bool {
	var st unix.Stat_t
	return unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", t.th.Tid(), fd), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}
