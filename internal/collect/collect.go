// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package collect

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/sys"
	"github.com/faultline-go/faultline/internal/uffdtrace"
	"github.com/faultline-go/faultline/tracee"
)

// Ground is what a collector stands on: who sees the program's calls.
type Ground interface {
	// Userfaultfd reports whether descriptor fd of a task is one.
	Userfaultfd(tid, fd int) bool
	// Device reports whether descriptor fd of a task is the device that makes
	// userfaultfds.
	Device(tid, fd int) bool
	// Same reports whether a descriptor of one task and one of another are the
	// same open file. An error means that this cannot be known.
	Same(tid, fd, tid2, fd2 int) (bool, error)
	// Read reads the memory that th lives in, and returns how many bytes came
	// before the first that it could not. It must not wait for a page: the one
	// who is to bring that would wait for us.
	Read(th *tracee.Thread, addr uint64, b []byte) int
	// Passing says that the thread is about to send a userfaultfd away. From
	// then on what processes receive has to be seen.
	Passing(sender *tracee.Thread)
}

// Collector tells a sink what a tree of processes does.
type Collector struct {
	sink    uffdtrace.Sink
	ground  Ground
	started time.Time

	procs map[int]*process
	calls map[*tracee.Thread]*call // that threads are in
	files *registry
}

// New returns a Collector, whose times count from now on.
func New(sink uffdtrace.Sink, g Ground) *Collector {
	return &Collector{
		sink: sink, ground: g, started: time.Now(),
		procs: map[int]*process{}, calls: map[*tracee.Thread]*call{}, files: newRegistry(),
	}
}

// Elapsed returns how long the trace has taken so far. It may be called from
// anywhere.
func (cl *Collector) Elapsed() time.Duration { return time.Since(cl.started) }

// Note tells that something of a process cannot be seen.
func (cl *Collector) Note(pid int, text string) {
	cl.sink.Note(&uffdtrace.Note{At: cl.Elapsed(), PID: pid, Text: text})
}

// Held returns the numbers of the userfaultfds of a process, in order.
func (cl *Collector) Held(pid int) []int {
	if p := cl.procs[pid]; p != nil {
		return p.table.numbers()
	}
	return nil
}

// Sharers returns the other processes that have the same table of descriptors.
func (cl *Collector) Sharers(pid int) (pids []int) {
	p := cl.procs[pid]
	if p == nil || p.table.users < 2 {
		return nil
	}
	for other, q := range cl.procs {
		if q != p && q.table == p.table {
			pids = append(pids, other)
		}
	}
	return pids
}

// Find takes in the userfaultfds that a process has got unseen.
func (cl *Collector) Find(th *tracee.Thread) {
	p := cl.procs[th.Process().Pid()]
	if p == nil {
		return
	}
	for _, fd := range cl.userfaultfds(th.Tid()) {
		if _, known := p.table.files[fd]; !known {
			cl.files.send(cl.add(p, th.Tid(), fd, 0, uffdtrace.Found), false)
		}
	}
}

// add takes a descriptor into the table of p, in which task tid has it. It is a
// new number for f, or if that is 0 for the File that it turns out to be.
func (cl *Collector) add(p *process, tid, fd int, f uffdtrace.File, by string) uffdtrace.File {
	if _, there := p.table.files[fd]; there {
		cl.drop(p, fd, by) // it was closed in a way that we have not seen
	}
	if f == 0 {
		f = cl.identify(tid, fd)
	}
	p.table.files[fd] = f
	cl.files.hold(f)
	cl.sink.Descriptor(&uffdtrace.Descriptor{At: cl.Elapsed(), PID: p.pid, FD: fd, File: f, By: by})
	return f
}

// drop takes a descriptor out of the table of p.
func (cl *Collector) drop(p *process, fd int, by string) {
	f, there := p.table.files[fd]
	if !there {
		return
	}
	delete(p.table.files, fd)
	last := cl.files.release(f)
	cl.sink.Descriptor(&uffdtrace.Descriptor{At: cl.Elapsed(), PID: p.pid, FD: fd, File: f, Closed: true, Last: last, By: by})
}

// Start is called before the first instruction of the tree, with the thread
// that will execute it.
func (cl *Collector) Start(th *tracee.Thread) {
	pid := th.Process().Pid()
	p := &process{pid: pid, table: newTable()}
	cl.procs[pid] = p
	fds := cl.userfaultfds(th.Tid())
	cl.sink.Process(&uffdtrace.Process{At: cl.Elapsed(), PID: pid, Change: uffdtrace.Started, Holds: fds})
	for _, fd := range fds {
		cl.add(p, th.Tid(), fd, 0, "start")
	}
	cl.noteCompat(th.Process())
}

func (cl *Collector) noteCompat(pr *tracee.Process) {
	if pr.Compat() {
		cl.Note(pr.Pid(), "it runs a 32-bit program from here on, which is not seen")
	}
}

// Exec is called when a process that was there has executed a program.
func (cl *Collector) Exec(pr *tracee.Process) {
	cl.endCalls(pr)
	p := cl.procs[pr.Pid()]
	if p == nil {
		return
	}
	if p.table.users > 1 { // exec ends the sharing
		p.table.users--
		p.table = p.table.copy()
		for _, f := range p.table.files {
			cl.files.hold(f)
		}
	}
	change := uffdtrace.Process{At: cl.Elapsed(), PID: pr.Pid(), Change: uffdtrace.Execed}
	for _, fd := range p.table.numbers() {
		if cl.isUserfaultfd(pr.Pid(), fd) {
			change.Holds = append(change.Holds, fd)
			continue
		}
		change.Closed = append(change.Closed, fd)
		cl.drop(p, fd, "exec")
	}
	cl.sink.Process(&change)
	cl.noteCompat(pr)
}

// Fork is called when a process has made another.
func (cl *Collector) Fork(parent, child *tracee.Process) {
	change := uffdtrace.Process{At: cl.Elapsed(), PID: child.Pid(), Change: uffdtrace.Forked, Parent: parent.Pid()}
	by := cl.procs[parent.Pid()]
	if by == nil { // killed at the same time, and so will be what it has made
		by = &process{pid: parent.Pid(), table: newTable()}
	}
	p := &process{pid: child.Pid()}
	cl.procs[child.Pid()] = p
	if sharesFiles(parent, child) {
		p.table = by.table
		p.table.users++
	} else {
		p.table = newTable()
		for _, fd := range by.table.numbers() {
			// By the time that we hear of it the parent may have more, and
			// have closed others.
			if cl.isUserfaultfd(child.Pid(), fd) {
				change.Holds = append(change.Holds, fd)
			}
		}
	}
	cl.sink.Process(&change)
	for _, fd := range change.Holds {
		cl.add(p, child.Pid(), fd, by.table.files[fd], "fork")
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

// Exited is called when a process has ended.
func (cl *Collector) Exited(pr *tracee.Process, s tracee.Status) {
	cl.endCalls(pr)
	change := uffdtrace.Process{At: cl.Elapsed(), PID: pr.Pid(), Change: uffdtrace.Exited, Code: s.Code()}
	if sig := s.Signal(); sig != 0 {
		change.Code, change.Signal = 0, unix.SignalName(sig)
	}
	p := cl.procs[pr.Pid()]
	delete(cl.procs, pr.Pid())
	if p != nil {
		if p.table.users--; p.table.users == 0 {
			change.Closed = p.table.numbers()
		}
	}
	cl.sink.Process(&change)
	for _, fd := range change.Closed {
		cl.drop(p, fd, "exit")
	}
}
