// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faultline-go/faultline/internal/place"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager/internal/ahead"
	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// SpaceConfig says how the pager reaches what a descriptor does not tell. All
// functions may be nil; all are called without locks held.
type SpaceConfig struct {
	// Name stands for the space in messages to the user, such as "pid 42".
	Name string
	// Pid is the process whose threads fault, for placing the server; 0 if
	// there is none.
	Pid int
	// Mover makes the mover, on the evictor's thread, when the first page of
	// the space has to leave. Without one nothing is evicted.
	Mover func() (Mover, error)
	// Forked is told of a forked copy of the space: fd is the number of its
	// descriptor in our process, child its page table. It must Start or
	// Discard the child, later and on any goroutine. Without Forked the copy
	// is discarded.
	Forked func(fd int, child *Child)
	// Mapping returns the bounds of the mapping around a, for faults in
	// memory that nobody has announced: a mapping that grew in place. It must
	// be a single one: its parts are alike to a child.
	Mapping func(a mem.Addr) (mem.Range, bool)
	// Present calls f for the parts of r that are present, in order.
	Present func(r mem.Range, f func(mem.Range)) error
	// Guards calls f for the parts of r that the program has made guards, in order.
	Guards func(r mem.Range, f func(mem.Range)) error
	// On runs f on the thread on which the space is to be served, at once if it is
	// called there, and returns when f has run, or false if the thread is gone.
	// It is for a descriptor and a mover that can do all they do on that thread
	// alone; whoever owns it calls [Space.Turn] when there is something to read,
	// but not from within f or another Turn. The mover must move nothing while the layout
	// changes, or events are queued. Without it the space has a serving thread of its own.
	On func(f func()) bool
}

// Space is one address space that a pager serves.
type Space struct {
	p   *Pager
	cfg SpaceConfig
	fd  Descriptor
	id  uint32

	// batchMu is held through one eviction batch of this space.
	batchMu sync.Mutex
	// batch is the one under way: set under mu and batchMu, nil otherwise.
	batch     *batch
	mover     Mover     // protected by batchMu
	making    chan made // a mover that is being made; protected by batchMu
	makeAfter time.Time // no new try before; protected by batchMu
	told      bool      // the user knows that there is none; protected by batchMu

	mu       *lock                 // the pager's
	table    table                 // protected by mu
	regions  regions               // protected by mu
	guards   regions               // guarded by the program; protected by mu
	inflight map[mem.Page]*job     // loads that a worker does; protected by mu
	removes  ranges                // recent REMOVEs; protected by mu
	holds    map[mem.Page]struct{} // pages that must not leave; protected by mu
	pins     map[mem.Page]int      // pages that must not leave for now; protected by mu
	verify   []mem.Range           // ranges to compare with the kernel; protected by mu
	news     *regions              // what is announced while findResident looks, else nil; protected by mu
	// limbo has what was moved while the layout changed, by the page it was taken
	// for; protected by mu.
	limbo   map[mem.Page]store.Ref
	changes uint64 // UNMAP and REMAP events that were applied; protected by mu
	// applying is set while the serving thread reads messages, and as long as it has
	// some that are not applied.
	applying atomic.Bool

	loadedMu sync.Mutex
	loaded   []*job // finished by workers; protected by loadedMu

	control chan func() // run by the serving thread when the queue is drained
	closing atomic.Bool
	gone    atomic.Bool // the kernel says that the address space is no more
	done    chan struct{}
	once    sync.Once

	server server // owned by the serving thread
}

// server is what only the serving thread touches.
type server struct {
	thread *place.Thread
	ready  chan struct{} // closed when thread is set
	pace   pace
	ahead  *ahead.Tracker
	msgs   []uapi.Msg
	// msgs[next:got] are read and not applied yet, since at.
	next, got int
	at        time.Time
	faults    []fault
	parked    []parked
	retry     []parked // scratch of retryParked
	want      []want
	stage     []byte // pages to be installed, in the order of want
	zeros     []byte
	refs      []store.Ref // to be freed after a commit
	suspect   [16]suspect
	edges     [8]mem.Page // where VMAs were found to end within a region; protected by Pager.mu
	nedges    int
	asked     func()        // taken from control, to be run
	turns     atomic.Uint64 // progress, for the guard
}

// ErrGone is returned when the address space has ended.
var ErrGone = errors.New("address space is gone")

// Attach begins to serve the space behind fd, which must have been opened
// with the events FORK, REMAP, REMOVE and UNMAP and with thread ids. The
// pager owns fd from here on, and closes it in [Space.Close].
func (p *Pager) Attach(fd Descriptor, cfg SpaceConfig) *Space {
	return p.attach(fd, cfg, table{}, regions{}, regions{})
}

