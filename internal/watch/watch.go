// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package watch

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/sys"
	"github.com/faultline-go/faultline/internal/uffdtrace"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
)

// Options say what to run and whom to tell.
type Options struct {
	Path string   // of the program's file
	Argv []string // with its name first
	Env  []string
	// Sink is called on one thread. The thread that has made a call is stopped
	// meanwhile, and no other event of the tree is handled.
	Sink uffdtrace.Sink
}

// Watch is a tree of processes that is being watched.
type Watch struct {
	tracer  *tracee.Tracer
	unrelay func() // ends the forwarding of signals
	started time.Time
}

// Start starts the program. The caller must Wait for it.
//
// If it fails the program has not run. The error is a [*tracee.StartError] if
// there is no such program.
func Start(o Options) (*Watch, error) {
	w := newWatcher(o.Sink)
	t, err := tracee.Start(tracee.Options{Path: o.Path, Argv: o.Argv, Env: o.Env, Handler: w})
	if err != nil {
		return nil, err
	}
	w.tracer = t
	unrelay := t.Relay()
	t.Continue()
	if w.failed != nil {
		<-t.Done()
		unrelay()
		return nil, w.failed
	}
	return &Watch{tracer: t, unrelay: unrelay, started: w.started}, nil
}

// Wait waits for the end of the whole tree. It returns how the program ended
// and how long all of it took. The error is the tracer's own: the tree has been
// killed for it.
func (w *Watch) Wait() (tracee.Status, time.Duration, error) {
	<-w.tracer.Done()
	elapsed := time.Since(w.started)
	s, err := w.tracer.Wait()
	w.unrelay()
	return s, elapsed, err
}

// watcher is told what happens in the tree. All of it belongs to the tracer's
// thread.
type watcher struct {
	sink    uffdtrace.Sink
	started time.Time
	tracer  *tracee.Tracer
	failed  error // why the program was not started; read after Continue

	procs    map[int]*process
	calls    map[*tracee.Thread]*call // that threads are in
	memory   *memory
	files    *registry
	baseline int  // filters that the program has inherited from us, -1 if not known
	passing  bool // a userfaultfd has been sent in a message
}

func newWatcher(sink uffdtrace.Sink) *watcher {
	return &watcher{
		sink: sink, started: time.Now(),
		procs: map[int]*process{}, calls: map[*tracee.Thread]*call{},
		memory: newMemory(), files: newRegistry(), baseline: -1,
	}
}

func (w *watcher) now() time.Duration { return time.Since(w.started) }

func (w *watcher) note(pid int, text string) {
	w.sink.Note(&uffdtrace.Note{At: w.now(), PID: pid, Text: text})
}

// add takes a descriptor into the table of p, in which task tid has it. It is a
// new number for f, or if that is 0 for the File that it turns out to be.
func (w *watcher) add(p *process, tid, fd int, f uffdtrace.File, by string) uffdtrace.File {
	if _, there := p.table.files[fd]; there {
		w.drop(p, fd, by) // it was closed in a way that we have not seen
	}
	if f == 0 {
		f = w.files.identify(tid, fd, w.procs)
	}
	p.table.files[fd] = f
	w.files.hold(f)
	w.sink.Descriptor(&uffdtrace.Descriptor{At: w.now(), PID: p.p.Pid(), FD: fd, File: f, By: by})
	return f
}

// drop takes a descriptor out of the table of p.
func (w *watcher) drop(p *process, fd int, by string) {
	f, there := p.table.files[fd]
	if !there {
		return
	}
	delete(p.table.files, fd)
	last := w.files.release(f)
	w.sink.Descriptor(&uffdtrace.Descriptor{At: w.now(), PID: p.p.Pid(), FD: fd, File: f, Closed: true, Last: last, By: by})
}

// Exec is tracee.Handler's.
func (w *watcher) Exec(p *tracee.Process, old *tracee.Space) {
	w.endCalls(p)
	if old == nil {
		w.start(p)
		return
	}
	pr := w.procs[p.Pid()]
	if pr == nil {
		return
	}
	if pr.table.users > 1 { // exec ends the sharing
		pr.table.users--
		pr.table = pr.table.copy()
		for _, f := range pr.table.files {
			w.files.hold(f)
		}
	}
	change := uffdtrace.Process{At: w.now(), PID: p.Pid(), Change: uffdtrace.Execed}
	for _, fd := range pr.table.numbers() {
		if isUserfaultfd(p.Pid(), fd) {
			change.Holds = append(change.Holds, fd)
			continue
		}
		change.Closed = append(change.Closed, fd)
		w.drop(pr, fd, "exec")
	}
	w.sink.Process(&change)
	if p.Compat() {
		w.note(p.Pid(), "it runs a 32-bit program from here on, which is not seen")
	}
}

