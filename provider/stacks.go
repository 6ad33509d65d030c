// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"encoding/binary"
	"slices"
	"syscall"

	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/internal/sysargs"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
)

// mostAlts is how many stacks for handlers one thread has at a time, or one after the
// other in handlers that replace them.
const mostAlts = 16

// altStack takes note of a stack for signal handlers from a stack_t.
func (t *task) altStack(b []byte) {
	own := &t.own
	if t.sp.managed != nil {
		own.alts = own.alts[:0]
	}
	alt := mem.MakeRange(mem.Addr(binary.LittleEndian.Uint64(b)), binary.LittleEndian.Uint64(b[16:]))
	if binary.LittleEndian.Uint32(b[8:])&2 != 0 { // SS_DISABLE
		return
	}
	own.alts = slices.DeleteFunc(own.alts, func(r mem.Range) bool { return r == alt })
	own.alts = slices.Insert(own.alts, 0, alt)
	own.alts = own.alts[:min(len(own.alts), mostAlts)]
}

// frameSize is more than the kernel puts on a stack for a signal, with all the
// state that processors have today.
const frameSize = 16 << 10

// deliver has a signal wait until its handler has a stack: the kernel would kill a
// program whose stack it finds missing.
func (p *Provider) deliver(th *tracee.Thread, sig syscall.Signal) syscall.Signal {
	sp := p.spaces[th.Process().Space()]
	if sp == nil || sp.managed == nil {
		return sig
	}
	delete(sp.managed.unsure, th.Tid())
	if !procmem.Catches(th.Tid(), int(sig)) || p.at.Read(th.Tid()) != nil {
		return sig
	}
	t := p.task(th)
	t.start(func() {
		t.breakOff()
		if t.frame() {
			t.resume(sig)
		}
	})
	return 0
}

// frame brings in and keeps what the kernel writes of a signal. It reports whether
// the thread is still there.
func (t *task) frame() bool {
	sp := addr(t.at.Registers().SP)
	const redZone = 128
	stacks := []mem.Range{{Start: sp - min(sp, redZone+frameSize), End: sp}}
	for _, alt := range t.own.alts {
		if !alt.Empty() && !alt.Contains(sp) {
			stacks = append(stacks, mem.Range{Start: max(alt.Start, alt.End-min(alt.End, frameSize)), End: alt.End})
		}
	}
	return t.stack(stacks, true)
}

// stack brings in and keeps the pages of stacks, from their top on, as far as they
// can be had.
func (t *task) stack(stacks []mem.Range, write bool) bool {
	t.ranges = t.ranges[:0]
	for _, r := range stacks {
		for a := (r.End - 1).Down(); a >= r.Start.Down(); a -= mem.PageSize {
			page := mem.MakeRange(a, mem.PageSize)
			if !t.sp.touches(page) {
				continue
			}
			t.ranges = append(t.ranges, sysargs.Range{Range: page, Write: write})
			t.pin(t.ranges)
			if t.lacks(nil) && !t.bring(a, write) {
				if t.gone {
					return false
				}
				t.ranges = t.ranges[:len(t.ranges)-1]
			}
		}
	}
	t.pin(t.ranges)
	return !t.gone
}

// sigreturn is the end of a signal handler: the kernel reads back what it has
// written to the stack.
func (t *task) sigreturn(tracee.Call) {
	sp := addr(t.at.Registers().SP)
	if !t.stack([]mem.Range{{Start: sp - 8, End: sp + frameSize}}, false) {
		return
	}
	// The stack for handlers becomes again what it was before the signal: the frame
	// has it, in its ucontext behind flags and link.
	var b [sizeofStack]byte
	if t.sp.Load(sp+ucontext+16, b[:]) == len(b) {
		t.altStack(b[:])
	}
	t.resume(0)
}
