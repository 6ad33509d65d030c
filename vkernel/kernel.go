// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"sync"
	"sync/atomic"

	"github.com/faultline-go/faultline/mem"
)

// Kernel is a machine: its memory, its processes and what they share. All
// methods of all types of the package are safe for concurrent use, but a
// [Thread] makes one call at a time.
type Kernel struct {
	profile      *Profile
	hooks        Hooks
	maxMaps      int
	unprivileged bool // vm.unprivileged_userfaultfd
	noZero       bool // a read maps no shared page of zeros

	mem       memory
	nextInode atomic.Uint64
	nextSpace atomic.Uint64

	pinMu sync.Mutex  // the innermost lock
	pins  map[pin]int // how often each is pinned; protected by pinMu

	mu   sync.Mutex
	pid  int                   // last one given; protected by mu
	live map[*Process]struct{} // protected by mu
	// objects are the mirrors of those outside, perhaps dead; protected by mu
	objects map[Object]*object
}

// Option changes how a Kernel is made.
type Option func(*Kernel)

// WithHugePages sizes the pool of 2 MiB pages, which is empty otherwise.
func WithHugePages(n int) Option { return func(k *Kernel) { k.mem.huge.resize(n) } }

// WithMaxMaps sets how many VMAs a process may have: 65530 otherwise.
func WithMaxMaps(n int) Option { return func(k *Kernel) { k.maxMaps = n } }

// WithUnprivileged lets everybody make a descriptor that takes the faults of
// system calls too, as vm.unprivileged_userfaultfd does.
func WithUnprivileged() Option { return func(k *Kernel) { k.unprivileged = true } }

// WithoutZeroPage gives who reads memory that nobody has written pages of their own, as
// kernels do that must not share one page of zeros for that, under some hypervisors.
func WithoutZeroPage() Option { return func(k *Kernel) { k.noZero = true } }

// WithHooks installs h.
func WithHooks(h Hooks) Option { return func(k *Kernel) { k.hooks = h } }

// New returns a machine without processes.
func New(p *Profile, options ...Option) *Kernel {
	k := &Kernel{profile: p, maxMaps: 65530, live: make(map[*Process]struct{}), pins: make(map[pin]int)}
	k.mem.init()
	k.mem.huge.resize(0)
	for _, o := range options {
		o(k)
	}
	return k
}

// Profile returns what the machine was made with.
func (k *Kernel) Profile() *Profile { return k.profile }

// PagesInUse returns how many small pages have content of their own.
func (k *Kernel) PagesInUse() int { return k.mem.inUse() }

// Phase names a point on the way of a fault or a call at which a test can
// hold it.
type Phase string

// Phases. Where locks are held it is said: a hook there must not wait for
// what needs them.
const (
	// PhaseFault: the access has failed and enters the fault path.
	PhaseFault Phase = "fault"
	// PhaseChecked: the descriptor was found open and the fault is about to
	// be queued; the address space is locked for reading.
	PhaseChecked Phase = "checked"
	// PhaseQueued: the fault is queued, and the page will be looked at once
	// more; the address space is locked for reading.
	PhaseQueued Phase = "queued"
	// PhaseSleep: all locks are dropped, and the thread is about to sleep.
	PhaseSleep Phase = "sleep"
	// PhaseWoken: the thread will try its access again.
	PhaseWoken Phase = "woken"
	// PhaseInstall: a descriptor is about to get its number. The lock of the
	// descriptor that forks is held, if it is one that a fork event brings.
	PhaseInstall Phase = "install"
	// PhasePoll: poll is about to look at a descriptor.
	PhasePoll Phase = "poll"
	// PhaseWait: a read has found nothing, and its thread is about to sleep.
	PhaseWait Phase = "wait"
	// PhaseRead: a message was taken and is not in the reader's buffer yet.
	PhaseRead Phase = "read"
	// PhaseFill: a page is about to be installed; the address space is
	// locked for reading.
	PhaseFill Phase = "fill"
	// PhaseFilled: pages are installed and their waiters still asleep.
	PhaseFilled Phase = "filled"
	// PhaseReleased: the descriptor is marked closed, and its waiters are
	// still asleep.
	PhaseReleased Phase = "released"
	// PhaseAnnounced: an event is announced and not queued yet. The
	// descriptor answers EAGAIN, and nobody can read why.
	PhaseAnnounced Phase = "announced"
	// PhaseEvent: an event is queued and its thread is about to sleep.
	PhaseEvent Phase = "event"
	// PhaseEventRead: an event was read, and the descriptor still answers
	// EAGAIN.
	PhaseEventRead Phase = "event read"
	// PhaseEventDone: the descriptor fills again. What the call does after
	// its event is still to come: madvise has not dropped the pages yet.
	PhaseEventDone Phase = "event done"
)

// Hooks let a test hold the machine at a phase.
type Hooks struct {
	// Reach is called at each phase with the thread that has reached it,
	// nil if that is none, and the address in question.
	Reach func(ph Phase, th *Thread, addr mem.Addr)
}

func (k *Kernel) reach(ph Phase, th *Thread, a mem.Addr) {
	if k.hooks.Reach != nil {
		k.hooks.Reach(ph, th, a)
	}
}
