// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/internal/place"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager/internal/evict"
	"github.com/faultline-go/faultline/store"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// Descriptor is what the pager asks of a userfaultfd. The kernel's and the
// software one both satisfy it. Except for Wait no method blocks for long,
// and none allocates. Read and Wait are called by one goroutine, the rest by
// any.
type Descriptor interface {
	// Read fills msgs with queued messages; EAGAIN when none is queued.
	Read(msgs []uapi.Msg) (n int, errno syscall.Errno)
	// Wait blocks until a message is queued, Interrupt is called or timeout
	// has passed (for ever if negative). It reports whether a message is
	// queued. An Interrupt before the call counts.
	Wait(timeout time.Duration) (ready bool, errno syscall.Errno)
	// Interrupt makes the present or the next Wait return.
	Interrupt()
	// Copy installs src at dst and wakes the waiters of what it installed.
	// done counts bytes and is valid with any errno.
	Copy(dst mem.Addr, src []byte, mode uapi.CopyMode) (done int, errno syscall.Errno)
	// Wake wakes all waiters in r, which then fault again.
	Wake(r mem.Range) syscall.Errno
	// Poison makes every access to r a SIGBUS, and wakes its waiters.
	Poison(r mem.Range, mode uapi.PoisonMode) (done int, errno syscall.Errno)
	// Changing reports whether an event of the space has not been taken
	// note of yet, in which case every Copy would answer EAGAIN.
	Changing() bool
	// Pending reports whether a message is queued, without taking it.
	Pending() bool
	// Close closes the descriptor. The pager closes what it was given.
	Close() error
}

// Run is a run of pages to move out of a space, and what became of it.
type Run struct {
	Src   mem.Addr
	Pages int
	Slot  int // first slot of the window to fill; it is empty
	// Window is for a mover that has several: which of them it took.
	Window int
	// Moved is the number of pages that moved, set by Move.
	Moved int
	// Errno says why the page after those did not; zero if all moved. EAGAIN says
	// that it is only a matter of time, and not of the page.
	Errno syscall.Errno
}

// Mover takes pages out of one address space into a window of slots that
// only the pager sees. It is used by the evictor alone.
//
// The threads of a space that has one must not use MADV_FREE from then on. It raises
// UFFD_EVENT_REMOVE but leaves the pages, and no fault tells what is written to
// them. If they are moved at that moment, what has moved cannot be told from what
// MADV_DONTNEED was about to drop, and is dropped.
type Mover interface {
	// Slots is the number of pages that the window holds.
	Slots() int
	// Move moves each run into the window, atomically for every page: a
	// thread sees the page, or faults on it. A run stops at its first
	// failure. An error is the mover's own: Moved is set all the same, but
	// the mover is good for Read and Close only.
	Move(runs []Run) error
	// Read copies what has moved: the page in slot i to buf[i*PageSize:].
	Read(runs []Run, buf []byte) error
	// Drop empties the window, at the latest with the next Move.
	Drop()
	// Flush empties the window at once if Drop has put it off.
	Flush()
	// Unshare makes the pages of r the space's own, if fork made it share
	// them. It may fault, and so must not be waited for with a lock held.
	Unshare(r mem.Range) error
	// Close releases the window.
	Close()
}

// Config is what a Pager needs to know. The zero value of an optional field
// means its default.
type Config struct {
	// Limit bounds the resident pages of all spaces together, in bytes.
	Limit uint64
	// Store takes the pages that leave. The pager does not close it.
	Store store.Store
	// Log takes what the user must be told. Optional.
	Log *slog.Logger
	// Patience is how long a fault may be put off by EAGAIN or by a store
	// before its page is poisoned. Default 30 s.
	Patience time.Duration
	// Readahead is the largest number of pages brought in with one fault;
	// negative turns readahead off. Default 64.
	Readahead int
	// Workers is the number of concurrent blocking store reads. Default 8.
	Workers int
}

// MinLimit is the smallest limit, in bytes, that a Pager works with: a few
// eviction batches.
const MinLimit = 1 << 20

// Pager serves a set of address spaces under one limit. All methods are safe
// for concurrent use.
type Pager struct {
	cfg    Config
	log    *slog.Logger
	nearer store.Nearer // the store, if it can do that
	limit  int64        // pages
	slack  int64        // pages kept free of the limit, so that eviction runs ahead
	batch  int          // pages a batch

	// resident counts the pages that are resident in any space or in a
	// mover's window. foreign counts pages that somebody else knows of and
	// that share the limit.
	resident, foreign atomic.Int64
	// loans counts pages that workers are loading, which take up room when
	// they come.
	loans atomic.Int64
	// unbounded is set while nothing can be evicted: the store does not take
	// pages, or what is left cannot be moved. Data comes before the bound.
	unbounded trouble
	storeDown trouble // the latest Put failed

	mu     lock
	queue  *evict.Queue      // protected by mu
	aside  aside             // protected by mu
	spaces map[uint32]*Space // protected by mu
	nextID uint32            // protected by mu

	overflow *overflow
	loader   *loader
	guard    *guard
	kick     bell        // wakes the evictor
	ended    atomic.Bool // set once all spaces are closed
	wg       sync.WaitGroup
	once     sync.Once

	stat counters
}

