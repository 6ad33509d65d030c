// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// relay makes the supervisor transparent for signals and job control.
//
// Supervisor and program are in the same process group. What the terminal
// sends reaches both, and what somebody sends to the supervisor's id is meant
// for the program. The first is known by its si_code. Else the two are told
// apart by what the program gets: each signal that is delivered to it stops
// it and is seen by the tracer. Only a program that takes signals by
// sigwait(3) or signalfd(2), which do not stop it, may get a signal twice
// that kill(2) has sent to the whole group.
type relay struct {
	t       *Tracer
	ch      chan os.Signal
	stopped chan int // the root program is stopped by this signal
	quit    chan struct{}

	// Of the tracer thread.
	got     [65][]time.Time // when the root program got the signal, until matched
	stopSig int             // the root program is in a group stop by this signal
	stopBy  *Process        // of the tree: it has sent that, and may take it back
	stopAt  time.Time       // when it entered its latest group stop
	contAt  time.Time       // when it left that, or we were told to continue
}

// Values of si_code, sigaction(2).
const (
	siUser   = 0
	siQueue  = -1
	siKernel = 0x80
)

const (
	// sameSend is how far apart the two copies of one signal may be seen.
	sameSend = time.Second
	// maxSights bounds what is remembered of a signal that comes in floods and
	// of which we get no copy.
	maxSights = 64
	// grace is how long the program's copy may take to be seen after ours.
	// In between it is neither pending nor reported: the kernel has handed
	// it to a thread that has not got to its stop.
	grace = 20 * time.Millisecond
)

// Relay makes the supervisor stand for the program towards the outside: a
// signal that is sent to the supervisor alone is forwarded, one that is sent
// to the whole process group has reached the program already and is dropped.
// When the program is stopped the supervisor stops itself by the same signal,
// so that the shell sees a stopped job, and continues with it.
//
// While the supervisor is stopped nothing of the tree is served: whoever
// stopped the program must continue the job, not the program's process
// alone. A process of the tree that has stopped the program knows of no job. As
// long as it runs the supervisor does not stop.
//
// Relay is for one tracer in a process, after [Start] and before
// [Tracer.Continue]. From then on the supervisor ignores SIGPIPE, SIGTTIN and
// SIGTTOU: writing to the terminal from the background does not stop the
// job. The function that it returns ends the forwarding; the signals stay
// caught.
func (t *Tracer) Relay() (stop func()) {
	r := &relay{
		t:       t,
		ch:      make(chan os.Signal, 256),
		stopped: make(chan int, 1),
		quit:    make(chan struct{}),
	}
	t.Do(func() { t.relay = r })
	signal.Ignore(unix.SIGPIPE, unix.SIGTTIN, unix.SIGTTOU)
	signal.Notify(r.ch, relayed()...)
	noteCodes(relayed())
	go r.run()
	return sync.OnceFunc(func() { close(r.quit) })
}

// relayed lists what is forwarded: all signals that can be caught, but for
// those that the supervisor gets on its own account.
func relayed() []os.Signal {
	var list []os.Signal
	for sig := syscall.Signal(1); sig < markSignal; sig++ {
		switch sig {
		case unix.SIGKILL, unix.SIGSTOP, // cannot be caught
			unix.SIGILL, unix.SIGTRAP, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSYS, // faults
			unix.SIGSTKFLT, unix.SIGURG, unix.SIGPROF, 32, 33, 34, // the Go runtime's
			unix.SIGXCPU, unix.SIGXFSZ, // our own use of time and files
			unix.SIGCHLD, unix.SIGPIPE, unix.SIGTTIN, unix.SIGTTOU, wakeSignal:
		default:
			list = append(list, sig)
		}
	}
	return list
}

func (r *relay) run() {
	for {
		select {
		case <-r.quit:
			return
		case s := <-r.ch:
			r.forwardLater(s)
		case sig := <-r.stopped:
			r.stopSelf(sig)
		}
	}
}

// forwardLater forwards a signal if the program has not got it.
func (r *relay) forwardLater(s os.Signal) {
	sig := s.(syscall.Signal)
	if signalCode(int(sig)) == siKernel {
		switch sig {
		case unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGWINCH:
			return // from the terminal, which sends them to groups only
		}
	}
	at := time.Now()
	if sig == unix.SIGCONT {
		r.t.Do(func() { r.contAt = at })
	}
	go r.forward(int(sig), at)
}

// verdict says what is to be done with a signal that the supervisor got.
type verdict int

const (
	drop    verdict = iota // the program has it
	unknown                // not seen yet
	lost                   // there is no program
)

func (r *relay) forward(sig int, at time.Time) {
	v := lost
	for range 2 {
		if !r.t.Do(func() { v = r.judge(sig, at) }) || v != unknown {
			return
		}
		time.Sleep(grace)
	}
	r.t.Do(func() {
		if v = r.judge(sig, at); v == unknown {
			_ = unix.Kill(r.t.root.pid, syscall.Signal(sig)) // ESRCH: it dies
		}
	})
}

