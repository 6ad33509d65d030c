// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"slices"
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
// the call. What a page brings may be where others are, as in a vector.
func (t *task) use(c tracee.Call) { t.useThen(c, nil) }

// useThen calls then, if it is not nil, when the call was made and has succeeded.
func (t *task) useThen(c tracee.Call, then func()) {
	if t.calls.nr != c.Nr || t.calls.args != c.Args {
		t.calls.nr, t.calls.args, t.calls.tries = c.Nr, c.Args, 0
	}
	for {
		t.ranges = sysargs.Ranges(t.ranges[:0], c.Nr, c.Args, t.sp.Load)
		if t.sp.managed != nil {
			t.alsoUses(c)
			t.pin(t.ranges)
		}
		if !t.lacks(nil) {
			break
		}
		if !t.lacks(t.bring) {
			break // the call finds out by itself what cannot be had
		}
		if t.gone {
			return
		}
	}
	if t.gone {
		return
	}
	if then == nil && !noted[c.Nr] && !slices.ContainsFunc(t.ranges, func(r sysargs.Range) bool { return t.sp.touches(r.Range) }) {
		t.resume(0)
		return
	}
	t.listen(c)
	if !t.run() {
		return
	}
	if t.call.Errno == unix.EFAULT && (t.lacks(nil) || t.deeper(c)) && t.calls.tries < mostTries {
		t.calls.tries++
		t.again(c)
		return
	}
	t.used(c)
	if then != nil && t.call.Errno == 0 {
		then()
	}
	t.resume(0)
}

// lacks reports whether a page that the call needs does not allow what the call
// does with it. With bring set it is called for each such page, and lacks goes
// on to the next as long as it returns true, and reports whether it always did.
func (t *task) lacks(bring func(a mem.Addr, write bool) bool) bool {
	for _, r := range t.ranges {
		need := uint8(unix.PROT_READ)
		if r.Write {
			need = unix.PROT_WRITE
		}
		for _, g := range t.sp.guarded {
			part := g.Intersect(r.Range)
			for a := part.Start; a < part.End; a = a.Down() + mem.PageSize {
				if t.sp.prot.at(a)&need != 0 {
					continue
				}
				if bring == nil {
					return true
				}
				if !bring(a, r.Write) {
					return false
				}
			}
		}
	}
	return bring != nil
}

// bring waits until the page at a is there for a system call. It reports false
// if it cannot be had, or if the thread has died.
func (t *task) bring(a mem.Addr, write bool) bool {
	var errno syscall.Errno
	t.as(waitCall, func() { errno = t.v.Want(a, write) })
	if t.gone {
		return false
	}
	t.sp.apply(mem.MakeRange(a.Down(), mem.PageSize))
	return errno == 0
}

// decode reports whether the instruction at which the thread stands writes to
// a. Nothing but the flag of a message depends on it.
func (t *task) decode(a mem.Addr) bool {
	r := t.at.Registers()
	var code [16]byte
	n := t.sp.Load(addr(r.PC), code[:])
	return insn.Writes(code[:n], a, insn.Regs{SI: r.SI, DI: r.DI, SP: r.SP})
}