func (p *Pager) attach(fd Descriptor, cfg SpaceConfig, t table, rs, guards regions) *Space {
	if cfg.Forked == nil {
		cfg.Forked = func(_ int, c *Child) { c.Discard() }
	}
	s := &Space{
		p: p, cfg: cfg, fd: fd,
		mu: &p.mu, table: t, regions: rs, guards: guards,
		inflight: make(map[mem.Page]*job),
		control:  make(chan func(), 1),
		done:     make(chan struct{}),
	}
	window := min(p.cfg.Readahead, int(p.limit/16))
	s.server = server{
		ready:  make(chan struct{}),
		ahead:  ahead.New(max(window, 1)),
		msgs:   make([]uapi.Msg, 64),
		faults: make([]fault, 0, 256),
		want:   make([]want, 0, window+1),
		stage:  make([]byte, (window+1)*mem.PageSize),
		zeros:  make([]byte, (window+1)*mem.PageSize),
	}
	p.mu.Lock()
	p.nextID++
	s.id = p.nextID
	p.spaces[s.id] = s
	p.mu.Unlock()
	go s.serve()
	<-s.server.ready
	p.guard.watch(s)
	return s
}

// Add announces that r has been registered for missing faults, or is about
// to be. Its pages are fresh: what the table knew of the range is forgotten.
// With wipe a forked child finds zeros there (MADV_WIPEONFORK).
//
// If the range overlaps one that is known, events of the old mapping may
// still be queued, and would be taken for events of the new one. Add then
// waits until the serving thread has applied them all.
func (s *Space) Add(r mem.Range, wipe bool) error {
	s.mu.Lock()
	s.guards.remove(r)
	known := s.regions.overlaps(r)
	if !known {
		s.announce(region{r, wipe})
	}
	s.mu.Unlock()
	if known {
		err := s.drained(func() {
			s.forget(r)
			s.mu.Lock()
			s.unhold(r)
			s.guards.remove(r)
			s.regions.add(region{r, wipe})
			s.mu.Unlock()
		})
		if err != nil {
			return err
		}
	}
	s.awaitMove(r)
	return nil
}

// Found announces memory that is registered, and of which it is not known since when:
// there may have been events of it, and faults. What is known of a part of r stays
// as it is, and the rest is fresh.
//
// Whoever has looked for such memory has seen the program as it was at some time
// before. Since then it may have moved other memory there, with content.
func (s *Space) Found(r mem.Range) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var parts []mem.Range
	s.regions.outside(r, func(part mem.Range) { parts = append(parts, part) })
	for _, part := range parts {
		s.announce(region{Range: part})
	}
}

// announce adds a region of which nothing is known yet. Preconditions: s.mu is held.
func (s *Space) announce(r region) {
	s.regions.add(r)
	if s.news != nil {
		s.news.add(r)
	}
}

// Hold keeps the pages of r from leaving until they are unmapped. If they are
// outside, or on their way, they leave or stay there until they are touched.
//
// It is for what the kernel touches when no fault can be served any more: a
// thread that is ending gets no page, but an error that nobody sees.
func (s *Space) Hold(r mem.Range) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds == nil {
		s.holds = make(map[mem.Page]struct{})
	}
	for pg := r.Start.Page(); pg < r.End.Up().Page(); pg++ {
		s.holds[pg] = struct{}{}
	}
}

// Pin keeps the pages of r from leaving until unpin is called. If they are outside they
// leave no more once they have come. Pins of the same page add up. A second call of unpin
// does nothing.
func (s *Space) Pin(r mem.Range) (unpin func()) {
	r = mem.Range{Start: r.Start.Down(), End: r.End.Up()}
	add := func(by int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.pins == nil {
			s.pins = make(map[mem.Page]int)
		}
		for pg := r.Start.Page(); pg < r.End.Page(); pg++ {
			if s.pins[pg] += by; s.pins[pg] == 0 {
				delete(s.pins, pg)
			}
		}
	}
	add(1)
	s.awaitMove(r) // what is about to leave has left, and comes back when it is touched
	return sync.OnceFunc(func() { add(-1) })
}

// unhold forgets holds in r. Preconditions: s.mu is held.
func (s *Space) unhold(r mem.Range) {
	for pg := range s.holds {
		if r.Contains(pg.Addr()) {
			delete(s.holds, pg)
		}
	}
}

// awaitMove waits until nothing of r is about to be moved that was there
// before. A mapping that the kernel has populated would lose pages to it. It
// takes some microseconds, and is given up if the mover hangs.
func (s *Space) awaitMove(r mem.Range) {
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); time.Sleep(firstPause) {
		s.mu.Lock()
		taking := s.batch.taking(r)
		s.mu.Unlock()
		if !taking {
			return
		}
	}
}