// start is called before the first instruction of the tree.
func (w *watcher) start(p *tracee.Process) {
	pr := &process{p: p, table: newTable()}
	w.procs[p.Pid()] = pr
	for _, th := range p.Threads() {
		w.baseline = filterCount(th.Tid())
		if err := installBase(th, pr); err != nil {
			w.failed = fmt.Errorf("watch the program's calls: %w", err)
			w.tracer.Kill()
			return
		}
		fds := userfaultfds(th.Tid())
		w.sink.Process(&uffdtrace.Process{At: w.now(), PID: p.Pid(), Change: uffdtrace.Started, Holds: fds})
		for _, fd := range fds {
			w.add(pr, th.Tid(), fd, 0, "start")
		}
		w.cover(th, pr)
	}
}

func installBase(th *tracee.Thread, p *process) error {
	s, err := inject.Open(th.Tid())
	if err != nil {
		return err
	}
	base := filter{kind: kindBase}
	err = s.Install(base.program())
	if closeErr := s.Close(); err == nil {
		err = closeErr
	}
	p.filters = append(p.filters, base)
	return err
}

// Fork is tracee.Handler's.
func (w *watcher) Fork(parent, child *tracee.Process) {
	change := uffdtrace.Process{At: w.now(), PID: child.Pid(), Change: uffdtrace.Forked, Parent: parent.Pid()}
	by := w.procs[parent.Pid()]
	if by == nil { // killed at the same time, and so will be what it has made
		by = &process{p: parent, table: newTable(), blind: true}
	}
	pr := &process{p: child, filters: by.filters, blind: by.blind}
	w.procs[child.Pid()] = pr
	if sharesFiles(parent, child) {
		pr.table = by.table
		pr.table.users++
	} else {
		pr.table = newTable()
		for _, fd := range by.table.numbers() {
			// By the time that we hear of it the parent may have more, and
			// have closed others.
			if isUserfaultfd(child.Pid(), fd) {
				change.Holds = append(change.Holds, fd)
			}
		}
	}
	w.sink.Process(&change)
	for _, fd := range change.Holds {
		w.add(pr, child.Pid(), fd, by.table.files[fd], "fork")
	}
	for _, th := range child.Threads() {
		if len(pr.filters) > 1 {
			w.recount(th.Tid(), pr)
		}
		w.cover(th, pr)
	}
}

// sharesFiles reports whether two processes have one table of descriptors.
func sharesFiles(parent, child *tracee.Process) bool {
	for _, th := range parent.Threads() { // the first one may be a zombie
		// An error means that one is gone, or that the kernel cannot tell.
		if same, err := sys.SameFiles(th.Tid(), child.Pid()); err == nil {
			return same
		}
	}
	return false
}

// Thread is tracee.Handler's.
func (w *watcher) Thread(th *tracee.Thread, _ mem.Addr) {
	// Made by one that coverAll has interrupted too late.
	if p := w.procs[th.Process().Pid()]; w.passing && p != nil && !p.has(kindReceiver) && !p.blind {
		th.Interrupt(func() { w.interrupted(th) })
	}
}

// SpaceGone is tracee.Handler's.
func (w *watcher) SpaceGone(s *tracee.Space) { w.memory.forget(s) }

// Exited is tracee.Handler's.
func (w *watcher) Exited(p *tracee.Process, s tracee.Status) {
	w.endCalls(p)
	change := uffdtrace.Process{At: w.now(), PID: p.Pid(), Change: uffdtrace.Exited, Code: s.Code()}
	if sig := s.Signal(); sig != 0 {
		change.Code, change.Signal = 0, unix.SignalName(sig)
	}
	pr := w.procs[p.Pid()]
	delete(w.procs, p.Pid())
	if pr != nil {
		if pr.table.users--; pr.table.users == 0 {
			change.Closed = pr.table.numbers()
		}
	}
	w.sink.Process(&change)
	for _, fd := range change.Closed {
		w.drop(pr, fd, "exit")
	}
}
