// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// loop handles one event after the other until the tree is gone.
func (t *Tracer) loop() {
	for {
		t.serve(false)
		var ws unix.WaitStatus
		tid, err := unix.Wait4(-1, &ws, waitFlags, nil)
		switch {
		case err == nil:
			t.event(tid, ws)
		case errors.Is(err, unix.EINTR): // a request, or nothing
		case errors.Is(err, unix.ECHILD):
			t.finish()
			return
		default:
			// Not known to happen. This thread ends now, and with it, by
			// PTRACE_O_EXITKILL, all that it traces.
			t.err = fmt.Errorf("wait for the program's processes: %w", err)
			t.finish()
			return
		}
	}
}

// serve runs what Do has queued.
func (t *Tracer) serve(last bool) {
	for {
		r := t.queue.take(last)
		if r == nil {
			return
		}
		r.f()
		close(r.done)
	}
}

// finish ends the tracer.
func (t *Tracer) finish() {
	// Nothing is left to wait for, so what is still here has been reaped by
	// somebody else, against the rules; or the wait has failed.
	for _, p := range t.procs {
		t.exited(p, Status{ws: unix.WaitStatus(unix.SIGKILL)})
	}
	clear(t.parked)
	t.serve(true)
	close(t.done)
}

// event handles what wait4 has returned.
func (t *Tracer) event(tid int, ws unix.WaitStatus) {
	if onExit, ok := t.foreign[tid]; ok {
		t.foreignEvent(tid, ws, onExit)
		return
	}
	th := t.threads[tid]
	switch {
	case th == nil:
		// The kernel starts a new task before it reports the event of the
		// task that made it. What comes first waits for the other.
		if delete(t.parked, tid); ws.Stopped() {
			t.park(tid, ws)
		}
	case ws.Stopped():
		t.stop(th, ws)
	default:
		t.threadGone(th, ws)
	}
}

// foreignEvent keeps an adopted task running whatever happens to it.
func (t *Tracer) foreignEvent(tid int, ws unix.WaitStatus, onExit func(Status)) {
	if ws.Stopped() {
		// Signals sent to the program's process group are not for it. But a
		// fault of its own comes again until it is let through.
		sig := 0
		if got := stopCode(ws); isFault(got) {
			sig = got
		}
		_ = ptrace(unix.PTRACE_CONT, tid, 0, uintptr(sig)) // ESRCH: it dies
		return
	}
	delete(t.foreign, tid)
	if onExit != nil {
		onExit(Status{ws})
	}
}

// isFault reports whether a stop is for a signal that the kernel sends to a
// thread for what it does.
func isFault(code int) bool {
	switch unix.Signal(code) {
	case unix.SIGILL, unix.SIGTRAP, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSYS:
		return true
	}
	return false
}

// stop handles one stop of a known thread.
func (t *Tracer) stop(th *Thread, ws unix.WaitStatus) {
	if th.state == born {
		t.firstStop(th, ws)
		return
	}
	th.state, th.vforking = running, false
	sig, event := int(ws.StopSignal()), int(ws>>16)
	switch {
	case event == 0 && sig == int(unix.SIGTRAP)|0x80:
		t.callStop(th)
	case event == 0:
		t.relay.saw(th, sig)
		if t.more != nil {
			sig = int(t.more.Signal(th, unix.Signal(sig)))
		}
		if !th.leave() {
			t.resume(th, sig)
		}
	case event == unix.PTRACE_EVENT_STOP:
		t.eventStop(th, sig)
	case event == unix.PTRACE_EVENT_SECCOMP:
		if exit := t.h.SyscallEnter(th); !th.taken {
			th.wantExit = exit
		}
		t.settle(th)
	case event == unix.PTRACE_EVENT_EXEC:
		t.exec(th)
	case event == unix.PTRACE_EVENT_FORK, event == unix.PTRACE_EVENT_VFORK, event == unix.PTRACE_EVENT_CLONE:
		th.vforking = event == unix.PTRACE_EVENT_VFORK
		t.newTask(th, event)
	default:
		t.resume(th, 0)
	}
}

// callStop handles a stop at the begin or the end of a system call.
func (t *Tracer) callStop(th *Thread) {
	info, err := getCallInfo(th.tid)
	if err == nil && th.onCall != nil && info.op == unix.PTRACE_SYSCALL_INFO_ENTRY {
		th.wantExit = false
		t.beforeCall(th)
		return
	}
	if err != nil || !th.wantExit || info.op != unix.PTRACE_SYSCALL_INFO_EXIT {
		// Not the stop that was asked for: the handler has made the thread
		// skip its call, and this is the begin of another.
		th.wantExit = false
		t.resume(th, 0)
		return
	}
	th.wantExit = false // before the callback, which may ask for it anew
	t.h.SyscallExit(th)
	t.settle(th)
}

