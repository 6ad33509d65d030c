// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"fmt"
	"iter"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/sysargs"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/vkernel"
)

// task is a thread of the program for which something had to be decided. What
// has to be done for it is a job: straight-line code in a coroutine, which
// parks where the thread has to wait, and which runs on the tracer thread like
// all else here.
type task struct {
	p  *Provider
	th *tracee.Thread
	sp *space
	v  *vkernel.Thread

	job   func() // nil between two jobs
	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool

	wait waitKind
	// parking, if there is one, is called when the job parks, for what has
	// happened by then to be seen by others.
	parking func()
	since   time.Time // of the wait
	looked  time.Time // when it was looked last what has come meanwhile
	waited  bool      // the job has parked
	// native says that the read which waits is to wait in the kernel.
	native bool
	call   tracee.Call // at the exit of a call that the thread was let make
	atExit bool        // the thread stands there
	at     inject.Stop // in which the job has found the thread
	away   bool        // it runs on another processor than we
	stops  int
	gone   bool // the thread is no more
	// got says that it has a descriptor of which the other processes that have
	// its table know nothing yet: see share.
	got bool

	// seen counts faults at one place in a row for which there was nothing to
	// do, which tells a fault that nothing resolves.
	seenAt, seenPC mem.Addr
	seen           int
	// lates counts faults at one place in a row that have come too late.
	lateAt, latePC mem.Addr
	lates          int

	args [40]byte // of an ioctl

	// calls is the last call that needed pages, and how often it was made.
	calls struct {
		nr    uintptr
		args  [6]uintptr
		tries int
	}
	ranges []sysargs.Range // of a call; for use
	said   [32]byte        // by a call, before it was made; see listen

	changing bool            // see change
	forking  bool            // it makes a call that copies its space
	child    *tracee.Process // that was made by it

	own upkeep // of a thread whose memory we manage
}

// waitKind says what a parked job waits for.
type waitKind uint8

const (
	runs          waitKind = iota // nothing
	waitPage                      // a page, in user mode
	waitCall                      // something that only a death ends
	waitRead                      // a message
	waitNative                    // the end of a call that the thread makes
	waitElsewhere                 // another thread's fork, or something that another goroutine does
)

func (p *Provider) newTask(th *tracee.Thread, sp *space) *task {
	t := &task{p: p, th: th, sp: sp}
	t.v = sp.v.NewMirrorThread(th.Tid(), t.park, t.wake)
	t.next, t.stop = iter.Pull(t.loop)
	p.tasks[th] = t
	return t
}

// loop is the coroutine.
func (t *task) loop(yield func(struct{}) bool) {
	t.yield = yield
	defer func() {
		// A panic leaves a coroutine without saying where it was.
		if e := recover(); e != nil {
			panic(fmt.Sprintf("%v\n%s", e, debug.Stack()))
		}
	}()
	for {
		t.job()
		t.job = nil
		if !yield(struct{}{}) {
			return
		}
	}
}

// start begins a job for a thread that is stopped, and keeps the thread until
// the job lets it go.
func (t *task) start(job func()) {
	t.th.Keep()
	t.unpin()
	t.at = t.p.at
	t.atExit = false
	t.job = func() {
		if t.await(copying) {
			job()
		}
	}
	t.v.ClearSignals() // the thread has been on its way since
	t.p.pace.stopped(t)
	t.next()
	t.p.settle()
}

// as runs f with the kind of wait that it may come to.
func (t *task) as(kind waitKind, f func()) {
	t.wait, t.since = kind, time.Time{}
	f()
	t.wait = runs
}

// park suspends the job until wake.
func (t *task) park() {
	if f := t.parking; f != nil {
		t.parking = nil
		f()
	}
	t.since, t.waited = time.Now(), true
	t.endChange()
	t.p.parked.Add(1)
	t.yield(struct{}{})
	t.p.parked.Add(-1)
	t.since = time.Time{}
}

