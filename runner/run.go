// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/internal/sys"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager"
	"github.com/faultline-go/faultline/provider"
	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/tracee"
)

// Options says what to run and how.
type Options struct {
	// Path is the program's file, Argv its arguments with its name first,
	// Env its environment.
	Path string
	Argv []string
	Env  []string
	// Limit bounds the resident private anonymous memory of the whole tree,
	// in bytes.
	Limit uint64
	// Store takes the pages that leave. The runner does not close it.
	Store store.Store
	// Log takes what the user must be told. Optional.
	Log *slog.Logger
	// Readahead is the pager's: 0 for its default, negative for none.
	Readahead int
	// Engine is who tells of faults.
	Engine Engine
}

// Engine is who tells of the faults of the program's memory.
type Engine uint8

const (
	// Kernel is userfaultfd(2).
	Kernel Engine = iota
	// User is package provider, which needs no more than ptrace(2) and
	// seccomp(2). It is slower, and knows less of what the kernel does with
	// the program's memory: see there.
	User
)

// Run is a program that runs in bounded memory.
type Run struct {
	log     *slog.Logger
	limit   uint64
	pager   *pager.Pager
	tracer  *tracee.Tracer
	user    *provider.Engine // nil if the kernel is the engine
	unrelay func()           // ends the forwarding of signals
	started time.Time

	mu     sync.Mutex
	spaces map[*tracee.Space]*space // protected by mu
	closes sync.WaitGroup           // engagements that are being closed

	kick    *sys.Event // makes the monitor look at once
	quit    chan struct{}
	monitor sync.WaitGroup
	// The monitor's own, kept so that it makes no garbage: see rescans.
	probes   []probe
	measured []untouched
	sizes    procmem.Sizes // of the processes
	failure  atomic.Pointer[error]

	other     atomic.Uint64 // bytes bounded by nobody, as last seen
	otherPeak atomic.Uint64
	engaged   atomic.Int64 // address spaces ever engaged
	processes atomic.Int64 // processes ever seen
	ownUffd   atomic.Int64 // ranges that the program serves itself
}

// space is what we know of one address space of the tree.
type space struct {
	engagement *engagement // nil while it runs untouched
	refused    time.Time   // when engaging it failed last
	// ids are the words that the kernel clears at the end of threads.
	ids map[mem.Addr]struct{}
}

// Start launches the program. The caller must Wait for it.
func Start(o Options) (*Run, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p, err := pager.New(pager.Config{Limit: o.Limit, Store: o.Store, Log: o.Log, Readahead: o.Readahead})
	if err != nil {
		return nil, err
	}
	kick, err := sys.NewEvent()
	if err != nil {
		p.Close()
		return nil, err
	}
	r := &Run{
		log: o.Log, limit: o.Limit, pager: p, started: time.Now(),
		spaces: make(map[*tracee.Space]*space),
		kick:   kick,
		quit:   make(chan struct{}),
	}
	h := tracee.Handler(newHandler(r))
	if o.Engine == User {
		if h, err = r.withUser(h); err != nil {
			p.Close()
			kick.Close()
			return nil, err
		}
	}
	t, err := tracee.Start(tracee.Options{Path: o.Path, Argv: o.Argv, Env: o.Env, Handler: h})
	if err != nil {
		if r.user != nil {
			r.user.Close()
		}
		p.Close()
		kick.Close()
		return nil, err
	}
	r.tracer = t
	if r.user != nil {
		r.user.Bind(t)
	}
	r.unrelay = t.Relay()
	t.Continue()
	r.monitor.Go(r.watch)
	r.monitor.Go(r.rescans)
	return r, nil
}

// Wait returns the status of the program when it has ended, and with it all
// that it started: what outlives it still needs us for its memory. The error
// is ours: the program has then been killed.
func (r *Run) Wait() (tracee.Status, error) {
	<-r.tracer.Done()
	st, err := r.tracer.Wait()
	r.unrelay()
	close(r.quit)
	r.hurry()
	r.monitor.Wait()
	r.kick.Close()
	r.mu.Lock()
	for sp, s := range r.spaces {
		delete(r.spaces, sp)
		r.release(s.engagement)
	}
	r.mu.Unlock()
	r.closes.Wait()
	r.pager.Close()
	if r.user != nil {
		r.user.Close()
		if err := r.user.Err(); err != nil {
			return st, err
		}
	}
	if f := r.failure.Load(); f != nil {
		return st, *f
	}
	return st, err
}

// Kill ends the whole tree at once.
func (r *Run) Kill() { r.tracer.Kill() }

// fatal ends the program because going on would show it wrong memory.
func (r *Run) fatal(err error) {
	if r.failure.CompareAndSwap(nil, &err) {
		r.log.Error(fmt.Sprintf("killing the program: %v", err))
	}
	go r.tracer.Kill()
}

// claimSpace makes e the engagement of its space. It reports false if there
// is one already, or if the space has ended.
func (r *Run) claimSpace(e *engagement) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.spaces[e.space]
	if s == nil || s.engagement != nil {
		return false
	}
	s.engagement = e
	r.engaged.Add(1)
	return true
}

// disown takes back a claim whose engagement came to nothing.
func (r *Run) disown(e *engagement) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.spaces[e.space]; s != nil && s.engagement == e {
		s.engagement = nil
	}
	r.engaged.Add(-1)
}

// engagementOf returns the live engagement of a space, or nil.
func (r *Run) engagementOf(sp *tracee.Space) *engagement {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.spaces[sp]; s != nil && s.engagement != nil && s.engagement.live.Load() {
		return s.engagement
	}
	return nil
}

// threadIDs returns the words that the kernel clears at the end of the
// threads of a space.
func (r *Run) threadIDs(sp *tracee.Space) []mem.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.spaces[sp]; s != nil {
		return slices.Collect(maps.Keys(s.ids))
	}
	return nil
}

// release ends an engagement, in the background: it waits for the serving
// thread, and for the evictor. One that is not live yet ends itself.
func (r *Run) release(e *engagement) {
	if e == nil {
		return
	}
	e.kill()
	if e.live.Swap(false) {
		r.closes.Go(e.close)
	}
}

// Stats is what a run has done and does.
type Stats struct {
	Pager pager.Stats
	// Limit is what was asked for, in bytes.
	Limit uint64
	// Processes counts those that the tree has had, Engaged the address
	// spaces that came near enough to the limit to be served.
	Processes, Engaged int64
	// Other is resident memory that the limit does not bound, in bytes: of
	// files, main stacks, initial data, and all of the address spaces that
	// are not engaged. OtherPeak is the most that was seen of it.
	Other, OtherPeak uint64
	// Elapsed is the time since the start.
	Elapsed time.Duration
}

// Stats returns the present state.
func (r *Run) Stats() Stats {
	return Stats{
		Pager: r.pager.Stats(), Limit: r.limit,
		Processes: r.processes.Load(), Engaged: r.engaged.Load(),
		Other: r.other.Load(), OtherPeak: r.otherPeak.Load(),
		Elapsed: time.Since(r.started),
	}
}

func (r *Run) countForeign(mem.Range) { r.ownUffd.Add(1) }
