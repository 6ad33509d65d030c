// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// Schema names the form in which a Timeline is written as JSON.
const Schema = "faultline/model/1"

// Timeline is what happened when a script was played on some profiles.
type Timeline struct {
	Schema string `json:"schema"`
	Script string `json:"script"`
	Runs   []*Run `json:"runs"`
}

// Run is what happened on one profile.
type Run struct {
	Profile string   `json:"profile"`
	Steps   []*Entry `json:"steps"`
	// Error is what went otherwise than expected, and ended the run.
	Error string `json:"error,omitempty"`
}

// Entry is a step and all that came of it, in this order.
type Entry struct {
	Line int    `json:"line"`
	Text string `json:"text"`
	// Comment is what the script says before the step.
	Comment []string `json:"comment,omitempty"`
	Thread  string   `json:"thread,omitempty"`
	Events  []Event  `json:"events"`

	expects bool // nothing happens in it
}

// Kind says what an event is about.
type Kind string

// Kinds of events.
const (
	KindFault   Kind = "fault"   // a thread meets a page that is not there, and sleeps
	KindSleep   Kind = "sleep"   // a thread sleeps for another reason
	KindWoken   Kind = "woken"   // a thread goes on
	KindAccess  Kind = "access"  // a touch of memory has ended
	KindCall    Kind = "call"    // a system call has ended
	KindMessage Kind = "message" // it has read this
	KindLayout  Kind = "layout"  // the VMAs of a process have changed
	KindShow    Kind = "show"    // what a look at the machine shows
)

// Event is one thing that happened. Text says all of it; the rest is for
// programs.
type Event struct {
	Kind    Kind     `json:"kind"`
	Thread  string   `json:"thread,omitempty"`
	Text    string   `json:"text"`
	Addr    string   `json:"addr,omitempty"`
	Access  string   `json:"access,omitempty"` // read or write
	Mode    string   `json:"mode,omitempty"`   // user or kernel
	Errno   string   `json:"errno,omitempty"`
	Result  *int64   `json:"result,omitempty"`
	Signal  string   `json:"signal,omitempty"`
	Value   *string  `json:"value,omitempty"`
	Process string   `json:"process,omitempty"`
	Before  []string `json:"before,omitempty"` // VMAs that are no more
	After   []string `json:"after,omitempty"`  // and those that are new
}

// lines is how the event looks.
func (e *Event) lines() []string {
	if e.Kind != KindLayout {
		return strings.Split(e.Text, "\n")
	}
	out := []string{e.Text}
	for _, l := range e.Before {
		out = append(out, "  before  "+l)
	}
	for _, l := range e.After {
		out = append(out, "  after   "+l)
	}
	return out
}

func (e *Entry) lines() (out []string) {
	for i := range e.Events {
		out = append(out, e.Events[i].lines()...)
	}
	return out
}

// Write prints the timeline for people. What several profiles answer alike
// stands there once; where they differ, each has its turn.
func (t *Timeline) Write(w io.Writer) error {
	var b strings.Builder
	names := make([]string, len(t.Runs))
	for i, r := range t.Runs {
		names[i] = r.Profile
	}
	fmt.Fprintf(&b, "%s on %s\n", t.Script, strings.Join(names, " and on "))
	for _, line := range t.stepLines() {
		t.writeStep(&b, line)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// stepLines are the lines of the script that any profile has come to.
func (t *Timeline) stepLines() (lines []int) {
	for _, r := range t.Runs {
		for _, e := range r.Steps {
			lines = append(lines, e.Line)
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

func (r *Run) step(line int) *Entry {
	for _, e := range r.Steps {
		if e.Line == line {
			return e
		}
	}
	return nil
}

// writeStep prints a step, unless it is an expectation: that holds, or the run
// ends with it and says so.
func (t *Timeline) writeStep(b *strings.Builder, line int) {
	said := make([][]string, len(t.Runs))
	differ := false
	var step *Entry
	for i, r := range t.Runs {
		if e := r.step(line); e != nil {
			said[i], step = e.lines(), e
		}
		differ = differ || !slices.Equal(said[i], said[0])
	}
	for i, c := range step.Comment {
		if i == 0 {
			b.WriteByte('\n')
		}
		b.WriteString(strings.TrimRight("# "+c, " ") + "\n")
	}
	if step.expects {
		return
	}
	fmt.Fprintf(b, "%3d  %s\n", line, step.Text)
	if !differ {
		for _, l := range said[0] {
			fmt.Fprintf(b, "       %s\n", l)
		}
		return
	}
	for i, r := range t.Runs {
		name := r.Profile
		if len(said[i]) == 0 && r.step(line) != nil {
			said[i] = []string{"nothing happens"}
		}
		for _, l := range said[i] {
			fmt.Fprintf(b, "  %10s | %s\n", name, l)
			name = ""
		}
	}
}
