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
	// robust is the head of its list of robust futexes, which the kernel goes through
	// at the thread's end, whatever that is: it stays.
	robust mem.Range
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
				sp.managed.pinFor(t.own.robust)
			}
			if th == stopped {
				continue
			}
			tid := th.Tid()
			sp.managed.unsure[tid] = struct{}{}
			// A fork that we have not seen begin copies the space as it is by then.
			nr, asleep := procmem.Call(pr.Pid(), tid)
			if procmem.Running(pr.Pid(), tid) || asleep && slices.Contains(forkCalls, nr) {
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

// resolve finds out in which call a thread waits. It reports false if it runs, or copies
// its memory: nothing must leave before we know of the copy.
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
	if slices.Contains(forkCalls, c.Nr) && !t.sharesMemory(c) {
		return false
	}
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
	case unix.SYS_SET_ROBUST_LIST:
		t.ranges = append(t.ranges, sysargs.Range{Range: mem.MakeRange(addr(c.Args[0]), sizeofRobust), Write: true})
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
		area := mem.Range{}
		if c.Args[2]&1 == 0 { // not RSEQ_FLAG_UNREGISTER
			area = mem.MakeRange(addr(c.Args[0]), uint64(c.Args[1]))
		}
		t.keep(&t.own.rseq, area)
	case unix.SYS_SET_ROBUST_LIST:
		t.keep(&t.own.robust, mem.MakeRange(addr(c.Args[0]), sizeofRobust))
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

// keep has r stay in memory as long as the thread is there, and no longer what was
// kept in its place.
func (t *task) keep(kept *mem.Range, r mem.Range) {
	was := *kept
	*kept = r
	m := t.sp.managed
	if m == nil {
		return
	}
	m.pinFor(r)
	for pg := was.Start.Page(); !was.Empty() && pg <= (was.End-1).Page(); pg++ {
		m.unpin(pg)
	}
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

// exit is the end of a thread, or of all. By the time that the kernel clears the word
// for pthread_join(3), and goes through the list of robust futexes, it gets no page any
// more.
func (t *task) exit(tracee.Call) {
	t.ranges = t.ranges[:0]
	if t.own.clear != 0 {
		t.ranges = append(t.ranges, sysargs.Range{Range: mem.MakeRange(t.own.clear, 4), Write: true})
	}
	if !t.hold() {
		return
	}
	if head := t.own.robust; !head.Empty() && !t.robust(head.Start) {
		return
	}
	t.resume(0)
}

const (
	sizeofRobust = 24   // struct robust_list_head: the first, the offset of the futex, one that is being taken
	mostRobust   = 2048 // that the kernel looks at
)

// robust brings in and keeps the futexes that the thread holds. Each has a pointer to
// the next one, whose lowest bit is a flag, and the word where the head says.
func (t *task) robust(head mem.Addr) bool {
	var h [sizeofRobust]byte
	if t.sp.Load(head, h[:]) < len(h) {
		return true // the kernel cannot read it, either
	}
	word := func(i int) mem.Addr { return mem.Addr(binary.LittleEndian.Uint64(h[8*i:])) }
	next, offset, pending := word(0)&^1, word(1), word(2)&^1
	add := func(entry mem.Addr) bool {
		for _, r := range []mem.Range{mem.MakeRange(entry, 8), mem.MakeRange(entry+offset, 4)} {
			if entry != 0 && r.Start < r.End {
				t.ranges = append(t.ranges, sysargs.Range{Range: r, Write: true})
			}
		}
		return t.hold()
	}
	for n := 0; next != head && n < mostRobust; n++ {
		if !add(next) {
			return false
		}
		var b [8]byte
		if t.sp.Load(next, b[:]) < len(b) {
			break
		}
		next = mem.Addr(binary.LittleEndian.Uint64(b[:])) &^ 1
	}
	return add(pending)
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
