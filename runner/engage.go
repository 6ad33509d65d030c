// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager"
	"github.com/faultline-go/faultline/provider"
	"github.com/faultline-go/faultline/tracee"
)

// engagement is an address space that the pager serves, or is about to.
type engagement struct {
	r     *Run
	space *tracee.Space
	// fd and pg are set before live, and not changed thereafter.
	fd faults
	pg *pager.Space
	// user is fd where the engine in software serves it, else nil.
	user *provider.Manager

	// live is set while pg is there to be used.
	live atomic.Bool

	mu      sync.Mutex
	agent   *inject.Agent // protected by mu; nil until needed, in a forked child
	planted func()        // ends the wait for a thread to plant it in; protected by mu
	private []mem.Range   // our own memory in the program; protected by mu
	brk     mem.Addr      // end of the heap as last seen, 0 if not known; protected by mu
	closed  bool          // protected by mu
	// making counts the movers that are being made, of an agent that must not be
	// released meanwhile. None begins once closed is set.
	making sync.WaitGroup

	births *births // forked children that wait for their process

	// scanMu keeps rescan from taking an agent's memory, or a mover's window,
	// for the program's while it is being made.
	scanMu sync.Mutex
	looked bool // whether freed is known; protected by scanMu
	// freed says that the program, or a parent of it, had used MADV_FREE before its
	// memory was engaged. From then on the filter forbids it.
	freed atomic.Bool

	pmMu sync.Mutex
	pm   *procmem.Pagemap // protected by pmMu
}

// pid returns a process that lives in the space, or lived there last.
func (e *engagement) pid() int { return e.space.Pid() }

func (r *Run) newEngagement(sp *tracee.Space) *engagement {
	return &engagement{r: r, space: sp, births: newBirths()}
}

// engage begins to serve an address space. It does nothing if the space has
// ended meanwhile.
func (r *Run) engage(sp *tracee.Space) error {
	e := r.newEngagement(sp)
	if !r.claimSpace(e) {
		return nil // ended, or a fork was faster
	}
	if err := e.begin(); err != nil {
		r.disown(e)
		return fmt.Errorf("engaging pid %d: %w", sp.Pid(), err)
	}
	return nil
}

// begin does all of it while a thread is stopped, and with it those others
// that are running: they cannot fill memory meanwhile that nobody bounds.
func (e *engagement) begin() error {
	e.scanMu.Lock()
	defer e.scanMu.Unlock()
	err := e.r.tracer.Stopped(context.Background(), e.space, func(th *tracee.Thread) error {
		if e.live.Load() {
			return nil // done, with a thread that was killed at the very end
		}
		if e.r.user != nil {
			if err := e.manage(th); err != nil {
				return err
			}
		} else if err := e.open(th); err != nil {
			return err
		}
		pg := e.r.pager.Attach(e.fd, e.config())
		if e.user != nil {
			e.serve(pg)
		} else {
			e.start(pg)
			for _, id := range e.r.threadIDs(e.space) {
				e.pg.Hold(mem.MakeRange(id, threadWords))
			}
		}
		e.scan()
		return nil
	})
	if err != nil {
		e.kill()
		return goneOr(err)
	}
	// A call that was under way when the filter came has made its mapping
	// by then.
	for _, d := range []time.Duration{5 * time.Millisecond, 50 * time.Millisecond} {
		time.AfterFunc(d, e.rescan)
	}
	return nil
}

// open opens the kernel's descriptor, by the hand of an agent.
func (e *engagement) open(th *tracee.Thread) error {
	holdRunning(th)
	agent, err := e.plantIn(th, true)
	if err != nil {
		return err
	}
	fd, err := openIn(agent)
	if err != nil {
		return err
	}
	d, err := newDescriptor(fd)
	if err != nil {
		fd.Close()
		return err
	}
	e.fd = d
	return nil
}

// threadWords is the number of bytes from a thread's id that are kept in
// memory: the head of its list of robust futexes, which the kernel goes
// through at its end, stands next to it in all C libraries.
const threadWords = 64

// hold keeps the words of a thread in memory, and brings them there.
func (e *engagement) hold(id mem.Addr) {
	r := mem.MakeRange(id, threadWords)
	e.pg.Hold(r)
	go func() {
		var b [threadWords]byte
		// An error means that the thread's memory is gone, and it with it.
		_ = procmem.Read(e.pid(), []procmem.Segment{{Addr: r.Start, Dst: b[:]}})
	}()
}