// Forget drops what the table knows of r, as if the program had unmapped it.
// The memory is no longer ours to evict.
func (s *Space) Forget(r mem.Range) error {
	return s.drained(func() {
		s.forget(r)
		s.mu.Lock()
		s.regions.remove(r)
		s.guards.remove(r)
		s.mu.Unlock()
	})
}

// Guard tells that the program has made r a guard (MADV_GUARD_INSTALL, Linux 6.13),
// for which the kernel queues no event. The content of r is dropped, and nothing is
// brought in there until Unguard, or a fault, which a guard does not let happen: the
// kernel takes UFFDIO_COPY on a guard, and it is none any more.
//
// A page that was being brought in may have become present so when Guard returns. If
// one is, the guard has to be set again.
func (s *Space) Guard(r mem.Range) error {
	return s.drained(func() { s.guard(r) })
}

func (s *Space) guard(r mem.Range) {
	s.forget(r)
	s.mu.Lock()
	s.guards.add(region{Range: r})
	s.mu.Unlock()
	if s.dismiss(r) {
		s.must("UFFDIO_WAKE", r, s.fd.Wake(r)) // they find the guard by themselves
	}
}

// dismiss forgets the faults in r that are not served yet. It reports whether there are
// any. It is called on the serving thread.
func (s *Space) dismiss(r mem.Range) (any bool) {
	sv := &s.server
	n := len(sv.faults) + len(sv.parked)
	sv.parked = slices.DeleteFunc(sv.parked, func(pk parked) bool { return r.Contains(pk.page.Addr()) })
	sv.faults = slices.DeleteFunc(sv.faults, func(f fault) bool { return r.Contains(f.page.Addr()) })
	return len(sv.faults)+len(sv.parked) < n
}

// Unguard tells that r is no guard any more (MADV_GUARD_REMOVE).
func (s *Space) Unguard(r mem.Range) error {
	return s.drained(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.guards.remove(r)
	})
}

// SetWipe says whether a forked child finds zeros in r. A child whose fork has been
// read, but not been applied yet, is not concerned.
func (s *Space) SetWipe(r mem.Range, wipe bool) error {
	return s.drained(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		var parts []region
		s.regions.within(r, func(part region) { parts = append(parts, part) })
		for _, part := range parts {
			part.wipe = wipe
			s.regions.add(part)
		}
	})
}

// Regions returns the ranges that are registered, in order.
func (s *Space) Regions() []mem.Range {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]mem.Range, 0, len(s.regions.list))
	for _, r := range s.regions.list {
		out = append(out, r.Range)
	}
	return out
}

// drained runs f on the serving thread when every event that the kernel had
// queued before has been applied.
func (s *Space) drained(f func()) error {
	finished := make(chan struct{})
	select {
	case s.control <- func() { f(); close(finished) }:
	case <-s.done:
		return ErrGone
	}
	s.on(s.Turn)
	s.fd.Interrupt()
	select {
	case <-finished:
		return nil
	case <-s.done:
		return ErrGone
	}
}

// CPU returns the processor on which the threads of the space fault at
// present, -1 if there is none in particular.
func (s *Space) CPU() int { return int(s.server.pace.cpu.Load()) - 1 }

// Abandon tells that the address space has ended, so that what fails from
// now on fails silently. Close still has to be called.
func (s *Space) Abandon() { s.gone.Store(true) }

// Close ends the service and gives back what the store holds for the space.
// It returns when neither the serving thread nor the evictor uses it.
func (s *Space) Close() {
	s.once.Do(func() {
		s.closing.Store(true)
		s.gone.Store(true)
		s.fd.Interrupt()
		<-s.done
		s.p.guard.unwatch(s)
		// The evictor finishes its batch, and finds the space closed at the
		// next.
		s.batchMu.Lock()
		defer s.batchMu.Unlock()
		s.emptyLimbo()
		s.forget(allPages())
		s.p.mu.Lock()
		a := s.server.ahead.Stats()
		s.p.stat.useful.Add(int64(a.Useful))
		s.p.stat.useless.Add(int64(a.Useless))
		// Not before its pages are forgotten: the queue takes those of a space
		// that is not there for gone, and they must not be counted as gone
		// twice.
		delete(s.p.spaces, s.id)
		s.p.mu.Unlock()
		if s.mover != nil {
			s.mover.Close()
			s.mover = nil
		}
		if making := s.making; making != nil {
			s.making = nil
			go func() {
				if m := <-making; m.mover != nil {
					m.mover.Close()
				}
			}()
		}
		if err := s.fd.Close(); err != nil {
			s.p.log.Warn("closing the descriptor", "space", s.cfg.Name, "err", err)
		}
	})
}
