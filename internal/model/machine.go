// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/vkernel"
)

const (
	// budget is how long the machine may take to come to rest: a step is some
	// microseconds.
	budget = 10 * time.Second
	// hugePages is the pool of the machine; memory only where it is written.
	hugePages = 64

	// Every task has a place for arguments, buffers and sources of its own,
	// which the timeline does not show.
	scratchBase mem.Addr = 0x7000_0000_0000
	scratchGap           = 32 << 20
	scratchBuf           = 1 << 16 // offset of what is read
	scratchSrc           = 1 << 21 // offset of what is copied
)

// machine plays one script on one profile. The player's goroutine alone
// touches it, but for the map of tasks by thread, which does not change while
// a call is under way.
type machine struct {
	script  *Script
	profile *vkernel.Profile
	k       *vkernel.Kernel
	procs   []*proc
	tasks   []*task
	holding atomic.Pointer[map[*vkernel.Thread]*task]
	fds     map[string]int
	step    *step
	entry   *Entry
	last    result
	asked   *task // whose call last is the result of
	forkFD  int   // of the last FORK message; -1 if there was none
}

// result is what the last call ended with, if it has ended.
type result struct {
	call    string // "" while it has not ended
	errno   syscall.Errno
	value   int64
	read    []string // messages
	revents string   // of poll
}

type proc struct {
	name   string
	p      *vkernel.Process
	admin  *vkernel.Thread // prepares arguments; never sleeps
	layout []string
}

// failure is thrown to end a run.
type failure struct{ why string }

func (m *machine) fail(format string, args ...any) {
	panic(failure{fmt.Sprintf(format, args...)})
}

func (m *machine) say(e Event) { m.entry.Events = append(m.entry.Events, e) }

// Play runs the script on a profile. Its error is a *ScriptError, of the step
// that could not be done or does not end as the script expects; the run up to
// there comes with it.
func Play(s *Script, profile *vkernel.Profile) (run *Run, err error) {
	run = &Run{Profile: profile.Name(), Steps: []*Entry{}}
	m := &machine{script: s, profile: profile, fds: map[string]int{}, forkFD: -1}
	m.k = vkernel.New(profile, vkernel.WithHugePages(hugePages), vkernel.WithHooks(vkernel.Hooks{Reach: m.reach}))
	defer m.end()
	defer func() {
		switch r := recover().(type) {
		case nil:
		case failure:
			err = &ScriptError{s.Name, m.step.line, profile.Name(), r.why}
			run.Error = err.Error()
		default:
			panic(r)
		}
	}()
	m.step = &step{}
	m.addTask(Main, m.addProc(Main, m.k.NewProcess(vkernel.ProcessOptions{Privileged: true})))
	for i := range s.steps {
		st := &s.steps[i]
		if st.only != "" && st.only != profile.Name() {
			continue
		}
		m.step = st
		m.entry = &Entry{Line: st.line, Text: st.text, Comment: st.comment, expects: st.expect != nil, Events: []Event{}}
		if !st.verb.looks {
			m.entry.Thread = st.thread
		}
		run.Steps = append(run.Steps, m.entry)
		m.perform(st)
	}
	return run, nil
}

// perform does a step and lets everybody come to rest after it.
func (m *machine) perform(st *step) {
	if st.verb.looks {
		st.verb.run(m, nil, st)
	} else {
		t := m.task(st.thread)
		switch {
		case t.busy:
			m.fail("%s still sleeps in its call of line %d", t.name, t.line)
		case t.proc.p.Dead():
			m.fail("the process of %s is dead", t.name)
		}
		st.verb.run(m, t, st)
	}
	m.settle()
	m.layouts()
}

// end lets everybody go: the processes die, and so does every call.
func (m *machine) end() {
	m.holding.Store(nil)
	for _, p := range m.procs {
		p.p.Kill()
	}
	for _, t := range m.tasks {
		// One may come to its gate only now.
		for !t.done.Load() {
			t.release()
			runtime.Gosched()
		}
	}
}

// task returns the thread of a name, which the script has introduced, though
// perhaps in a step that this profile does not have.
func (m *machine) task(name string) *task {
	for _, t := range m.tasks {
		if t.name == name {
			return t
		}
	}
	m.fail("thread %s is not there: on this profile nothing has made it", name)
	return nil
}

// fd returns the number of a descriptor.
func (m *machine) fd(op operand) int {
	n, ok := m.fds[op.name]
	if !ok {
		m.fail("descriptor %s is not open: on this profile nothing has made it", op.name)
	}
	return n
}

func (m *machine) addProc(name string, p *vkernel.Process) *proc {
	q := &proc{name: name, p: p, admin: p.NewThread()}
	m.procs = append(m.procs, q)
	return q
}

func (m *machine) addTask(name string, p *proc) *task {
	t := &task{name: name, proc: p, th: p.p.NewThread(), gate: make(chan struct{}, 1)}
	t.done.Store(true)
	t.scratch = scratchBase + mem.Addr(len(m.tasks)*scratchGap)
	m.tasks = append(m.tasks, t)
	// A child has its parent's places for arguments mapped already, but none
	// at its own.
	_, errno := p.admin.Mmap(t.scratch, scratchGap/2, vkernel.ProtRead|vkernel.ProtWrite,
		vkernel.MapPrivate|vkernel.MapAnonymous|vkernel.MapFixed, -1, 0)
	if errno != 0 {
		m.fail("no memory for arguments: %s", vkernel.ErrnoName(errno))
	}
	all := map[*vkernel.Thread]*task{}
	for _, t := range m.tasks {
		all[t.th] = t
	}
	m.holding.Store(&all)
	return t
}

// rest returns when every thread is idle, asleep or held. Two looks in a row
// have to find it so: what wakes somebody was awake itself at the first.
func (m *machine) rest() {
	deadline := time.Now().Add(budget)
	for calm := 0; calm < 2; calm++ {
		for _, t := range m.tasks {
			for t.state() == running {
				calm = -1
				runtime.Gosched()
				if time.Now().After(deadline) {
					m.fail("%s does not come to rest", t.name)
				}
			}
		}
	}
}

// settle lets everybody come to rest and tells what became of each.
func (m *machine) settle() {
	for {
		m.rest()
		for _, t := range m.tasks {
			m.tell(t)
		}
		next := m.held()
		if next == nil {
			return
		}
		next.told = running
		next.release()
	}
}

func (m *machine) held() *task {
	for _, t := range m.tasks {
		if t.state() == held {
			return t
		}
	}
	return nil
}

// place names an address as the script would.
func (m *machine) place(a mem.Addr) string {
	for _, r := range m.script.regions {
		if a < r.base || a >= r.base+regionGap {
			continue
		}
		n := uint64(a - r.base)
		if off := n % r.unit; off != 0 {
			return fmt.Sprintf("%s[%d]+%#x", r.name, n/r.unit, off)
		}
		return fmt.Sprintf("%s[%d]", r.name, n/r.unit)
	}
	return a.String()
}

// span names a range as the script would.
func (m *machine) span(r mem.Range) string {
	for _, g := range m.script.regions {
		if r.Start >= g.base && r.End <= g.base+regionGap {
			from, to := uint64(r.Start-g.base)/g.unit, uint64(r.End-g.base)/g.unit
			if to == from+1 {
				return fmt.Sprintf("%s[%d]", g.name, from)
			}
			return fmt.Sprintf("%s[%d:%d]", g.name, from, to)
		}
	}
	return r.String()
}

// trimmed is the content of memory as a text, "" if it is all zeros.
func trimmed(b []byte) string { return strings.TrimRight(string(b), "\x00") }