// wake has the job go on when what is being done now is done. It may be called
// with locks held.
func (t *task) wake() { t.p.woken = append(t.p.woken, t) }

// end is the end of the thread.
func (t *task) end() {
	t.gone = true
	t.unpin()
	t.keep(&t.own.rseq, mem.Range{})
	t.keep(&t.own.robust, mem.Range{})
	delete(t.p.tasks, t.th)
	t.v.End()
	if (t.wait == waitNative || t.wait == waitElsewhere) && t.job != nil {
		t.next()
	}
	t.p.settle()
	t.stop()
}

// resume lets the thread go on, with a signal if sig is not 0.
func (t *task) resume(sig syscall.Signal) {
	if !t.gone {
		t.letGo(sig, t.goesOn())
	}
}

// run lets the thread make its call and waits for the end of that. It reports
// false if the thread has died.
func (t *task) run() bool {
	if t.gone {
		return false
	}
	t.wait, t.atExit = waitNative, false
	t.letGo(0, true)
	t.yield(struct{}{})
	t.wait = runs
	return !t.gone
}

// exited has a job go on whose thread has made its call.
func (t *task) exited() {
	t.th.Keep()
	t.call, _ = t.th.Call() // an error is a death, which is reported
	t.atExit = true
	t.next()
	t.p.settle()
}

// skip ends the call before which the thread stands with ret, a value or a
// negated errno.
func (t *task) skip(ret int64) {
	if t.gone || t.at.Skip(uintptr(ret)) != nil {
		return // its death is reported
	}
	t.p.ends(t.th, ret)
	t.resume(0)
}

// leave ends the call at whose exit the thread stands with ret.
func (t *task) leave(ret int64) {
	if t.gone || inject.Return(t.th.Tid(), uintptr(ret)) != nil {
		return
	}
	t.p.ends(t.th, ret)
	t.resume(0)
}

func negated(errno syscall.Errno) int64 { return -int64(errno) }

// session runs f with system calls in the stopped thread. It reports whether
// the thread is still there; an error of f's other than a death is fatal.
func (t *task) session(what string, f func(s *inject.Session) error) bool {
	return !t.gone && t.p.session(what, t.th, f)
}

// session is that for a thread of which nothing need be known.
func (p *Provider) session(what string, th *tracee.Thread, f func(s *inject.Session) error) bool {
	s, err := inject.Open(th.Tid())
	if err == nil {
		err = f(s)
		if cerr := s.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil && !gone(err) {
		p.fatal(what, err)
	}
	return err == nil
}

// planted makes sure that there is an agent, which a child has only if it needs
// one. It reports whether the thread is still there.
func (t *task) planted() bool {
	return t.sp.agent != nil || t.session("plant an agent", t.sp.plant)
}

// disturbed reports whether a signal waits for the thread that ends a wait.
func (t *task) disturbed() bool {
	any, _, err := inject.Deliverable(t.th.Tid())
	return err == nil && any
}

// heed has a signal end the wait of the thread, or do to it what it does in the
// kernel: an access is made anew when the handler has run, a system call goes on
// waiting but for a signal that kills, and its fault is told again to who reads.
func (t *task) heed() {
	any, fatal, err := inject.Deliverable(t.th.Tid())
	switch {
	case err != nil || !any:
	case t.wait == waitPage || t.v.State() == vkernel.InFault && !fatal:
		t.v.Interrupt()
	case fatal:
		t.v.End()
	}
}

// readString reads a path of the program's.
func (t *task) readString(a mem.Addr) string {
	var b [unix.PathMax]byte
	n := 0
	for n < len(b) {
		part := min(len(b)-n, mem.PageSize-int((uint64(a)+uint64(n))&(mem.PageSize-1)))
		got := t.sp.Load(a+mem.Addr(n), b[n:n+part])
		for i := n; i < n+got; i++ {
			if b[i] == 0 {
				return string(b[:i])
			}
		}
		if n += got; got < part {
			break
		}
	}
	return ""
}
