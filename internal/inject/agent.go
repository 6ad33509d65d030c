// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/place"
	"github.com/faultline-go/faultline/mem"
)

var (
	// ErrAgentDead is matched when the agent has died: killed, or out of
	// memory. Operations that it had not reported may have been done or not.
	ErrAgentDead = errors.New("agent is dead")

	// ErrAgentStuck is matched when an operation did not return in time. The
	// agent has been killed then.
	ErrAgentStuck = errors.New("agent does not answer")
)

const (
	// answerTime bounds one round trip. It is far beyond what a batch takes,
	// including pages that have to be brought in for it.
	answerTime = 30 * time.Second

	// glanceTime is how often a waiter looks whether the agent still lives,
	// for the case that the tracer is not there to call Exited.
	glanceTime = 10 * time.Millisecond
)

// Op is one system call for an agent.
type Op struct {
	NR   uintptr
	Args [6]uintptr

	// Ret is what the call returned, a value or a negated errno; -ECANCELED
	// if the batch stopped before it.
	Ret uintptr

	// StopOnError ends the batch here if the call fails.
	StopOnError bool
}

// Err returns the errno in Ret, nil if the call succeeded.
func (op *Op) Err() error {
	_, err := splitResult(op.Ret)
	return err
}

// Agent is a task of ours in the program's address space. It is a process of
// its own that shares nothing with the program but memory: no descriptors, no
// signal handlers, no terminal. All methods may be called from any goroutine;
// operations are done one batch at a time.
//
// Planted where Filter is in force already, as in a child of a program that
// has it, the agent is subject to it too: calls that the filter reports stop
// the agent until the tracer has passed the stop to Stopped, so that the
// tracer's own thread must not Run them.
//
// The agent stays traced. Its stops and its death come to the tracer's wait,
// which must pass them to Stopped and Exited.
//
// It keeps the address space alive: after the program has ended or has called
// exec the owner must Kill it.
type Agent struct {
	tid    int
	tracer int         // thread that traces it, ours
	ranges []mem.Range // what it has mapped in the program
	addr   mem.Addr    // of the area there

	raw []byte // the area mapped here; immutable until Release

	mu     sync.Mutex    // serialises batches; taken before mapMu
	seq    uint32        // under mu
	watch  bool          // under mu: it runs beside us
	idle   bool          // under mu: it is in the idle class
	glance unix.Timespec // immutable; a field so that it does not escape anew

	mapMu sync.Mutex
	area  *area // written under mu and mapMu, nil after Release
	pidfd int   // likewise; -1 after Release

	gone atomic.Bool
	dead chan struct{}
	once sync.Once
}

// Tid returns the agent's thread and process id in our namespace.
func (a *Agent) Tid() int { return a.tid }

// Ranges returns the memory that the agent occupies in the program. It must
// be left alone by whoever registers or evicts the program's memory.
func (a *Agent) Ranges() []mem.Range { return a.ranges }

// Data returns memory shared with the program, DataSize bytes, for structs
// that operations point to. It is not serialised by anything and must not be
// used after Release.
func (a *Agent) Data() []byte { return a.raw[dataOff:] }

// DataAddr returns the address of Data in the program.
func (a *Agent) DataAddr() mem.Addr { return a.addr + dataOff }

// Call performs one system call in the program's address space. The error is
// the errno that it returned, or one of Run's.
func (a *Agent) Call(nr uintptr, args ...uintptr) (uintptr, error) {
	op := [1]Op{{NR: nr}}
	copy(op[0].Args[:], args)
	if err := a.Run(op[:]); err != nil {
		return 0, err
	}
	return splitResult(op[0].Ret)
}

// Run performs a batch of operations in order and fills in their results. It
// allocates nothing. An operation that fails is no error of Run's.
//
// The error matches ErrAgentDead or ErrAgentStuck; results are then not to be
// used.
func (a *Agent) Run(ops []Op) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(ops) > 0 {
		n := min(len(ops), MaxOps)
		stopped, err := a.roundTripLocked(ops[:n])
		if err != nil {
			return err
		}
		ops = ops[n:]
		if stopped {
			break
		}
	}
	for i := range ops {
		ops[i].Ret = canceled
	}
	return nil
}

const canceled = ^uintptr(unix.ECANCELED - 1)