// beforeCall handles the begin of a call of a thread whose calls are looked at.
func (t *Tracer) beforeCall(th *Thread) {
	// The kernel has forgotten an interrupt that came meanwhile.
	if len(th.proc.Space().reqs) != 0 {
		t.answer(th)
	}
	if !th.onCall() {
		th.onCall = nil
	}
	t.settle(th)
}

// eventStop handles a PTRACE_EVENT_STOP: a group stop, if sig is a stop
// signal, or else an answer to PTRACE_INTERRUPT or SIGCONT.
func (t *Tracer) eventStop(th *Thread, sig int) {
	if f := th.onStop; f != nil {
		th.onStop = nil
		f()
		t.settle(th)
		return
	}
	if len(th.proc.Space().reqs) != 0 {
		t.answer(th)
		t.settle(th)
		return
	}
	t.afterEventStop(th, sig)
}

func (t *Tracer) afterEventStop(th *Thread, sig int) {
	if !isStopSignal(sig) {
		t.resume(th, 0)
		t.relay.rootRuns(th)
		return
	}
	// The thread stays stopped, and its parent is told so, but a SIGCONT is
	// reported to us.
	if ptrace(unix.PTRACE_LISTEN, th.tid, 0, 0) == nil {
		th.state = listening
		t.relay.rootStops(th, sig)
		t.relay.settled(th.proc)
	}
}

func isStopSignal(sig int) bool {
	switch unix.Signal(sig) {
	case unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU:
		return true
	}
	return false
}

// settle resumes a thread after a callback, which may have brought it to
// another stop.
func (t *Tracer) settle(th *Thread) {
	if th.leave() {
		return
	}
	si, err := getSiginfo(th.tid)
	if err != nil {
		return // it dies
	}
	th.state = running
	if si.code>>8 == unix.PTRACE_EVENT_STOP {
		t.afterEventStop(th, int(si.code)&0x7f)
		return
	}
	t.resume(th, 0)
}

// resume lets a thread go on with a signal, 0 for none. The only error is
// that it dies, and then its death is reported.
func (t *Tracer) resume(th *Thread, sig int) {
	req := unix.PTRACE_CONT
	if th.wantExit || th.onCall != nil {
		req = unix.PTRACE_SYSCALL
	}
	th.state = running
	if th.onStop != nil {
		// The kernel forgets an interrupt when the thread stops for anything
		// else, as it has done.
		_ = ptrace(unix.PTRACE_INTERRUPT, th.tid, 0, 0)
	}
	_ = ptrace(req, th.tid, 0, uintptr(sig))
}

// exec handles the end of a successful execve(2).
func (t *Tracer) exec(th *Thread) {
	p := th.proc
	// All other threads are dead. If it was one of them that called exec, it
	// has taken the place and the id of the leader, which vanishes without a
	// word, and its own id is no more.
	for _, other := range p.threads {
		if other != th {
			t.forget(other)
		}
	}
	th.wantExit, th.kept, th.taken, th.onCall = false, false, false, nil
	p.compat.Store(isCompat(th.tid))
	old := p.Space()
	last := old.remove(p)
	t.newSpace().add(p)
	if last {
		t.spaceGone(old)
	}
	t.h.Exec(p, old)
	t.settle(th)
}

// threadGone handles the death of a known thread.
func (t *Tracer) threadGone(th *Thread, ws unix.WaitStatus) {
	p := th.proc
	if th.state == born && th.tid == p.pid {
		t.forked(th) // it died before its first stop
	}
	t.forget(th)
	switch {
	case th.tid == p.pid:
		// The leader is reported last, when no other thread is left.
		t.exited(p, Status{ws})
		t.killOrphans()
	case len(p.Space().reqs) != 0:
		t.interruptAll(p.Space())
	}
}

// exited handles the end of a process.
func (t *Tracer) exited(p *Process, s Status) {
	for _, th := range p.threads {
		t.forget(th)
	}
	t.mu.Lock()
	delete(t.procs, p.pid)
	t.mu.Unlock()
	space := p.Space()
	if space.remove(p) {
		t.spaceGone(space)
	} else {
		t.interruptAll(space)
	}
	t.h.Exited(p, s)
	t.relay.settled(p)
	if p == t.root {
		t.status = s
		close(t.rooted)
	}
}

func (t *Tracer) spaceGone(s *Space) {
	t.abandon(s)
	t.h.SpaceGone(s)
}

// forget removes a thread that is no more.
func (t *Tracer) forget(th *Thread) {
	delete(th.proc.threads, th.tid)
	if t.threads[th.tid] == th {
		delete(t.threads, th.tid)
		if t.more != nil {
			t.more.ThreadGone(th)
		}
	}
}