// New starts a pager without spaces. Close ends it.
func New(cfg Config) (*Pager, error) {
	if cfg.Limit < MinLimit {
		return nil, fmt.Errorf("pager: limit of %d bytes is below %d", cfg.Limit, MinLimit)
	}
	if cfg.Store == nil {
		return nil, errors.New("pager: no store")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Patience == 0 {
		cfg.Patience = 30 * time.Second
	}
	switch {
	case cfg.Readahead == 0:
		cfg.Readahead = 64
	case cfg.Readahead < 0:
		cfg.Readahead = 0
	}
	if cfg.Workers == 0 {
		cfg.Workers = 8
	}
	p := &Pager{
		cfg:    cfg,
		log:    cfg.Log,
		limit:  int64(cfg.Limit >> mem.PageShift),
		spaces: make(map[uint32]*Space),
		kick:   newBell(),
	}
	p.nearer, _ = cfg.Store.(store.Nearer)
	// A batch is large enough to pay for the round trip to the mover, small
	// against the limit, and the slack is what a fault stream can fill while
	// one batch is on its way.
	p.batch = int(min(maxBatch, max(16, p.limit/32)))
	p.slack = min(2*int64(p.batch), p.limit/8)
	p.queue = evict.New(int(p.limit), p.live)
	p.overflow = newOverflow()
	p.loader = newLoader(p, cfg.Workers)
	p.guard = newGuard(p)
	p.mu.boost = p.guard.raise
	p.wg.Go(p.evictLoop)
	p.wg.Go(p.guard.run)
	return p, nil
}

// maxBatch is 1 MiB of window: larger ones gain nothing, measured.
const maxBatch = 256

// Close stops the evictor and closes every space that is left. Threads that
// still wait in such a space are released by the kernel onto zero pages when
// its descriptor closes, so the caller ends the programs first.
func (p *Pager) Close() {
	p.once.Do(func() {
		for _, s := range p.snapshot() {
			s.Close()
		}
		p.ended.Store(true)
		p.kick.Ring()
		p.guard.stop()
		p.wg.Wait()
		p.loader.close()
	})
}

// SetForeign tells the pager how many bytes within the limit are taken by
// memory that it does not serve.
func (p *Pager) SetForeign(bytes uint64) {
	p.foreign.Store(int64(bytes >> mem.PageShift))
	if p.over() > 0 {
		p.kickEvictor()
	}
}

// Resident returns the resident bytes of all spaces.
func (p *Pager) Resident() uint64 { return uint64(max(0, p.resident.Load())) << mem.PageShift }

// over returns by how many pages the resident set stands above the mark to
// which the evictor keeps it.
func (p *Pager) over() int64 {
	return p.resident.Load() - (p.budget() - p.slack)
}

// budget returns the number of pages that may be resident: what foreign
// memory leaves of the limit, but never so little that the spaces which are
// served cannot work. That memory is not theirs to give.
func (p *Pager) budget() int64 { return max(p.limit-p.foreign.Load(), p.limit/8) }

// room returns how many pages may still be installed before the bound. The
// overshoot lets faults go on while the evictor catches up.
func (p *Pager) room() int64 {
	if p.unbounded.on.Load() {
		return 1 << 40
	}
	return p.budget() + overshoot - p.resident.Load() - p.loans.Load()
}

// overshoot is the number of pages by which a burst of faults may pass the
// limit: 2 MiB of the 4 MiB that the manual states, the rest being for what
// the kernel populates by itself.
const overshoot = 512

func (p *Pager) kickEvictor() { p.kick.Ring() }

// bell wakes a thread of the pager's. See [place.Bell].
type bell interface {
	Ring()
	Wait(d time.Duration) (rung bool)
}

// newBell is replaced in tests with a clock of their own.
var newBell = func() bell { return place.NewBell() }

// addResident accounts for n pages that became resident.
func (p *Pager) addResident(n int) {
	now := p.resident.Add(int64(n))
	p.stat.peak(now)
	if n > 0 && p.over() > 0 {
		p.kickEvictor()
	}
}

// live reports whether a page is resident under a stamp, for the queue.
// Preconditions: p.mu is held.
func (p *Pager) live(k evict.Key, stamp evict.Stamp) bool {
	s := p.spaces[k.Space]
	if s == nil {
		return false
	}
	e := s.table.peek(k.Page)
	return e != nil && e.state == resident && e.stamp == stamp
}

func (p *Pager) snapshot() []*Space {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*Space, 0, len(p.spaces))
	for _, s := range p.spaces {
		all = append(all, s)
	}
	return all
}
