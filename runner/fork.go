// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/uffd"
)

const (
	// birthTime is the time between the fork event of the descriptor and that
	// of the tracer after which it is looked whether there is one at all.
	// Both have happened when we look: only our own threads may be late.
	birthTime = 50 * time.Millisecond
	// birthLimit is when something must be very wrong.
	birthLimit = 20 * time.Second
	// nurseTime is how long a child may wait for a page before its process
	// is found. Nearly all are found sooner, and none waits by then.
	nurseTime = 5 * time.Millisecond
	// grace is how long the pages that a child shares with its parent are
	// not counted as its own. Most children call exec at once.
	grace = 20 * time.Millisecond
)

// isServed reports whether missing pages of a process are served by a userfaultfd.
func isServed(pid int) bool {
	all, err := procmem.Flagged(pid, "um")
	return err == nil && len(all) > 0
}

// birth is the memory of a forked child, for which the process is not found
// yet: the descriptor's event does not name it.
type birth struct {
	fd *descriptor

	mu      sync.Mutex // held while child is used
	child   *pager.Child
	claimed bool          // its process is found; protected by mu
	pause   time.Duration // before it is nursed again; protected by mu
}

// take ends the nursing of a child whose process has been found.
func (c *birth) take() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.claimed = true
}

// nurse serves a child that stays unclaimed: the process cannot be found
// while it waits for a page. One that was killed before it was found is
// forgotten.
func (b *births) nurse(c *birth) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.claimed {
		return
	}
	if !c.child.Nurse(c.fd) && b.remove(c) {
		c.claimed = true
		c.child.Discard()
		c.fd.Close()
		return
	}
	c.pause = min(2*c.pause, birthTime)
	time.AfterFunc(c.pause, func() { b.nurse(c) })
}

// remove takes a child that has ended from the list. It reports false if it
// is being claimed at this moment.
func (b *births) remove(c *birth) bool {
	if !b.mu.TryLock() {
		return false
	}
	defer b.mu.Unlock()
	n := len(b.list)
	b.list = slices.DeleteFunc(b.list, func(o *birth) bool { return o == c })
	return len(b.list) < n
}

// births are the children of one address space that wait for their process.
type births struct {
	mu   sync.Mutex
	more sync.Cond
	list []*birth // protected by mu
}

func newBirths() *births {
	b := &births{}
	b.more.L = &b.mu
	return b
}

// forked is pager.SpaceConfig's: it is called on the serving thread.
func (e *engagement) forked(raw int, child *pager.Child) {
	if e.user != nil {
		e.managedChild(raw, child)
		return
	}
	fd, err := newDescriptor(uffd.Take(raw))
	if err != nil {
		// Without its descriptor the child would read zeros.
		e.r.fatal(fmt.Errorf("descriptor of a child of pid %d: %w", e.pid(), err))
		child.Discard()
		return
	}
	e.births.mu.Lock()
	c := &birth{fd: fd, child: child, pause: nurseTime}
	e.births.list = append(e.births.list, c)
	e.births.mu.Unlock()
	time.AfterFunc(nurseTime, func() { e.births.nurse(c) })
	e.births.more.Broadcast()
}

// claim finds the memory of a stopped child among the births of its parent.
// With several at a time the right one is found by installing a page through
// each until it shows in the child; what is installed is what belongs there.
// It returns nil if the child has no registered memory.
func (e *engagement) claim(pid int) *birth {
	// A single thread forks one child at a time.
	alone := procmem.Threads(e.pid()) == 1
	b := e.births
	b.mu.Lock()
	defer b.mu.Unlock()
	seen := make(map[*birth]bool)
	for began := time.Now(); ; {
		for i, c := range b.list {
			if seen[c] {
				continue
			}
			seen[c] = true
			if alone && len(b.list) == 1 || e.belongs(c, pid) {
				b.list = append(b.list[:i], b.list[i+1:]...)
				c.take()
				return c
			}
		}
		if late := time.Since(began); late > birthTime {
			if late > birthLimit || !isServed(pid) {
				return nil
			}
			clear(seen) // one may have been busy
		}
		timer := time.AfterFunc(birthTime, b.more.Broadcast)
		b.more.Wait()
		timer.Stop()
	}
}

// belongs reports whether c is the memory of process pid, which is stopped.
func (e *engagement) belongs(c *birth, pid int) bool {
	pm, err := procmem.OpenPagemap(pid)
	if err != nil {
		return false
	}
	defer pm.Close()
	present := func(r mem.Range) bool {
		found := false
		err := pm.Present(r, func(mem.Range) { found = true })
		return found && err == nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.child.Probe(c.fd, present)
}

// fork finds the memory of a child among what the descriptor of e, its parent's, has
// announced, and begins to serve it. ce is the child's.
func (r *Run) fork(e, ce *engagement, child *tracee.Process) {
	if e.user != nil {
		return // until the event is read
	}
	c := e.claim(child.Pid())
	if c == nil {
		r.disown(ce)
		if isServed(child.Pid()) {
			// It would read zeros where pages are outside.
			r.fatal(fmt.Errorf("the memory of pid %d, a child of pid %d, was not announced", child.Pid(), e.pid()))
		}
		return
	}
	e.mu.Lock()
	ce.brk = e.brk
	e.mu.Unlock()
	ce.fd = c.fd
	ce.freed.Store(e.freed.Load())
	ce.start(c.child.Start(c.fd, ce.config()))
	for _, th := range child.Threads() {
		ce.newborn(th)
	}
	time.AfterFunc(grace, ce.settle)
}

// settle enters the pages that the child got from its parent.
func (e *engagement) settle() {
	e.mu.Lock()
	closed := e.closed
	e.mu.Unlock()
	if closed {
		return
	}
	for _, reg := range e.pg.Regions() {
		if err := e.pg.FindResident(reg, e.freed.Load()); err != nil {
			return // it has ended
		}
	}
}
