// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/collect"
	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/sys"
	"github.com/faultline-go/faultline/internal/uffdtrace"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/vkernel"
)

// Options says what to run.
type Options struct {
	// Path is the program's file, Argv its arguments with its name first,
	// Env its environment.
	Path string
	Argv []string
	Env  []string
	// Files are what it has as descriptors 0 and up; those of 0 to 2 that we
	// have if nil.
	Files []uintptr
	// Log takes what the user must be told. Optional.
	Log *slog.Logger
	// Trace is told what the program does with the call. Optional; it is for
	// the command trace, and its type is nobody else's.
	Trace uffdtrace.Sink
}

// Provider is a program that has the system call from us.
type Provider struct {
	log     *slog.Logger
	tracer  *tracee.Tracer
	unrelay func()
	hangups *hangups
	ticker  sync.WaitGroup
	quit    chan struct{}
	parked  atomic.Int64 // jobs that wait
	failure atomic.Pointer[error]

	// All that follows is of the tracer thread.
	k        *vkernel.Kernel
	hooks    *Hooks           // set if our own process is the manager; see Engine
	watching bool             // a descriptor may be of /proc/PID/mem, in a managed tree
	registry *vkernel.Process // holds every descriptor while a program does
	keeper   *vkernel.Thread
	spaces   map[*tracee.Space]*space
	tasks    map[*tracee.Thread]*task
	filters  map[*tracee.Process]*filters
	files    map[uint64]*file   // by the inode of the pipe
	trace    *collect.Collector // nil without a trace
	// beginning is the thread whose call the trace is just told of.
	beginning *tracee.Thread
	woken     []*task
	changed   []*file
	polls     []unix.PollFd // for reap
	pace      pace
	at        inject.Stop // of the thread that has stopped last
	ready     int         // files with the byte in their pipe
	serving   bool        // see serve
	// unborn has, by the numbers of their descriptors, the managers whose fork
	// events were read for children that nobody manages yet.
	unborn map[int]*Manager
}

// Start launches the program. The caller must Wait for it.
func Start(o Options) (*Provider, error) {
	p, err := newProvider(o.Log)
	if err != nil {
		return nil, err
	}
	if o.Trace != nil {
		p.trace = collect.New(o.Trace, ground{p})
	}
	t, err := tracee.Start(tracee.Options{Path: o.Path, Argv: o.Argv, Env: o.Env, Files: o.Files, Handler: p})
	if err != nil {
		p.hangups.close()
		return nil, err
	}
	p.run(t)
	p.unrelay = t.Relay()
	t.Continue()
	return p, nil
}

func newProvider(log *slog.Logger) (*Provider, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	h, err := newHangups()
	if err != nil {
		return nil, err
	}
	p := &Provider{
		log: log, hangups: h, quit: make(chan struct{}),
		k:       vkernel.New(vkernel.Linux618, vkernel.WithMirrors(), vkernel.WithUnprivileged()),
		spaces:  make(map[*tracee.Space]*space),
		tasks:   make(map[*tracee.Thread]*task),
		filters: make(map[*tracee.Process]*filters),
		files:   make(map[uint64]*file),
		unborn:  make(map[int]*Manager),
	}
	p.registry = p.k.NewProcess(vkernel.ProcessOptions{MaxFiles: 1 << 20})
	p.keeper = p.registry.NewThread()
	return p, nil
}

// run begins to look after the tree of a tracer.
func (p *Provider) run(t *tracee.Tracer) {
	p.tracer = t
	p.hangups.watch(func(ino uint64) { t.Do(func() { p.hungUp(ino) }) })
	p.ticker.Go(p.tick)
}

// rest ends what run has begun.
func (p *Provider) rest() {
	close(p.quit)
	p.ticker.Wait()
	p.hangups.close()
	for _, f := range p.files {
		f.close()
	}
}

// Wait returns the status of the program when it has ended, and with it all
// that it started. The error is ours: the program has then been killed.
func (p *Provider) Wait() (tracee.Status, error) {
	<-p.tracer.Done()
	st, err := p.tracer.Wait()
	p.unrelay()
	p.rest()
	if f := p.failure.Load(); f != nil {
		return st, *f
	}
	return st, err
}

