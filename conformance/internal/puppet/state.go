// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package puppet

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// State is what a thread is at.
type State uint8

// States of a thread.
const (
	// Running: it runs or is about to, so look again.
	Running State = iota
	// Idle: its last command is done.
	Idle
	// InFault: it sleeps in a fault that a userfaultfd has to resolve, and
	// the message about it is queued.
	InFault
	// InEvent: it sleeps until an event is read.
	InEvent
	// Asleep: it sleeps in something else.
	Asleep
	// Gone: it has ended.
	Gone
)

// String returns the name of s in lower case.
func (s State) String() string {
	return [...]string{"running", "idle", "in a fault", "in an event", "asleep", "gone"}[s]
}

// State returns what the thread is at. A sleeping state is no guess: the
// kernel names a function only for a task that is off every processor's
// queue, and one that was woken is on a queue before the wake-up returns.
func (t *Thread) State() State {
	if t.slot.finished() {
		return Idle
	}
	if eyes := t.proc.area.eyes; eyes != nil {
		if s, held := eyes.state(t.TID()); held {
			return s
		}
	}
	wchan, letter := t.look()
	// The command may have ended between the two looks, and what we saw be
	// the sleep of an idle thread.
	switch {
	case t.slot.finished():
		return Idle
	case letter == 't' || letter == 'T':
		return Running // stopped by who traces it, for a moment
	case letter == 0 || letter == 'Z' || letter == 'X':
		return Gone
	case letter == 'R' || wchan == "" || wchan == "0" || strings.HasPrefix(wchan, "futex"):
		return Running
	case wchan == "handle_userfault":
		return InFault
	case strings.Contains(wchan, "userfault") && letter == 'D':
		return InEvent
	}
	return Asleep
}

// look reads the function that the thread sleeps in and the letter of its
// state, zero if it is gone.
func (t *Thread) look() (wchan string, letter byte) {
	dir := fmt.Sprintf("/proc/%d/task/%d/", t.proc.pid, t.slot.tid)
	w, err1 := os.ReadFile(dir + "wchan")
	b, err2 := os.ReadFile(dir + "stat")
	// The command in field 2 may hold parentheses.
	i := bytes.LastIndexByte(b, ')')
	if err1 != nil || err2 != nil || i < 0 || i+2 >= len(b) {
		return "", 0
	}
	return string(w), b[i+2]
}

// Describe says what the thread is at, for a person.
func (t *Thread) Describe() string {
	state := t.State()
	wchan, letter := t.look()
	if letter == 0 {
		letter = '-'
	}
	return fmt.Sprintf("%v (thread %d, state %c, in %q)", state, t.slot.tid, letter, wchan)
}
