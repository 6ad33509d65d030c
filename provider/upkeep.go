// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/internal/sysargs"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
)

// upkeep is what must be known of a thread whose memory we manage, because the
// kernel uses it where no page can be brought in: a missing one would kill the
// program.
type upkeep struct {
	// pins are the pages of the call that the thread is in.
	pins []mem.Page
	// alts are stacks for signal handlers of sigaltstack(2), the newest first. The end
	// of a handler brings back the one of before it, so that any may count until we see
	// where handlers end: from then on there is one.
	alts []mem.Range
	// rseq is the area of rseq(2), which the kernel writes to whenever it likes.
	rseq mem.Range
	// clear is the word that the kernel clears at the thread's end, for
	// pthread_join(3).
	clear mem.Addr
	// interrupted is the call that restart_syscall(2) goes on with.
	interrupted tracee.Call
	piece       piece
}

// pin keeps the pages of ranges where they are, and no longer those that were
// kept before.
func (t *task) pin(ranges []sysargs.Range) {
	t.unpin()
	for _, r := range ranges {
		t.own.pins = t.sp.pin(t.own.pins, r.Range)
	}
}

// pin keeps the pages of r where they are, and adds them to pins, by which they are
// to be let go.
func (sp *space) pin(pins []mem.Page, r mem.Range) []mem.Page {
	m := sp.managed
	if m == nil {
		return pins
	}
	for _, g := range sp.guarded {
		part := g.Intersect(r)
		for a := part.Start; a < part.End; a = a.Down() + mem.PageSize {
			m.pins[a.Page()]++
			pins = append(pins, a.Page())
		}
	}
	return pins
}

func (t *task) unpin() {
	if m := t.sp.managed; m != nil {
		for _, pg := range t.own.pins {
			m.unpin(pg)
		}
	}
	t.own.pins = t.own.pins[:0]
}

func (m *managed) unpin(pg mem.Page) {
	if m.pins[pg]--; m.pins[pg] <= 0 {
		delete(m.pins, pg)
	}
}

// pinFor keeps the pages of r until the thread ends.
func (m *managed) pinFor(r mem.Range) {
	for pg := r.Start.Page(); !r.Empty() && pg <= (r.End-1).Page(); pg++ {
		m.pins[pg]++
	}
}

// unpinned returns the first part of r that nobody needs.
func (sp *space) unpinned(r mem.Range) mem.Range {
	for a := r.Start; a < r.End; a += mem.PageSize {
		if sp.managed.pins[a.Page()] > 0 {
			return mem.Range{Start: r.Start, End: a}
		}
	}
	return r
}

// doubt makes all threads of a space but one unsure, and has those that run stop
// for a moment. Of those that wait in a call the kernel tells which.
func (p *Provider) doubt(sp *space, stopped *tracee.Thread) {
	for _, pr := range sp.ts.Processes() {
		for _, th := range pr.Threads() {
			if t := p.tasks[th]; t != nil {
				sp.managed.pinFor(t.own.rseq)
			}
			if th == stopped {
				continue
			}
			tid := th.Tid()
			sp.managed.unsure[tid] = struct{}{}
			if procmem.Running(pr.Pid(), tid) {
				th.Interrupt(func() { delete(sp.managed.unsure, tid) })
			}
		}
	}
}

// sure reports whether the calls of all threads are known.
func (sp *space) sure() bool {
	m := sp.managed
	if len(m.unsure) == 0 {
		return true
	}
	for _, pr := range sp.ts.Processes() {
		for _, th := range pr.Threads() {
			if _, open := m.unsure[th.Tid()]; open && sp.resolve(pr, th) {
				delete(m.unsure, th.Tid())
			}
		}
	}
	// The rest has ended, or runs.
	for tid := range m.unsure {
		if unix.Tgkill(sp.ts.Pid(), tid, 0) == unix.ESRCH && !sp.has(tid) {
			delete(m.unsure, tid)
		}
	}
	return len(m.unsure) == 0
}