// State returns what a thread of the program sleeps in by our doing, and
// [vkernel.Running] for every other: what those are at only the kernel knows. To
// the kernel a thread that we let sleep is in a ptrace stop.
func (p *Provider) State(tid int) vkernel.State {
	s := vkernel.Running
	p.tracer.Do(func() {
		for th, t := range p.tasks {
			if th.Tid() == tid {
				s = t.v.State()
			}
		}
	})
	return s
}

// Kill ends the whole tree at once.
func (p *Provider) Kill() { p.tracer.Kill() }

// fatal ends the program because going on would show it wrong memory.
func (p *Provider) fatal(what string, err error) {
	err = fmt.Errorf("%s: %w", what, err)
	if p.failure.CompareAndSwap(nil, &err) {
		p.log.Error(fmt.Sprintf("killing the program: %v", err))
	}
	p.tracer.Kill()
}

// gone reports whether an error means no more than that a thread or an agent
// has died.
func gone(err error) bool {
	return errors.Is(err, inject.ErrGone) || errors.Is(err, inject.ErrExec) ||
		errors.Is(err, inject.ErrAgentDead) || errors.Is(err, tracee.ErrGone)
}

// settle runs what was woken until nothing is left to do, and brings the
// readiness of descriptors in order. Memory has been changed by then.
func (p *Provider) settle() {
	for len(p.woken) != 0 || len(p.changed) != 0 {
		for len(p.woken) != 0 {
			t := p.woken[0]
			p.woken = p.woken[1:]
			if t.job != nil {
				t.next()
			}
		}
		p.woken = nil
		for _, f := range p.changed {
			f.changed = false
			f.publish()
		}
		p.changed = p.changed[:0]
	}
	// What was read, or taken back, is not told.
	if p.ready != 0 {
		for _, f := range p.files {
			if f.ready {
				f.publish()
			}
		}
	}
	if p.hooks != nil {
		p.serve()
	}
}

const (
	tickEvery = 5 * time.Millisecond
	// patience is how long a thread waits in its stop before it is looked
	// after.
	patience = 4 * time.Millisecond
	// mostBlind is how long a signal to a thread that waits may go unseen.
	mostBlind = 100 * time.Millisecond
)

// tick has those who wait for long looked after.
func (p *Provider) tick() {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-p.quit:
			return
		case <-t.C:
			p.watch()
			if p.parked.Load() > 0 {
				p.tracer.Do(p.look)
			}
		}
	}
}

// look finds the threads that wait for long. A stop that lasts hides signals
// from them: one that waits for a page goes on if it has one, and one that
// reads waits in the kernel instead, where signals are seen.
func (p *Provider) look() {
	now := time.Now()
	for _, t := range p.tasks {
		// The longer it has waited, the more seldom: hundreds may wait.
		if t.since.IsZero() || now.Sub(t.since) < patience || now.Sub(t.looked) < min(now.Sub(t.since)/2, mostBlind) {
			continue
		}
		t.looked = now
		switch {
		case t.wait == waitRead && !t.native:
			t.native = true
			t.v.Interrupt()
		case t.wait == waitPage, t.wait == waitCall:
			t.heed()
		}
	}
	for _, f := range p.files {
		f.tell(true) // for those who wait in ways that we do not see
	}
	p.settle()
}

// task returns what is known of a thread in a space, and makes it if need be.
func (p *Provider) task(th *tracee.Thread) *task {
	if t := p.tasks[th]; t != nil {
		return t
	}
	sp := p.space(th.Process().Space())
	return p.newTask(th, sp)
}

// Exec implements [tracee.Handler].
func (p *Provider) Exec(pr *tracee.Process, old *tracee.Space) {
	if f := p.filters[pr]; f != nil {
		f.fds = nil
	}
	// What was known of the thread was of the old space.
	for _, th := range pr.Threads() {
		if t := p.tasks[th]; t != nil {
			t.end()
		}
	}
	if old != nil {
		if p.trace != nil {
			p.trace.Exec(pr)
		}
		return
	}
	for _, th := range pr.Threads() {
		if !pr.Compat() {
			p.begin(pr, th)
		}
		if p.trace != nil {
			p.trace.Start(th)
		}
	}
}