// holdRunning stops the threads of th's address space that run at present.
// They stay stopped until the tracer's thread takes their stops, which it
// does when it has done with th. Those that sleep are let be: they use no
// memory, and some calls end with EINTR when they are stopped.
func holdRunning(th *tracee.Thread) {
	for _, p := range th.Process().Space().Processes() {
		for _, other := range p.Threads() {
			if other != th && procmem.Running(p.Pid(), other.Tid()) {
				// ESRCH: it has ended.
				_ = unix.PtraceInterrupt(other.Tid())
			}
		}
	}
}

// start makes the engagement live, unless its space has ended.
func (e *engagement) start(pg *pager.Space) {
	e.mu.Lock()
	e.pg = pg
	closed := e.closed
	e.live.Store(!closed)
	e.mu.Unlock()
	if closed {
		e.r.closes.Go(e.close)
	}
}

// plant returns the agent of the space, made if there is none or if it has
// died.
func (e *engagement) plant() (*inject.Agent, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	e.mu.Lock()
	e.planted = cancel
	e.mu.Unlock()
	if agent := e.liveAgent(); agent != nil {
		return agent, nil
	}
	err := e.r.tracer.Stopped(ctx, e.space, func(th *tracee.Thread) error {
		if e.liveAgent() != nil {
			return nil // beforeCall was faster
		}
		// Not held while a thread is waited for: beforeCall takes it, too, on the
		// tracer's thread.
		e.scanMu.Lock()
		defer e.scanMu.Unlock()
		_, err := e.plantIn(th, false)
		return err
	})
	if agent := e.liveAgent(); agent != nil {
		return agent, nil
	}
	return nil, goneOr(cmp.Or(err, error(inject.ErrAgentDead)))
}

// liveAgent returns the agent, nil if there is none or if it has died.
func (e *engagement) liveAgent() *inject.Agent {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.agent == nil {
		return nil
	}
	select {
	case <-e.agent.Dead():
		return nil
	default:
		return e.agent
	}
}

// goneOr returns pager.ErrGone for the ways in which a space can end under
// us, and err otherwise.
func goneOr(err error) error {
	if errors.Is(err, tracee.ErrGone) || errors.Is(err, inject.ErrGone) {
		return pager.ErrGone
	}
	return err
}

// plantIn puts an agent into the address space of a stopped thread, and with
// filter the filter as well.
//
// Preconditions: called on the tracer's thread; e.scanMu is held.
func (e *engagement) plantIn(th *tracee.Thread, filter bool) (*inject.Agent, error) {
	s, err := inject.Open(th.Tid())
	if err != nil {
		return nil, err
	}
	agent, err := inject.Plant(s)
	if err == nil {
		e.r.tracer.Adopt(agent.Tid(), func(tracee.Status) { agent.Exited() })
		if filter {
			err = s.InstallFilter()
		}
	}
	err = errors.Join(err, s.Close())
	e.mu.Lock()
	defer e.mu.Unlock()
	if agent != nil && (err != nil || e.closed) {
		agent.Kill() // the thread that it came from is gone, or all of it
		err = errors.Join(err, pager.ErrGone)
	}
	if err != nil {
		return nil, err
	}
	e.agent = agent
	if e.planted != nil {
		e.planted()
	}
	e.private = append(e.private, agent.Ranges()...)
	return agent, nil
}

func (e *engagement) config() pager.SpaceConfig {
	c := pager.SpaceConfig{
		Name:    fmt.Sprintf("pid %d", e.pid()),
		Pid:     e.pid(),
		Mover:   e.mover,
		Forked:  e.forked,
		Mapping: e.mapping,
		Present: e.present,
		Guards:  e.guards,
	}
	if e.user != nil {
		c.Pid, c.On = 0, e.user.On // whose thread the server is, places it
	}
	return c
}

func (e *engagement) mover() (pager.Mover, error) {
	if e.user != nil {
		return newTaker(e.user), nil
	}
	if !e.beginMaking() {
		return nil, pager.ErrGone
	}
	defer e.making.Done()
	agent, err := e.plant()
	if err == nil {
		var m *mover
		if m, err = newMover(e, agent); err == nil {
			return m, nil
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, pager.ErrGone // the space has ended, and the agent was killed for it
	}
	return nil, err
}

// beginMaking counts a mover, or a part of one, that is about to be made, unless it is
// too late for that.
func (e *engagement) beginMaking() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.making.Add(1)
	}
	return !e.closed
}

