// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package watch

import (
	"fmt"
	"time"

	"github.com/faultline-go/faultline/internal/collect"
	"github.com/faultline-go/faultline/internal/inject"
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
	tracer    *tracee.Tracer
	unrelay   func() // ends the forwarding of signals
	collector *collect.Collector
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
	return &Watch{tracer: t, unrelay: unrelay, collector: w.collector}, nil
}

// Wait waits for the end of the whole tree. It returns how the program ended
// and how long all of it took. The error is the tracer's own: the tree has been
// killed for it.
func (w *Watch) Wait() (tracee.Status, time.Duration, error) {
	<-w.tracer.Done()
	elapsed := w.collector.Elapsed()
	s, err := w.tracer.Wait()
	w.unrelay()
	return s, elapsed, err
}

// watcher is told what happens in the tree. All of it belongs to the tracer's
// thread.
type watcher struct {
	collector *collect.Collector
	tracer    *tracee.Tracer
	failed    error // why the program was not started; read after Continue

	procs    map[int]*process
	memory   map[*tracee.Space]int // descriptors of /proc/PID/mem
	baseline int                   // filters that the program has inherited from us, -1 if not known
	passing  bool                  // a userfaultfd has been sent in a message
}

func newWatcher(sink uffdtrace.Sink) *watcher {
	w := &watcher{procs: map[int]*process{}, memory: map[*tracee.Space]int{}, baseline: -1}
	w.collector = collect.New(sink, w)
	return w
}

// Exec is tracee.Handler's.
func (w *watcher) Exec(p *tracee.Process, old *tracee.Space) {
	if old == nil {
		w.start(p)
		return
	}
	w.collector.Exec(p)
}

// start is called before the first instruction of the tree.
func (w *watcher) start(p *tracee.Process) {
	pr := &process{p: p}
	w.procs[p.Pid()] = pr
	for _, th := range p.Threads() {
		w.baseline = filterCount(th.Tid())
		if err := installBase(th, pr); err != nil {
			w.failed = fmt.Errorf("watch the program's calls: %w", err)
			w.tracer.Kill()
			return
		}
		w.collector.Start(th)
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
	w.collector.Fork(parent, child)
	by := w.procs[parent.Pid()]
	if by == nil { // killed at the same time, and so will be what it has made
		by = &process{p: parent, blind: true}
	}
	pr := &process{p: child, filters: by.filters, blind: by.blind}
	w.procs[child.Pid()] = pr
	for _, th := range child.Threads() {
		if len(pr.filters) > 1 {
			w.recount(th.Tid(), pr)
		}
		w.cover(th, pr)
	}
}

// Thread is tracee.Handler's.
func (w *watcher) Thread(th *tracee.Thread, _ mem.Addr) {
	// Made by one that coverAll has interrupted too late.
	if p := w.procs[th.Process().Pid()]; w.passing && p != nil && !p.has(kindReceiver) && !p.blind {
		th.Interrupt(func() { w.interrupted(th) })
	}
}

// SpaceGone is tracee.Handler's.
func (w *watcher) SpaceGone(s *tracee.Space) { w.forget(s) }

// Exited is tracee.Handler's.
func (w *watcher) Exited(p *tracee.Process, s tracee.Status) {
	w.collector.Exited(p, s)
	delete(w.procs, p.Pid())
}

// SyscallEnter is tracee.Handler's: a filter has reported a call.
func (w *watcher) SyscallEnter(th *tracee.Thread) bool {
	now, err := th.Call()
	return err == nil && w.collector.Enter(th, now)
}

// SyscallExit is tracee.Handler's.
func (w *watcher) SyscallExit(th *tracee.Thread) {
	now, err := th.Call()
	if err != nil { // killed at its end
		w.collector.End(th)
		return
	}
	w.collector.Exit(th, int64(now.Ret), now.Errno)
	w.cover(th, w.procs[th.Process().Pid()])
}