// judge finds out, on the tracer thread, whether the program has the signal.
func (r *relay) judge(sig int, at time.Time) verdict {
	select {
	case <-r.t.rooted:
		return lost
	default:
	}
	if r.match(sig, at) {
		return drop
	}
	// A signal to stop takes back one to continue that has not been acted upon,
	// and the other way around, signal(7). The program's copy may be gone so.
	if sig == int(unix.SIGCONT) && r.stopAt.After(at) || isStopSignal(sig) && r.contAt.After(at) {
		return drop
	}
	// A signal that is pending is not queued twice, so this one would change
	// nothing.
	if pendingShared(r.t.root.pid)&(1<<(sig-1)) != 0 {
		return drop
	}
	return unknown
}

// match takes one sight of a signal that the program got at about that time.
// It reports whether there was one.
func (r *relay) match(sig int, at time.Time) bool {
	sights := r.got[sig]
	for len(sights) > 0 && at.Sub(sights[0]) > sameSend {
		sights = sights[1:] // nobody has come for it
	}
	found := len(sights) > 0 && sights[0].Sub(at) < sameSend
	if found {
		sights = sights[1:]
	}
	r.got[sig] = sights
	return found
}

// saw notes that the root program gets a signal, if it is one of which the
// supervisor may have got a copy.
func (r *relay) saw(th *Thread, sig int) {
	if isFault(sig) {
		return // meant for the thread alone
	}
	if r == nil || th.proc != r.t.root || sig <= 0 || sig >= len(r.got) {
		return
	}
	si, err := getSiginfo(th.tid)
	if err == nil && isStopSignal(sig) {
		if r.stopBy = nil; si.code == siUser || si.code == siQueue {
			r.stopBy = r.t.procs[int(si.pid)]
		}
	}
	if err == nil && copied(syscall.Signal(sig), si) {
		sights := r.got[sig]
		if len(sights) >= maxSights {
			sights = sights[1:]
		}
		r.got[sig] = append(sights, time.Now())
	}
}

// copied tells what a process or the terminal has sent to a group of
// processes, perhaps, from what was meant for this process or thread alone.
func copied(sig syscall.Signal, si siginfo) bool {
	switch si.code {
	case siUser, siQueue:
		return int(si.pid) != unix.Getpid() // or forwarded by us
	case siKernel:
		switch sig {
		case unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGCONT, unix.SIGWINCH:
			return true
		}
	}
	return false
}

// rootRuns notes that a thread has left its group stop.
func (r *relay) rootRuns(th *Thread) {
	if r != nil && th.proc == r.t.root && r.stopSig != 0 {
		r.stopSig, r.contAt = 0, time.Now()
	}
}

// rootStops notes that a thread has entered a group stop by sig. When all
// threads have, the job is stopped.
func (r *relay) rootStops(th *Thread, sig int) {
	if r == nil || th.proc != r.t.root || r.stopSig != 0 {
		return
	}
	for _, other := range th.proc.threads {
		if other.state != listening {
			return
		}
	}
	r.stopSig, r.stopAt = sig, time.Now()
	if !r.waits() {
		r.stop()
	}
}

// waits reports whether the process that has stopped the root program may continue
// it, if it is another one.
func (r *relay) waits() bool {
	if r.stopBy == nil || r.stopBy == r.t.root {
		return false
	}
	for _, th := range r.stopBy.threads {
		if th.state != listening {
			return true
		}
	}
	return false
}

// settled notes that a process has ended, or one of its threads has stopped.
func (r *relay) settled(p *Process) {
	if r != nil && r.stopSig != 0 && r.stopBy == p && !r.waits() {
		r.stopBy = nil
		r.stop()
	}
}

func (r *relay) stop() {
	select {
	case r.stopped <- r.stopSig:
	default: // one is on its way already
	}
}

// stopSelf stops the supervisor and returns when it has been continued.
func (r *relay) stopSelf(sig int) {
	// Our own copy of the signal is taken first: found after the stop, it
	// could not be told from a new one.
	time.Sleep(grace / 4)
	for len(r.ch) > 0 {
		r.forwardLater(<-r.ch)
	}
	// On the tracer thread, so that nothing comes between the last look and the
	// stop: whoever continues the job after that continues us, too.
	r.t.Do(func() {
		if r.stopSig != 0 && pendingShared(r.t.root.pid)&(1<<(unix.SIGCONT-1)) == 0 {
			raise(syscall.Signal(sig))
		}
	})
}

// raise stops this process by a stop signal, the one that its parent is to
// see, and returns when the process has been continued. It is for the tracer
// thread, which is locked.
func raise(sig syscall.Signal) {
	if sig != unix.SIGSTOP {
		old, err := getAction(int(sig))
		if err != nil || setAction(int(sig), sigaction{handler: sigDfl}) != nil {
			return
		}
		defer func() { _ = setAction(int(sig), old) }()
	}
	// To this very thread: it is acted upon before the call returns.
	_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), sig)
}

// pendingShared returns the signals that wait for any thread of a process.
func pendingShared(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	return statusField(string(b), "ShdPnd:", 16)
}
