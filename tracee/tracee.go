// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
)

// ErrGone is returned for what needs a live thread of a space or a live
// tree, when there is none any more.
var ErrGone = errors.New("program is gone")

// ErrCompat is matched when the program to start is a 32-bit one.
var ErrCompat = errors.New("32-bit programs are not supported")

// Handler is told what happens to the tree. All methods are called on the
// tracer thread, and the threads concerned are stopped until they return.
// Embed [NopHandler] for those that are of no interest.
//
// A handler may run system calls in the stopped thread and may leave it in
// another ptrace stop than it found it in, provided that it has consumed that
// stop.
type Handler interface {
	// Exec says that p runs a new program in a new space; old is the space
	// that it left, nil for the root program's first one. The only thread is
	// stopped before the program's first instruction.
	Exec(p *Process, old *Space)

	// Fork says that parent has made child; the thread that did it and the
	// child's only thread are stopped. The child has a copy of the parent's
	// space, or shares it if child.Space() == parent.Space(). It is called
	// also for a child that was killed before it could run; its Exited
	// follows at once.
	//
	// If parent is killed at the same time, it may be gone and its Exited may
	// have been called before.
	Fork(parent, child *Process)

	// Thread says that a process has a new thread. id is the address of the
	// word that the kernel clears and wakes when the thread ends, for
	// pthread_join(3) (CLONE_CHILD_CLEARTID of clone(2)), 0 if there is none.
	Thread(th *Thread, id mem.Addr)

	// SpaceGone says that the last process has left s by exit, exec or
	// death. It is called once for each space, before the Exec or Exited that
	// belongs to it.
	SpaceGone(s *Space)

	// SyscallEnter says that th is about to make a call for which a seccomp
	// filter of the supervisor's answered SECCOMP_RET_TRACE. If it returns
	// true, SyscallExit follows when the call has been made.
	SyscallEnter(th *Thread) (exit bool)

	// SyscallExit says that th has made the call.
	SyscallExit(th *Thread)

	// Exited says that p has ended and been waited for.
	Exited(p *Process, s Status)
}

// Interceptor is a [Handler] that looks at signals, and is told when threads
// end.
type Interceptor interface {
	Handler

	// Signal says that sig is about to be delivered to th, and returns the
	// signal to deliver instead, 0 for none.
	Signal(th *Thread, sig syscall.Signal) syscall.Signal

	// ThreadGone says that th has ended, or that another thread of its process
	// has called exec. It comes before the Exec or Exited that belongs to it.
	ThreadGone(th *Thread)
}

// NopHandler does nothing.
type NopHandler struct{}

// Exec implements [Handler].
func (NopHandler) Exec(*Process, *Space) {}

// Fork implements [Handler].
func (NopHandler) Fork(_, _ *Process) {}

// Thread implements [Handler].
func (NopHandler) Thread(*Thread, mem.Addr) {}

// SpaceGone implements [Handler].
func (NopHandler) SpaceGone(*Space) {}

// SyscallEnter implements [Handler].
func (NopHandler) SyscallEnter(*Thread) bool { return false }

// SyscallExit implements [Handler].
func (NopHandler) SyscallExit(*Thread) {}

// Exited implements [Handler].
func (NopHandler) Exited(*Process, Status) {}

// Options say what to start.
type Options struct {
	Path    string   // of the file to execute; no search in PATH is made
	Argv    []string // with the program's name first; Path alone if empty
	Env     []string
	Dir     string    // directory to start in; the current one if empty
	Files   []uintptr // what it has as descriptors 0 and up; ours of 0 to 2 if nil
	Handler Handler   // may be nil
}

// Tracer follows one tree of processes.
type Tracer struct {
	h    Handler
	more Interceptor // h, if it is one; else nil
	root *Process    // immutable after Start

	// Of the tracer thread.
	threads  map[int]*Thread
	parked   map[int]*orphan // first stops that came before the parent's event
	sweeping bool            // a sweep of parked is due
	foreign  map[int]func(Status)
	spaces   uint64 // number of spaces made so far
	relay    *relay // nil unless Relay was called
	released bool   // Continue was called

	tid    int           // of the tracer thread; immutable after Start
	queue  requests      // functions for the tracer thread
	rooted chan struct{} // closed when the root program has ended
	done   chan struct{} // closed when the tree is gone
	status Status        // written before rooted is closed
	err    error         // written before done is closed

	killing atomic.Bool
	mu      sync.Mutex
	procs   map[int]*Process // written by the tracer thread under mu
}

// StartError is what [Start] returns when the program cannot be started. Err
// is the errno of the step that failed: ENOENT if there is no such file, and
// EACCES or ENOEXEC if it is there but cannot be executed.
type StartError struct {
	Path string
	Err  error
}

func (e *StartError) Error() string { return fmt.Sprintf("start %s: %v", e.Path, e.Err) }

