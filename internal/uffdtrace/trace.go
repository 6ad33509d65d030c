// SPDX-License-Identifier: Apache-2.0

package uffdtrace

import (
	"io"
	"sync"
	"time"
)

// Trace is a Sink that writes a line for each event, and counts. Its methods
// may be called from anywhere.
type Trace struct {
	mu   sync.Mutex
	w    io.Writer         // protected by mu
	json bool              // immutable
	err  error             // first error of w; protected by mu
	seq  uint64            // faults read so far; protected by mu
	open map[File]*waiting // protected by mu
	stat stats             // protected by mu
}

// New returns a Trace that writes to w: lines of text, or with asJSON an object
// a line. Every event is one Write.
func New(w io.Writer, asJSON bool) *Trace {
	return &Trace{w: w, json: asJSON, open: make(map[File]*waiting), stat: newStats()}
}

// write writes a line. After an error nothing more is written, and Finish
// returns it.
//
// Preconditions: t.mu is held.
func (t *Trace) write(line string) {
	if t.err == nil && line != "" {
		_, t.err = io.WriteString(t.w, line)
	}
}

// Call implements [Sink].
func (t *Trace) Call(c *Call) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := c.effect()
	o := t.follow(c, &e)
	t.stat.call(c, &e, &o)
	if t.json {
		t.write(c.json(&o))
	} else {
		t.write(c.line(&o))
	}
}

// follow brings the waiting faults up to date.
//
// Preconditions: t.mu is held.
func (t *Trace) follow(c *Call, e *effect) (o outcome) {
	if c.File == 0 {
		return o
	}
	w := t.file(c.File)
	for _, f := range faultsOf(c, t.seq) {
		t.seq = f.seq
		if !w.add(f) {
			o.again = append(o.again, f)
		}
	}
	o.woken = w.end(e, c.End)
	return o
}

// file returns the faults of a File, which is counted when it is seen first.
//
// Preconditions: t.mu is held.
func (t *Trace) file(f File) *waiting {
	w := t.open[f]
	if w == nil {
		w = &waiting{}
		t.open[f] = w
		t.stat.files++
	}
	return w
}

// Descriptor implements [Sink].
func (t *Trace) Descriptor(d *Descriptor) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.file(d.File)
	if d.Last {
		// Who waits goes on, with what is there, and is woken by no call. The
		// entry stays, so that the File is not counted again.
		*w = waiting{}
	}
	if t.json {
		t.write(d.json())
	} else {
		t.write(d.line())
	}
}

// Process implements [Sink].
func (t *Trace) Process(p *Process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.Change == Started || p.Change == Forked {
		t.stat.processes++
	}
	if t.json {
		t.write(p.json())
	} else {
		t.write(p.line())
	}
}

// Note implements [Sink].
func (t *Trace) Note(n *Note) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stat.notes++
	if t.json {
		t.write(n.json())
	} else {
		t.write(n.line())
	}
}

// Finish writes the summary of a trace that took so long. It returns the first
// error that there was in writing, after which the trace has a hole.
func (t *Trace) Finish(elapsed time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stat.summary(elapsed)
	if t.json {
		t.write(s.json())
	} else {
		t.write(s.text())
	}
	return t.err
}