// roundTripLocked has one request done. It reports whether the agent stopped
// at an error.
//
// Preconditions: a.mu is held, len(ops) <= MaxOps.
func (a *Agent) roundTripLocked(ops []Op) (stopped bool, err error) {
	if a.gone.Load() || a.area == nil {
		return false, fmt.Errorf("agent %d: %w", a.tid, ErrAgentDead)
	}
	sh := a.area
	for i := range ops {
		op, sl := &ops[i], &sh.ops[i]
		sl.nr, sl.flags = uint64(op.NR), 0
		if op.StopOnError {
			sl.flags = 1
		}
		for j, v := range op.Args {
			sl.args[j] = uint64(v)
		}
	}
	sh.count = uint32(len(ops))
	if a.seq++; a.seq == buried {
		a.seq = 1
	}
	sh.seq.Store(a.seq)
	if sh.asleep.Load() != 0 {
		futexWake(&sh.seq)
	}
	if err := a.awaitLocked(sh); err != nil {
		return false, err
	}
	// The program can write to ran: it is no more than a count of results.
	ran := min(int(sh.ran), len(ops))
	for i := range ran {
		ops[i].Ret = uintptr(sh.ops[i].ret)
	}
	for i := ran; i < len(ops); i++ {
		ops[i].Ret = canceled
	}
	last := ran - 1
	return ran < len(ops) || last >= 0 && ops[last].StopOnError && ops[last].Err() != nil, nil
}

// awaitLocked waits until the request a.seq is done.
func (a *Agent) awaitLocked(sh *area) error {
	if sh.done.Load() == a.seq || a.watch && a.watchLocked(sh) {
		return nil
	}
	if a.idle {
		// It starves where it is.
		place.SetIdle(a.tid, false)
		a.idle = false
	}
	var start time.Time
	sh.waiting.Store(1)
	defer sh.waiting.Store(0)
	for {
		got := sh.done.Load()
		switch {
		case got == a.seq:
			return nil
		case a.gone.Load():
			return fmt.Errorf("agent %d: %w", a.tid, ErrAgentDead)
		}
		futexWait(&sh.done, got, &a.glance)
		if sh.done.Load() != got {
			continue
		}
		a.passStop()
		// Nothing came for a while, or a signal did.
		switch {
		case pidfdDead(a.pidfd):
			a.bury()
		case start.IsZero():
			start = time.Now()
		case time.Since(start) > answerTime:
			a.Kill()
			a.bury()
			return fmt.Errorf("agent %d, after %v: %w", a.tid, answerTime, ErrAgentStuck)
		}
	}
}

// passStop lets the agent go on from a ptrace stop if that is the caller's to
// do: on the tracer's thread, which waits for the agent while it is made and
// handles no other event meanwhile, nobody else would. A signal that somebody
// sends it is dropped. Its death is left for the tracer's wait.
func (a *Agent) passStop() {
	if unix.Gettid() != a.tracer {
		return
	}
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, a.tid, &info, unix.WSTOPPED|unix.WNOHANG|unix.WALL|unix.WNOTHREAD, nil)
	if err != nil || info.Signo == 0 {
		return // not stopped
	}
	si, err := getSiginfo(a.tid)
	if err != nil {
		return // killed meanwhile
	}
	sig := 0
	if delivered := si.code <= 0 || si.code>>8 == 0; delivered && faults&bit(unix.Signal(si.signo)) != 0 {
		sig = int(si.signo) // it would come again for ever
	}
	_ = ptrace(unix.PTRACE_CONT, a.tid, 0, uintptr(sig)) // ESRCH: killed meanwhile
}

// watchTime is how long the answer is watched for: longer than a batch takes.
const watchTime = 400 * time.Microsecond

// watchLocked looks out for the answer without sleeping. It reports whether
// it has come.
func (a *Agent) watchLocked(sh *area) bool {
	for end := time.Now().Add(watchTime); time.Now().Before(end); place.Yield() {
		for range 200 {
			if sh.done.Load() == a.seq {
				return true
			}
		}
	}
	return false
}

// Watch makes Run look out for the answer for a while before it sleeps. It is
// for an agent that runs on another processor than Run's caller: a sleep
// costs two wakeups, and lets the caller's processor take over a thread from
// the agent's.
func (a *Agent) Watch(on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watch = on
}

