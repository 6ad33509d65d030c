// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"sync/atomic"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/vkernel"
)

// state is what a task is doing.
type state int

const (
	idle state = iota
	running
	held // by a hook, right after it was woken
	inFault
	inEvent
	inRead
)

// task is a thread of a script, and the goroutine that is in it during a
// call. Fields without a word on it are the player's.
type task struct {
	name    string
	proc    *proc
	th      *vkernel.Thread
	scratch mem.Addr

	busy  bool
	line  int // of the call
	told  state
	write bool // the access, or what the call does to memory
	mode  string
	out   outcome

	// ended is closed after report was set, when the call has ended.
	ended  chan struct{}
	report func() // tells how it ended
	done   atomic.Bool

	gate     chan struct{} // a token lets it go on
	atGate   atomic.Bool
	fromWait atomic.Bool   // it was woken from an event, not from a fault
	addr     atomic.Uint64 // of its last fault
}

// outcome is how the last access or call of a task has ended.
type outcome struct {
	text   string // content that was loaded
	loaded bool
	errno  string // or the name of a signal; "" if all is well
}

func (t *task) state() state {
	if t.done.Load() {
		return idle
	}
	if t.atGate.Load() {
		return held
	}
	switch t.th.State() {
	case vkernel.InFault:
		return inFault
	case vkernel.InEvent:
		return inEvent
	case vkernel.InRead, vkernel.InPoll:
		return inRead
	}
	return running
}

// begin starts a call. What the function returns is called by the player,
// once the call has ended.
func (m *machine) begin(t *task, call func() (report func())) {
	t.busy, t.line, t.told = true, m.step.line, running
	t.mode = "kernel"
	ended := make(chan struct{})
	t.ended = ended
	t.done.Store(false)
	go func() {
		t.report = call()
		t.done.Store(true)
		close(ended)
	}()
}

// release lets a held task go on.
func (t *task) release() {
	// The order matters: nobody may take it for held after its token is there.
	if t.atGate.Swap(false) {
		t.gate <- struct{}{}
	}
}

// reach is the hook. It notes where a fault is, and holds who was woken until
// the player lets it go on.
func (m *machine) reach(ph vkernel.Phase, th *vkernel.Thread, a mem.Addr) {
	tasks := m.holding.Load()
	if tasks == nil {
		return
	}
	t := (*tasks)[th]
	if t == nil {
		return
	}
	switch ph {
	case vkernel.PhaseChecked:
		t.addr.Store(uint64(a))
	case vkernel.PhaseWoken, vkernel.PhaseEventRead:
		t.fromWait.Store(ph == vkernel.PhaseEventRead)
		t.atGate.Store(true)
		<-t.gate
	}
}

// tell says what became of a task since it was told of last.
func (m *machine) tell(t *task) {
	now := t.state()
	if now == t.told || now == idle && !t.busy {
		return
	}
	t.told = now
	switch now {
	case idle:
		t.busy = false
		<-t.ended
		t.report()
	case held:
		what := "is woken"
		if t.fromWait.Load() {
			what = "goes on: its event was read, or nobody is there to read it"
		}
		m.say(Event{Kind: KindWoken, Thread: t.name, Text: t.name + " " + what})
	case inFault:
		a := mem.Addr(t.addr.Load())
		access := "read"
		if t.write {
			access = "write"
		}
		m.say(Event{Kind: KindFault, Thread: t.name, Addr: a.String(), Access: access, Mode: t.mode,
			Text: fmt.Sprintf("%s faults on %s (%v): %s, %s mode; it sleeps", t.name, m.place(a), a, access, t.mode)})
	case inEvent:
		m.say(Event{Kind: KindSleep, Thread: t.name, Text: t.name + " sleeps until its event is read"})
	case inRead:
		m.say(Event{Kind: KindSleep, Thread: t.name, Text: t.name + " sleeps until there is something to read"})
	}
}