// Unwrap returns Err.
func (e *StartError) Unwrap() error { return e.Err }

// Start starts a program and stops it before its first instruction. Call
// [Tracer.Continue] to let it run.
//
// On failure, always a [*StartError], nothing is left behind.
func Start(o Options) (*Tracer, error) {
	t := &Tracer{
		h:       o.Handler,
		threads: map[int]*Thread{},
		parked:  map[int]*orphan{},
		foreign: map[int]func(Status){},
		procs:   map[int]*Process{},
		rooted:  make(chan struct{}),
		done:    make(chan struct{}),
	}
	t.more, _ = t.h.(Interceptor)
	if t.h == nil {
		t.h = NopHandler{}
	}
	started := make(chan error)
	go t.run(o, started)
	if err := <-started; err != nil {
		return nil, &StartError{Path: o.Path, Err: err}
	}
	return t, nil
}

// Root returns the program that was started. After exec it is the same
// process still.
func (t *Tracer) Root() *Process { return t.root }

// Continue calls Handler.Exec for the root program and lets it run. It is
// called once.
func (t *Tracer) Continue() {
	t.Do(func() {
		if t.released {
			return
		}
		t.released = true
		for _, th := range t.root.threads {
			t.h.Exec(t.root, nil)
			t.settle(th)
		}
	})
}

// RootExited is closed when the root program has ended. Its descendants may
// go on.
func (t *Tracer) RootExited() <-chan struct{} { return t.rooted }

// Done is closed when the whole tree is gone, adopted tasks included.
func (t *Tracer) Done() <-chan struct{} { return t.done }

// Wait waits for the end of the root program, as a shell does, and returns
// how it ended. Descendants that outlive it are followed until they end too:
// see [Tracer.Done]. The error says that the tracer itself has failed and
// that the tree was killed for it.
func (t *Tracer) Wait() (Status, error) {
	<-t.rooted
	select {
	case <-t.done:
		return t.status, t.err
	default:
		return t.status, nil
	}
}

// Processes returns the processes that live now. Anyone may call it.
func (t *Tracer) Processes() []*Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	ps := make([]*Process, 0, len(t.procs))
	for _, p := range t.procs {
		ps = append(ps, p)
	}
	return ps
}

// Kill sends SIGKILL to every process of the tree, and to all that appear
// later. It does not wait for the tracer thread and cannot fail.
func (t *Tracer) Kill() {
	t.killing.Store(true)
	for _, p := range t.Processes() {
		_ = unix.Kill(p.pid, unix.SIGKILL) // ESRCH: gone already
	}
	// A task that was born in between is not in the list above, but stopped,
	// and known to the tracer thread by the time that it runs this.
	go t.Do(t.killAll)
}

// killAll kills what Kill does not see.
func (t *Tracer) killAll() {
	for tid := range t.parked {
		_ = unix.Kill(tid, unix.SIGKILL)
	}
	for tid := range t.foreign {
		_ = unix.Kill(tid, unix.SIGKILL)
	}
	for tid := range t.threads {
		_ = unix.Kill(tid, unix.SIGKILL)
	}
}

// requests is the queue of functions for the tracer thread.
type requests struct {
	mu     sync.Mutex
	fs     []*request
	closed bool
}

type request struct {
	f    func()
	done chan struct{}
}

func (q *requests) put(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.fs = append(q.fs, r)
	}
	return !q.closed
}

// take returns the oldest request, nil if there is none; with last set,
// none can be put from then on.
func (q *requests) take(last bool) *request {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.fs) == 0 {
		q.closed = q.closed || last
		return nil
	}
	r := q.fs[0]
	q.fs = q.fs[1:]
	return r
}

// Do runs f on the tracer thread between two events and returns when it is
// done. It returns false, without having run f, if the tree is gone. Called
// on the tracer thread it just runs f.
//
// f must not block: nothing of the tree is handled meanwhile.
func (t *Tracer) Do(f func()) bool {
	if unix.Gettid() == t.tid {
		f()
		return true
	}
	r := &request{f: f, done: make(chan struct{})}
	if !t.queue.put(r) {
		return false
	}
	// A signal ends the tracer's wait4 with EINTR. One that comes just before
	// wait4 is entered is lost, and there is no variant of wait4 that takes a
	// signal mask to close that gap. So it is sent until the request has been
	// taken. The alternatives cost more where it matters: waiting for
	// SIGCHLD in poll(2) adds two system calls and a signal to every stop of
	// the program, while this one is paid only by Do.
	pause := 50 * time.Microsecond
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		_ = unix.Tgkill(unix.Getpid(), t.tid, wakeSignal)
		select {
		case <-r.done:
			return true
		case <-timer.C:
			pause = min(2*pause, 10*time.Millisecond)
			timer.Reset(pause)
		}
	}
}

// wakeSignal interrupts the tracer's wait. No library uses the last ones of
// the real-time signals.
const wakeSignal = syscall.Signal(63)
