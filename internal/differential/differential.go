// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/mem"
)

// Trace runs a script and returns what was seen, a line for each thing, those
// of an operation after its own line. The error is about the machinery, or
// says that a thread never came to rest; the trace up to there comes with it.
func Trace(b conformance.Backend, s Script) (trace []string, err error) {
	m, err := newMachine(b, s)
	if err != nil {
		return nil, err
	}
	defer func() {
		r := recover()
		if f, ok := r.(failure); ok {
			err, r = f.err, nil
		}
		trace = m.trace
		err = errors.Join(err, m.p.Close())
		if r != nil {
			panic(r)
		}
	}()
	for i, o := range s.Ops {
		m.say("%d %s", i, o)
		m.perform(o)
		m.layout()
	}
	m.finish()
	return m.trace, nil
}

// perform does one operation and lets the threads come to rest after it.
func (m *machine) perform(o Op) {
	switch o.Kind {
	case "wake", "protect", "unregister", "zeropage", "continue":
		if m.racing() {
			return
		}
	}
	waiting := m.waiting()
	handlers[o.Kind](m, o)
	switch o.Kind {
	case "wake", "protect", "unregister", "copy", "zeropage", "continue", "poison", "move", "close":
		// Who was woken without a page has queued anew, in any order.
		m.muddled = m.muddled || waiting > 1
	}
	m.settle()
}

// finish reads what there is to read, ends the children and closes
// everything, so that nobody has a reason to sleep, and tells what memory
// holds. If a descriptor is open all the same, since the child of a fork that
// does not end has it, the look at memory ends with a thread asleep: on both
// sides, or they differ.
func (m *machine) finish() {
	m.say("at the end")
	// Who has been told by one descriptor may go on to an event of another
	// that was read before. The child of a fork that does not end would keep
	// all descriptors open.
	for more := true; more; {
		for i := 0; i < len(m.fds); i++ { // reading may bring more
			if m.fds[i] != none {
				m.drain(i)
				m.settle()
			}
		}
		more = m.rounds < maxFDs && m.inEvent()
		m.rounds++
	}
	if m.waiting() > 0 && m.inEvent() {
		// That descriptor only children still have. Its end wakes both, and
		// whether a page is dropped before it is looked for is open.
		m.say("  an event and a fault wait for the same end")
		return
	}
	// Children have the descriptors too.
	for _, k := range m.kids {
		m.must(k.proc.Kill())
	}
	m.kids = nil
	m.settle()
	for i, fd := range m.fds {
		if fd != none {
			m.do(conformance.Close, fd)
			m.fds[i] = none
			m.settle()
		}
	}
	for i := range m.regions {
		r := &m.regions[i]
		low := r.below()
		vmas, err := m.p.Maps(low)
		m.must(err)
		for a := low.Start; a < low.End && len(vmas) > 0; a += mem.PageSize {
			if !m.tell("  below: ", a) {
				return
			}
		}
		for a := r.all.Start; a < r.all.End; a += mem.Addr(r.kind.PageSize()) {
			if !m.tell("  ", a) || r.file != none && !m.tell("  its alias: ", r.alias.Start+(a-r.all.Start)) {
				return
			}
		}
	}
}

// tell notes what the start of a page holds. It reports false if the control
// thread sleeps in a fault there, and can do no more.
func (m *machine) tell(what string, a mem.Addr) bool {
	const n = 72
	m.control.Start(conformance.CopyMem, [6]uint64{uint64(m.scratch), uint64(a), n})
	for deadline := time.Now().Add(budget); m.control.State() != conformance.Idle; m.control.Wait(time.Millisecond) {
		if m.control.State() == conformance.InFault {
			m.say("%s%v: asleep in a fault", what, a)
			return false
		}
		if time.Now().After(deadline) {
			m.fail("the look at %v does not end: %s", a, m.control.Describe())
		}
	}
	if r := m.control.Result(); r.Signal != 0 {
		m.say("%s%v: signal %d", what, a, r.Signal)
		return true
	}
	b := make([]byte, n)
	m.p.Peek(m.scratch, b)
	m.say("%s%v: %q", what, a, strings.TrimRight(string(b), "\x00"))
	return true
}

// Difference is where two sides part.
type Difference struct {
	Script Script
	// Line is the index of the first line that differs.
	Line int
	A, B []string // traces
	Errs [2]error
}

// String shows the script and the traces around the difference.
func (d *Difference) String() string {
	var b strings.Builder
	b.WriteString(d.Script.String())
	for i := max(0, d.Line-12); i < d.Line; i++ {
		fmt.Fprintf(&b, "   %s\n", d.A[i])
	}
	for side, trace := range [][]string{d.A, d.B} {
		for i := d.Line; i < min(len(trace), d.Line+4); i++ {
			fmt.Fprintf(&b, "%c: %s\n", 'A'+side, trace[i])
		}
		if d.Errs[side] != nil {
			fmt.Fprintf(&b, "%c: %v\n", 'A'+side, d.Errs[side])
		}
	}
	return b.String()
}

// Compare runs a script on both sides and returns where they differ, or nil.
func Compare(a, b conformance.Backend, s Script) *Difference {
	d := &Difference{Script: s}
	d.A, d.Errs[0] = Trace(a, s)
	d.B, d.Errs[1] = Trace(b, s)
	for d.Line < min(len(d.A), len(d.B)) && d.A[d.Line] == d.B[d.Line] {
		d.Line++
	}
	if d.Line == len(d.A) && d.Line == len(d.B) && d.Errs[0] == nil && d.Errs[1] == nil {
		return nil
	}
	return d
}

// Shrink returns a smaller script that still differs, together with how.
// try runs a script and returns nil if both sides agree. It takes what it
// has when ctx is done: where a thread never comes to rest, each run is long.
func Shrink(ctx context.Context, d *Difference, try func(Script) *Difference) *Difference {
	differs := func(s Script) *Difference {
		if ctx.Err() != nil {
			return nil
		}
		return try(s)
	}
	// What comes after the difference is of no use.
	for n := len(d.Script.Ops) / 2; n > 0; {
		cut := false
		for i := 0; i+n <= len(d.Script.Ops); {
			s := d.Script
			s.Ops = append(append([]Op(nil), s.Ops[:i]...), s.Ops[i+n:]...)
			if smaller := differs(s); smaller != nil {
				d, cut = smaller, true
				continue
			}
			i += n
		}
		if n > 1 || !cut {
			n /= 2
		}
	}
	for i := range d.Script.Ops {
		for k := range numArgs {
			if d.Script.Ops[i].Arg[k] == 0 {
				continue
			}
			s := d.Script
			s.Ops = append([]Op(nil), s.Ops...)
			s.Ops[i].Arg[k] = 0
			if smaller := differs(s); smaller != nil {
				d = smaller
			}
		}
	}
	return d
}