// SetIdle moves the agent to the idle scheduling class, where it leaves its
// processor to whoever wants it, and back. It leaves the class by itself when
// it does not answer in time. SetIdle reports in which one it is now.
func (a *Agent) SetIdle(on bool) (idle bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if on != a.idle && place.SetIdle(a.tid, on) {
		a.idle = on
	}
	return a.idle
}

// Idle reports whether the agent is in the idle class.
func (a *Agent) Idle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.idle
}

// SetSpin makes the agent look n times for the next request before it goes to
// sleep. It pays where requests follow each other at once and the agent has a
// CPU of its own; on the requester's CPU it costs.
func (a *Agent) SetSpin(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.area != nil {
		a.area.spin.Store(uint32(n))
	}
}

// SetCPU binds the agent to one CPU. A round trip is fastest on the CPU of
// the requesting thread: waking an idle one costs more than the work.
func (a *Agent) SetCPU(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(a.tid, &set); err != nil {
		return fmt.Errorf("bind agent %d to cpu %d: %w", a.tid, cpu, err)
	}
	return nil
}

// Unbind lets the agent run on all processors that its supervisor may use.
func (a *Agent) Unbind() error {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(unix.Getpid(), &set); err != nil {
		return err
	}
	return unix.SchedSetaffinity(a.tid, &set)
}

// FD takes a duplicate of the agent's descriptor n, close-on-exec, which the
// caller owns. Needs Linux 5.6.
func (a *Agent) FD(n int) (int, error) {
	a.mapMu.Lock()
	defer a.mapMu.Unlock()
	fd, err := unix.PidfdGetfd(a.pidfd, n, 0)
	if err != nil {
		return -1, fmt.Errorf("take descriptor %d of agent %d: %w", n, a.tid, err)
	}
	return fd, nil
}

// Stopped passes a ptrace stop of the agent's to it, and resumes it. For the
// tracer's thread only. The error matches ErrGone if the agent has died
// meanwhile.
//
// The agent stops at the calls of an inherited seccomp filter, which it is
// always allowed; at SIGSTOP, which it ignores; and at signals that kill it.
func (a *Agent) Stopped(ws unix.WaitStatus) error {
	code := int(ws>>8) & 0xffffff
	sig := 0
	if code>>8 == 0 && code&0x80 == 0 && unix.Signal(code) != unix.SIGSTOP {
		sig = code
	}
	if err := ptrace(unix.PTRACE_CONT, a.tid, 0, uintptr(sig)); err != nil {
		return fmt.Errorf("resume agent %d: %w", a.tid, err)
	}
	return nil
}

// Kill kills the agent. Its death comes to the tracer's wait.
func (a *Agent) Kill() {
	a.mapMu.Lock()
	defer a.mapMu.Unlock()
	// ESRCH: dead already, which is what was asked for.
	_ = unix.PidfdSendSignal(a.pidfd, unix.SIGKILL, nil, 0)
}

// Exited tells the agent's users that the tracer has reaped it.
func (a *Agent) Exited() { a.bury() }

// bury wakes everyone who waits for the agent.
func (a *Agent) bury() {
	a.once.Do(func() {
		a.gone.Store(true)
		close(a.dead)
		// Not mu, which a waiter holds. Changing the word, and not only waking,
		// catches a waiter that has seen gone unset and is about to sleep.
		a.mapMu.Lock()
		defer a.mapMu.Unlock()
		if a.area != nil {
			a.area.done.Store(buried)
			futexWake(&a.area.done)
		}
	})
}

// Dead is closed when the agent is known to be dead.
func (a *Agent) Dead() <-chan struct{} { return a.dead }

// Release kills the agent if it lives and frees what it takes on our side:
// the mapping behind Data, and the pidfd. Its death still has to be reaped. A
// second Release does nothing.
func (a *Agent) Release() {
	a.Kill()
	a.bury()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mapMu.Lock()
	defer a.mapMu.Unlock()
	// Errors mean that the mapping or the descriptor is not ours: nothing
	// that could be mended here.
	if a.area != nil {
		_ = unix.Munmap(a.raw)
	}
	if a.pidfd >= 0 {
		_ = unix.Close(a.pidfd)
	}
	a.area, a.raw, a.pidfd = nil, nil, -1
}