func (sp *space) has(tid int) bool {
	for _, pr := range sp.ts.Processes() {
		for _, th := range pr.Threads() {
			if th.Tid() == tid {
				return true
			}
		}
	}
	return false
}

// resolve finds out in which call a thread waits. It reports false if it runs.
func (sp *space) resolve(pr *tracee.Process, th *tracee.Thread) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/syscall", pr.Pid(), th.Tid()))
	if err != nil {
		return os.IsNotExist(err)
	}
	f := bytes.Fields(b)
	if len(f) == 0 || string(f[0]) == "running" {
		return false
	}
	nr, err := strconv.Atoi(string(f[0]))
	if err != nil || nr < 0 || len(f) < 7 {
		return err == nil // in no call: a fault, or a stop
	}
	c := tracee.Call{Nr: uintptr(nr), Native: true}
	for i := range c.Args {
		v, err := strconv.ParseUint(string(f[i+1]), 0, 64)
		if err != nil {
			return false
		}
		c.Args[i] = uintptr(v)
	}
	t := sp.p.task(th)
	t.ranges = sysargs.Ranges(t.ranges[:0], c.Nr, c.Args, sp.Load)
	t.alsoUses(c)
	t.pin(t.ranges)
	return true
}

// alsoUses adds to t.ranges what a call uses that sysargs does not know.
func (t *task) alsoUses(c tracee.Call) {
	switch c.Nr {
	case unix.SYS_IOCTL, unix.SYS_PRCTL:
		t.blind(c)
		return
	case unix.SYS_RESTART_SYSCALL:
		if was := t.own.interrupted; was.Args == c.Args {
			t.ranges = sysargs.Ranges(t.ranges, was.Nr, was.Args, t.sp.Load)
		} else {
			t.blind(c)
		}
		return
	case unix.SYS_RSEQ:
		// From then on it stays: see used.
		t.ranges = append(t.ranges, sysargs.Range{Range: mem.MakeRange(addr(c.Args[0]), uint64(c.Args[1])), Write: true})
	}
	if slices.Contains(rareCalls, c.Nr) {
		t.blind(c)
	}
}

// deeper makes present what a failed call may have looked for behind pointers in
// what its arguments point to. It reports whether there was anything.
func (t *task) deeper(c tracee.Call) bool {
	if t.sp.managed == nil || t.calls.tries > 2 {
		return false
	}
	from := c.Args[:]
	switch {
	case c.Nr == unix.SYS_IOCTL:
		from = c.Args[2:3]
	case c.Nr == unix.SYS_SETSOCKOPT, c.Nr == unix.SYS_PRCTL, slices.Contains(rareCalls, c.Nr):
	default:
		return false
	}
	t.ranges = t.ranges[:0]
	t.guess(from)
	var behind []uintptr
	for _, a := range from {
		var arg [256]byte
		n := t.sp.Load(addr(a), arg[:])
		for i := 0; i+8 <= n; i += 8 {
			behind = append(behind, uintptr(binary.LittleEndian.Uint64(arg[i:])))
		}
	}
	t.guess(behind)
	t.pin(t.ranges)
	return t.lacks(nil) && t.hold()
}

// hold brings in and keeps the pages of t.ranges, as far as they can be had. It
// reports whether the thread is still there.
func (t *task) hold() bool {
	t.pin(t.ranges)
	for !t.gone && t.lacks(nil) && t.lacks(t.bring) {
	}
	return !t.gone
}

// note has a thread make a call of which something is remembered.
func (t *task) note(c tracee.Call) {
	t.listen(c)
	if t.run() {
		t.used(c)
		t.resume(0)
	}
}

// erestartblock is what a call comes to that restart_syscall(2) goes on with.
const erestartblock = 516

