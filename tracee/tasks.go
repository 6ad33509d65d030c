// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func (t *Tracer) newSpace() *Space {
	t.spaces++
	return &Space{id: t.spaces}
}

// addProcess makes a process; space is nil for a space of its own.
func (t *Tracer) addProcess(pid int, space *Space) *Process {
	p := &Process{t: t, pid: pid, threads: map[int]*Thread{}}
	if space == nil {
		space = t.newSpace()
	}
	space.add(p)
	t.mu.Lock()
	t.procs[pid] = p
	t.mu.Unlock()
	if t.killing.Load() {
		_ = unix.Kill(pid, unix.SIGKILL) // ESRCH: gone already
	}
	return p
}

func (t *Tracer) addThread(p *Process, tid int) *Thread {
	th := &Thread{tid: tid, proc: p}
	p.threads[tid] = th
	t.threads[tid] = th
	return th
}

// newTask handles the event of the thread that made a task. The thread is
// kept stopped until the child has stopped for the first time, so that
// Handler.Fork sees both; for a thread of the same process nobody is told
// and it goes on at once.
func (t *Tracer) newTask(parent *Thread, event int) {
	msg, err := eventMsg(parent.tid)
	if err != nil {
		return // killed: its child, if parked, is an orphan now
	}
	tid := int(msg)
	if tid == 0 || t.threads[tid] != nil {
		// Adopted already; or outside of our process id namespace, which
		// cannot be, since the children of our children are inside.
		t.resume(parent, 0)
		return
	}
	child, seen := t.parked[tid]
	delete(t.parked, tid)
	dead := !seen && unix.Kill(tid, 0) == unix.ESRCH
	if !t.isThread(parent.proc, tid, event, dead) {
		parent.state = held
		th := t.fork(parent, tid, event)
		switch {
		case dead:
			t.threadGone(th, unix.WaitStatus(unix.SIGKILL))
		case seen:
			t.firstStop(th, child.ws)
		}
		return
	}
	id := clearedID(parent.tid)
	t.resume(parent, 0)
	if dead {
		return
	}
	th := t.addThread(parent.proc, tid)
	t.h.Thread(th, id)
	if seen {
		t.firstStop(th, child.ws)
	}
}

// isThread tells a new thread of p from a new process. Of one that is dead
// the event must tell.
func (t *Tracer) isThread(p *Process, tid, event int, dead bool) bool {
	if dead {
		return event == unix.PTRACE_EVENT_CLONE
	}
	return unix.Tgkill(p.pid, tid, 0) == nil
}

// fork makes the process of a child that was reported by a thread.
func (t *Tracer) fork(by *Thread, tid, event int) *Thread {
	var space *Space
	if sharesSpace(by.tid, tid, event) {
		space = by.proc.Space()
	}
	child := t.addProcess(tid, space)
	child.by = by
	child.compat.Store(by.proc.Compat())
	th := t.addThread(child, tid)
	th.holds = by
	return th
}

// sharesSpace reports whether a new process shares its parent's memory. The
// event alone does not tell: it is made from the exit signal and from
// CLONE_VFORK, not from CLONE_VM.
func sharesSpace(by, tid, event int) bool {
	same, err := sameSpace(by, tid) // by is the thread: the leader may be dead
	if err == nil {
		return same
	}
	// Container runtimes refuse kcmp. What the parent called tells as well,
	// unless it is dead, or of another ABI.
	if flags, _, ok := cloneFlags(by); ok {
		return flags&unix.CLONE_VM != 0
	}
	return event == unix.PTRACE_EVENT_VFORK
}

// firstStop handles the stop in which every new task begins.
func (t *Tracer) firstStop(th *Thread, ws unix.WaitStatus) {
	th.state = running
	if th.tid == th.proc.pid {
		t.forked(th)
		t.settle(th)
		return
	}
	t.stop(th, ws)
}

// forked tells the handler of a new process and lets its parent go on.
func (t *Tracer) forked(th *Thread) {
	parent := th.holds
	th.holds = nil
	if parent == nil {
		return
	}
	t.h.Fork(parent.proc, th.proc)
	if t.threads[parent.tid] == parent && !parent.leave() && parent.state == held {
		t.settle(parent)
	}
}

// orphan is a task whose first stop has come before its parent's event.
type orphan struct {
	ws   unix.WaitStatus
	seen int // by this many sweeps
}

const (
	sweepEvery = 100 * time.Millisecond
	// maxSweeps make a time far longer than a thread can take from the start
	// of its child to the report of it, which are a few instructions apart.
	maxSweeps = 150
)

// park keeps the first stop of a task until its parent reports it.
//
// A parent that is killed in between never does, and nobody would ever resume
// the child. Such a child is killed too: with the parent's SIGKILL a moment
// earlier it would not exist, and it has not run yet. Its memory may not be
// in order besides, as the kernel drops what userfaultfd had to say about a
// fork that was killed.
func (t *Tracer) park(tid int, ws unix.WaitStatus) {
	t.parked[tid] = &orphan{ws: ws}
	if !t.sweeping {
		t.sweeping = true
		time.AfterFunc(sweepEvery, func() { t.Do(t.sweep) })
	}
}

// killOrphans kills the parked tasks whose parent is dead.
func (t *Tracer) killOrphans() {
	for tid := range t.parked {
		tgid, ppid := relatives(tid)
		if tgid == 0 || t.procs[tgid] != nil || t.procs[ppid] != nil {
			continue
		}
		// The child of a parent that lives, if that is the root program and
		// it has made the child a sibling of its own (CLONE_PARENT).
		if ppid == unix.Getpid() && t.procs[t.root.pid] != nil {
			continue
		}
		_ = unix.Kill(tid, unix.SIGKILL)
	}
}

// sweep finds the orphans whose parent was dead before they were parked. After
// maxSweeps it kills those too that killOrphans does not recognise, because
// a process of the tree has inherited them or was made their parent.
func (t *Tracer) sweep() {
	t.killOrphans()
	for tid, o := range t.parked {
		if o.seen++; o.seen > maxSweeps {
			_ = unix.Kill(tid, unix.SIGKILL)
		}
	}
	if t.sweeping = len(t.parked) != 0; t.sweeping {
		time.AfterFunc(sweepEvery, func() { t.Do(t.sweep) })
	}
}

// relatives returns the thread group and the parent of a task, zero if it is
// gone.
func relatives(tid int) (tgid, ppid int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0, 0
	}
	return int(statusField(string(b), "Tgid:", 10)), int(statusField(string(b), "PPid:", 10))
}

// statusField returns a number of /proc/PID/status, 0 if there is none.
func statusField(status, key string, base int) uint64 {
	_, rest, _ := strings.Cut(status, "\n"+key)
	line, _, _ := strings.Cut(rest, "\n")
	v, _ := strconv.ParseUint(strings.TrimSpace(line), base, 64)
	return v
}
