// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package watch

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/tracee"
)

// process is what we know of a process of the tree.
type process struct {
	p *tracee.Process
	// filters are ours that are in force in it, the oldest first.
	filters []filter
	// blind is set when no more can be put there, and that has been told.
	blind bool
}

// has reports whether a filter of the kind is in force.
func (p *process) has(k kind) bool {
	return slices.ContainsFunc(p.filters, func(f filter) bool { return f.kind == k })
}

// lacking returns the filters that the process should have besides, having the
// userfaultfds of these numbers.
func (p *process) lacking(held []int, passing bool) (out []filter) {
	if len(held) > 0 && !p.has(kindHolder) {
		out = append(out, filter{kind: kindHolder})
	}
	if passing && !p.has(kindReceiver) {
		out = append(out, filter{kind: kindReceiver})
	}
	all := slices.Clip(p.filters)
	for _, fd := range held {
		if slices.ContainsFunc(all, func(f filter) bool { return f.covers(fd) }) {
			continue
		}
		n := 0
		for _, f := range all {
			if f.kind == kindBlock {
				n++
			}
		}
		f := block(fd, n)
		all, out = append(all, f), append(out, f)
	}
	return out
}

func (w *watcher) lacking(p *process) []filter {
	return p.lacking(w.collector.Held(p.p.Pid()), w.passing)
}

// filterCount returns how many seccomp filters a thread has, -1 where the
// kernel does not tell (before Linux 5.9).
func filterCount(tid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return -1
	}
	_, rest, ok := strings.Cut(string(b), "\nSeccomp_filters:")
	if !ok {
		return -1
	}
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return -1
	}
	return n
}

// ours returns how many filters a thread has besides those that all have had
// from the start, -1 if that cannot be known.
func (w *watcher) ours(tid int) int {
	n := filterCount(tid)
	if n < 0 || w.baseline < 0 {
		return -1
	}
	return n - w.baseline
}

// recount forgets filters that a child has not got: it was made before its
// parent got the last ones, and we have heard of it only after that.
func (w *watcher) recount(tid int, p *process) {
	if n := w.ours(tid); n >= 0 && n < len(p.filters) {
		p.filters = p.filters[:n]
	}
}

// errOwnFilter is why nothing is injected into a process: a filter of its own
// may answer to our calls by killing it.
var errOwnFilter = errors.New("it has a seccomp filter of its own")

// cover puts the filters on a process that it lacks, by a thread of it that is
// stopped. Nothing is done if it lacks none.
func (w *watcher) cover(th *tracee.Thread, p *process) {
	if p == nil || p.blind || p.p.Compat() || len(w.lacking(p)) == 0 {
		return
	}
	err := w.install(th, p)
	w.coverSharers(p)
	if err == nil || errors.Is(err, inject.ErrGone) || errors.Is(err, inject.ErrExec) {
		return // it dies, or is another program already
	}
	if errors.Is(err, inject.ErrBusy) {
		return // its next stop will do
	}
	p.blind = true
	w.collector.Note(p.p.Pid(), fmt.Sprintf("what it reads, closes and passes on is not seen from here on: %v", err))
	if len(w.collector.Held(p.p.Pid())) > 0 && !w.passing {
		w.passing = true // it may send them away, and we would not know
		w.coverAll(th)
	}
}

// coverSharers does the same for the processes that share the table of p, as
// soon as a thread of them can be stopped.
func (w *watcher) coverSharers(p *process) {
	for _, pid := range w.collector.Sharers(p.p.Pid()) {
		q := w.procs[pid]
		if q == nil {
			continue
		}
		for _, th := range q.p.Threads() {
			th.Interrupt(func() { w.cover(th, q) })
			break
		}
	}
}

func (w *watcher) install(th *tracee.Thread, p *process) error {
	if n := w.ours(th.Tid()); n > len(p.filters) {
		return errOwnFilter
	}
	s, err := inject.Open(th.Tid())
	if err != nil {
		return err
	}
	for _, f := range w.lacking(p) {
		if err = s.Install(f.program()); err != nil {
			break
		}
		p.filters = append(slices.Clip(p.filters), f)
	}
	return errors.Join(err, s.Close())
}

// coverAll interrupts the threads of all processes that have no filter yet for
// what they receive, so that it is there before any of them receives a
// descriptor that is about to be sent. Those that have it by then are found.
//
// A thread that sleeps in recvmsg(2) begins the call anew and comes to the
// filter. One that has the message by the time that it is interrupted stops at
// the end of the call, before the program sees its result. It takes all threads,
// since each of them may be woken by the message and call recvmsg before another
// has stopped.
func (w *watcher) coverAll(sender *tracee.Thread) {
	for _, p := range w.procs {
		if p.has(kindReceiver) || p.blind {
			continue
		}
		for _, th := range p.p.Threads() {
			if th != sender { // which comes to a stop anyway, at the end of its call
				th.Interrupt(func() { w.interrupted(th) })
			}
		}
	}
}

// interrupted is called for a thread that coverAll has stopped.
func (w *watcher) interrupted(th *tracee.Thread) {
	p := w.procs[th.Process().Pid()]
	if p == nil {
		return
	}
	w.collector.Find(th)
	if len(w.lacking(p)) > 0 && !p.blind {
		w.cover(th, p)
		return
	}
	// With a session the call that the thread sleeps in goes on also where it
	// would end with EINTR, such as epoll_wait(2).
	if s, err := inject.Open(th.Tid()); err == nil {
		_ = s.Close() // an error means that the thread dies
	}
}