// present is pager.SpaceConfig's.
func (e *engagement) present(r mem.Range, f func(mem.Range)) error {
	return e.pages(func(pm *procmem.Pagemap) error { return pm.Present(r, f) })
}

// guards is pager.SpaceConfig's.
func (e *engagement) guards(r mem.Range, f func(mem.Range)) error {
	if e.user != nil {
		e.user.Guards(r, f) // the kernel's are the engine's own, too
		return nil
	}
	return e.pages(func(pm *procmem.Pagemap) error { return pm.Guards(r, f) })
}

func (e *engagement) pages(look func(*procmem.Pagemap) error) error {
	e.pmMu.Lock()
	defer e.pmMu.Unlock()
	if e.pm == nil {
		pm, err := procmem.OpenPagemap(e.pid())
		if err != nil {
			return err
		}
		e.pm = pm
	}
	return look(e.pm)
}

// mapping is pager.SpaceConfig's.
func (e *engagement) mapping(a mem.Addr) (mem.Range, bool) {
	if e.user != nil {
		return e.user.Mapping(a)
	}
	if len(e.unknown(mem.MakeRange(a, 1), nil)) == 0 {
		return mem.Range{}, false // it is about to be another descriptor's
	}
	vmas, err := procmem.Maps(e.pid())
	if err != nil {
		return mem.Range{}, false
	}
	for _, v := range vmas {
		if v.Contains(a) && v.Anonymous() {
			return v.Range, true
		}
	}
	return mem.Range{}, false
}

// register makes faults in r ours, a new mapping of a thread that waits for that. The
// table knows r before the kernel does, because the first fault may come at once.
func (e *engagement) register(r mem.Range) {
	if e.pg.Add(r, false) != nil {
		return // the space has ended
	}
	if e.registered(r) {
		e.findResident(r, false)
	} else {
		_ = e.pg.Forget(r)
	}
}

// found makes faults in r ours that was found to be nobody's. What is there may be
// another mapping by now, and be known to the pager: then nothing must be forgotten of
// it. Faults that come before the pager knows r are served. It reports false where r
// stays nobody's.
func (e *engagement) found(r mem.Range) bool {
	if !e.registered(r) {
		return false
	}
	e.pg.Found(r)
	e.findResident(r, e.freed.Load())
	if err := e.pg.FindGuards(r); err != nil && !gone(err) {
		e.r.log.Warn("cannot tell what is guarded", "pid", e.pid(), "range", r, "err", err)
	}
	return true
}

// registered reports whether faults in r are ours now.
func (e *engagement) registered(r mem.Range) bool {
	switch errno := e.fd.Register(r); errno {
	case 0:
		return true
	case syscall.ENOMEM, syscall.ESRCH, syscall.EBADF:
		// The space has ended.
	case syscall.EINVAL, syscall.EPERM, syscall.ENOENT:
		// Not memory that can be registered, such as MAP_DROPPABLE, or
		// unmapped by now.
	case syscall.EBUSY:
		e.r.countForeign(r) // the program serves it by a userfaultfd of its own
	default:
		e.r.log.Warn("memory stays outside the limit", "pid", e.pid(), "range", r, "err", errno)
	}
	return false
}

// findResident has the pager look for pages of r. With freed set there may be some
// that MADV_FREE has marked.
func (e *engagement) findResident(r mem.Range, freed bool) {
	if err := e.pg.FindResident(r, freed); err != nil && !gone(err) {
		e.r.log.Warn("cannot tell what is resident", "pid", e.pid(), "range", r, "err", err)
	}
}

func gone(err error) bool {
	return errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.ENOENT) || errors.Is(err, pager.ErrGone)
}

// addPrivate keeps a range that we have mapped in the program out of the
// pager's hands.
func (e *engagement) addPrivate(r mem.Range) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.private = append(e.private, r)
}

func (e *engagement) removePrivate(r mem.Range) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.private = slices.DeleteFunc(e.private, func(x mem.Range) bool { return x == r })
}

// kill ends the agent, so that the memory of a program that has left it is
// freed and nobody waits for the agent any more.
func (e *engagement) kill() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	if e.pg != nil {
		e.pg.Abandon()
	}
	if e.agent != nil {
		e.agent.Kill()
	}
}

// close ends the service of a space that has ended. It may take a while.
func (e *engagement) close() {
	e.pg.Close()
	e.making.Wait() // which the death of the agent ends, if it has one
	e.pmMu.Lock()
	defer e.pmMu.Unlock()
	if e.pm != nil {
		e.pm.Close()
		e.pm = nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.agent != nil {
		e.agent.Release()
	}
}
