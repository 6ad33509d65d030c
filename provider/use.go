// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/insn"
	"github.com/faultline-go/faultline/internal/sysargs"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
)

// mostTries is how often a call is made anew whose buffers went away again
// while it was made.
const mostTries = 1000

// use has a thread make a call whose buffers may lie in registered memory: the
// pages come first, as they do when the kernel faults on them in the midst of
// the call.
func (t *task) use(c tracee.Call) {
	if t.calls.nr != c.Nr || t.calls.args != c.Args {
		t.calls.nr, t.calls.args, t.calls.tries = c.Nr, c.Args, 0
	}
	t.ranges = sysargs.Ranges(t.ranges[:0], c.Nr, c.Args, t.sp.Load)
	hit := false
	for _, r := range t.ranges {
		for _, g := range t.sp.guarded {
			part := g.Intersect(r.Range)
			for a := part.Start; a < part.End; a = a.Down() + mem.PageSize {
				hit = true
				var errno syscall.Errno
				t.as(waitCall, func() { errno = t.v.Want(a, r.Write) })
				if t.gone {
					return
				}
				t.sp.apply(mem.MakeRange(a.Down(), mem.PageSize))
				if errno != 0 {
					// The call finds that out by itself.
					t.resume(0)
					return
				}
			}
		}
	}
	if !hit {
		t.resume(0)
		return
	}
	if !t.run() {
		return
	}
	if t.call.Errno == unix.EFAULT && t.lost() && t.calls.tries < mostTries {
		t.calls.tries++
		t.again(c)
		return
	}
	t.resume(0)
}

// lost reports whether a page that a call needs is away again, by no fault of
// the call's.
func (t *task) lost() bool {
	for _, r := range t.ranges {
		for _, g := range t.sp.guarded {
			part := g.Intersect(r.Range)
			for a := part.Start; a < part.End; a = a.Down() + mem.PageSize {
				need := uint8(unix.PROT_READ)
				if r.Write {
					need = unix.PROT_WRITE
				}
				if t.sp.prot.at(a)&need == 0 {
					return true
				}
			}
		}
	}
	return false
}

// decode reports whether the instruction at which the thread stands writes to
// a. Nothing but the flag of a message depends on it.
func (t *task) decode(a mem.Addr) bool {
	r := t.at.Registers()
	var code [16]byte
	n := t.sp.Load(addr(r.PC), code[:])
	return insn.Writes(code[:n], a, insn.Regs{SI: r.SI, DI: r.DI, SP: r.SP})
}