// used takes note of a call that has been made.
func (t *task) used(c tracee.Call) {
	t.unpin()
	if t.p.hooks == nil {
		return
	}
	if t.call.Errno == erestartblock {
		if c.Nr != unix.SYS_RESTART_SYSCALL {
			t.own.interrupted = c
		}
		return
	}
	if t.call.Errno != 0 {
		return
	}
	switch c.Nr {
	case unix.SYS_SIGALTSTACK:
		if c.Args[0] != 0 {
			t.altStack(t.said[:])
		}
	case unix.SYS_RSEQ:
		t.forgetRseq()
		if c.Args[2]&1 == 0 { // not RSEQ_FLAG_UNREGISTER
			t.own.rseq = mem.MakeRange(addr(c.Args[0]), uint64(c.Args[1]))
			if m := t.sp.managed; m != nil {
				m.pinFor(t.own.rseq)
			}
		}
	case unix.SYS_MMAP:
		t.growsDown(c)
	case unix.SYS_SET_TID_ADDRESS:
		t.own.clear = addr(c.Args[0])
	case unix.SYS_RT_SIGACTION:
		if unix.Signal(c.Args[0]) == unix.SIGSEGV && c.Args[1] != 0 {
			t.sp.action.set(t.said[:])
		}
	}
}

// listen reads what a call is about to tell the kernel. It may write what was before
// to the same place.
func (t *task) listen(c tracee.Call) {
	switch c.Nr {
	case unix.SYS_SIGALTSTACK:
		t.sp.Load(addr(c.Args[0]), t.said[:sizeofStack])
	case unix.SYS_RT_SIGACTION:
		t.sp.Load(addr(c.Args[1]), t.said[:])
	}
}

// sizeofStack is that of stack_t: the address, flags, the size.
const sizeofStack = 24

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

func (t *task) forgetRseq() {
	if m := t.sp.managed; m != nil && !t.own.rseq.Empty() {
		for pg := t.own.rseq.Start.Page(); pg <= (t.own.rseq.End - 1).Page(); pg++ {
			m.unpin(pg)
		}
	}
	t.own.rseq = mem.Range{}
}

// restart goes on with a call that was interrupted. Its buffers are the same.
func (t *task) restart(c tracee.Call) {
	was := t.own.interrupted
	if was.Args != c.Args {
		// It was interrupted before we saw calls. The registers are still its own.
		was = c
	}
	t.ranges = sysargs.Ranges(t.ranges[:0], was.Nr, was.Args, t.sp.Load)
	t.alsoUses(was)
	if !t.hold() || !t.run() {
		return
	}
	t.used(was)
	t.resume(0)
}

// exit is the end of a thread. By the time that the kernel clears the word for
// pthread_join(3) it gets no page any more.
func (t *task) exit(tracee.Call) {
	if t.own.clear != 0 {
		// The head of the list of robust futexes stands beside it in all C
		// libraries.
		t.ranges = append(t.ranges[:0], sysargs.Range{Range: mem.MakeRange(t.own.clear, 64), Write: true})
		if !t.hold() {
			return
		}
	}
	t.resume(0)
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

// vforked takes over what a thread has from the one that made it in the same
// address space.
func (p *Provider) vforked(child *tracee.Process) {
	by := child.By()
	if p.hooks == nil || by == nil || p.tasks[by] == nil {
		return
	}
	for _, th := range child.Threads() {
		p.task(th).own.alts = slices.Clone(p.tasks[by].own.alts)
	}
}

// inheritUpkeep has the memory of a child be managed like its parent's. What the
// kernel was told for the thread that made it holds for the child's as well, and is
// needed later if the parent's memory is not managed yet.
func (c *space) inheritUpkeep(parent *space, child *tracee.Process) {
	c.growing = append(c.growing, parent.growing...)
	if m := parent.managed; m != nil {
		c.managed = &managed{pins: make(map[mem.Page]int), unsure: make(map[int]struct{})}
		c.managed.guards = append(c.managed.guards, m.guards...)
		c.seals = parent.seals
	}
	by := child.By()
	if by == nil || c.p.tasks[by] == nil || c.p.hooks == nil {
		return
	}
	for _, th := range child.Threads() {
		t := c.p.task(th)
		from := &c.p.tasks[by].own
		t.own.alts, t.own.rseq = slices.Clone(from.alts), from.rseq
		if c.managed != nil {
			c.managed.pinFor(t.own.rseq)
		}
	}
}