// begin puts the first filter on the program.
func (p *Provider) begin(pr *tracee.Process, th *tracee.Thread) {
	p.filters[pr] = &filters{}
	first := firstFilter
	if p.hooks != nil {
		first = earlyFilter
	}
	p.session("install the first filter", th, func(s *inject.Session) error { return s.Install(first()) })
}

// Fork implements [tracee.Handler].
func (p *Provider) Fork(parent, child *tracee.Process) {
	if f := p.filters[parent]; f != nil {
		c := f.clone()
		p.filters[child] = c
		// Where the kernel cannot tell, they may.
		if same, err := sys.SameFiles(parent.Pid(), child.Pid()); same || err != nil {
			f.unshare()
			c.unshare()
		}
	}
	if p.trace != nil {
		p.trace.Fork(parent, child)
	}
	sp := p.spaces[parent.Space()]
	if sp == nil || child.Space() == parent.Space() {
		p.vforked(child)
		return
	}
	sp.forked(child)
}

// Thread implements [tracee.Handler].
func (p *Provider) Thread(th *tracee.Thread, id mem.Addr) {
	if p.hooks != nil && id != 0 {
		p.task(th).own.clear = id
	}
}

// ThreadGone implements [tracee.Interceptor].
func (p *Provider) ThreadGone(th *tracee.Thread) {
	if t := p.tasks[th]; t != nil {
		t.end()
	}
}

// SpaceGone implements [tracee.Handler].
func (p *Provider) SpaceGone(ts *tracee.Space) {
	if sp := p.spaces[ts]; sp != nil {
		delete(p.spaces, ts)
		sp.close()
		p.settle()
	}
}

// Exited implements [tracee.Handler].
func (p *Provider) Exited(pr *tracee.Process, st tracee.Status) {
	delete(p.filters, pr)
	if p.trace != nil {
		p.trace.Exited(pr, st)
	}
}

// SyscallEnter implements [tracee.Handler].
func (p *Provider) SyscallEnter(th *tracee.Thread) bool {
	if p.at.Read(th.Tid()) != nil {
		return false // dying, or of another ABI
	}
	var c tracee.Call
	if c.Nr, c.Args, c.Native = p.at.Call(); !c.Native {
		return false
	}
	traced := p.begins(th, c)
	job := p.jobFor
	if p.hooks != nil {
		job = p.managedJob
	}
	if job := job(th, c); job != nil {
		t := p.task(th)
		t.start(func() { job(t, c) })
		return false
	}
	return traced
}

// SyscallExit implements [tracee.Handler].
func (p *Provider) SyscallExit(th *tracee.Thread) {
	if t := p.tasks[th]; t != nil && t.wait == waitNative {
		t.exited()
	} else if c, err := th.Call(); err == nil && p.trace != nil {
		p.trace.Exit(th, int64(c.Ret), c.Errno)
	}
}

// Signal implements [tracee.Interceptor].
func (p *Provider) Signal(th *tracee.Thread, sig syscall.Signal) syscall.Signal {
	switch {
	case sig == unix.SIGSEGV:
		sig = p.segv(th, sig)
	case sig == unix.SIGSYS && p.hooks == nil:
		return p.refused(th, sig)
	}
	if sig != 0 && p.hooks != nil {
		return p.deliver(th, sig)
	}
	return sig
}

// refused handles a call that the first filter has refused, for us to make.
func (p *Provider) refused(th *tracee.Thread, sig syscall.Signal) syscall.Signal {
	si, err := inject.ReadSignal(th.Tid())
	if err != nil || si.Code != inject.SysSeccomp {
		return sig
	}
	if p.at.Read(th.Tid()) != nil {
		return sig
	}
	nr, args := p.at.Refused()
	if nr != unix.SYS_USERFAULTFD {
		return sig
	}
	p.begins(th, tracee.Call{Native: true, Nr: nr, Args: args})
	p.reap()
	t := p.task(th)
	t.start(func() {
		t.leave(t.create(int(int32(args[0]))))
	})
	return 0
}
