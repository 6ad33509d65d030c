// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"sync"
	"syscall"
	"testing"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/vkernel"
)

// The tests run over vkernel, the userfaultfd subsystem in software: on every
// system, in a bubble of time, with every race held open. What a kernel does
// only on a bad day, a sim does when a test asks for it: copies that stop
// early, movers that die, messages that come late.

// world is the machine on which the processes of one test run.
type world struct {
	tb      testing.TB
	kernel  *vkernel.Kernel
	manager *vkernel.Process // has the descriptors, so that no fork inherits them

	mu     sync.Mutex
	most   int                        // pages that were present at a time; protected by mu
	args   int                        // pages for arguments of movers among them; protected by mu
	forked map[int]*sim               // by the number of its descriptor; protected by mu
	sims   []*sim                     // protected by mu
	gates  map[string]*gate           // by phase; protected by mu
	held   []*gate                    // all there ever were; protected by mu
	calls  map[*vkernel.Thread]string // what a thread is in; protected by mu
}

// gate holds an operation at a phase.
type gate struct {
	arrived, open chan struct{}
	once          sync.Once
}

func newWorld(tb testing.TB) *world {
	w := &world{
		tb: tb, forked: make(map[int]*sim), gates: make(map[string]*gate), calls: make(map[*vkernel.Thread]string),
	}
	w.kernel = vkernel.New(vkernel.Linux618, vkernel.WithHooks(vkernel.Hooks{Reach: w.reach}))
	w.manager = w.kernel.NewProcess(vkernel.ProcessOptions{})
	return w
}

// reach gives the phases of calls their names: "unmap:announced" is munmap(2)
// with the memory gone and no event to read; "remove:read" madvise(2) with
// its event read and EAGAIN still the answer, "remove:done" the same without
// EAGAIN and the pages still there.
func (w *world) reach(ph vkernel.Phase, th *vkernel.Thread, _ mem.Addr) {
	name := ""
	switch ph {
	case vkernel.PhaseAnnounced:
		name = ":announced"
	case vkernel.PhaseEventRead:
		name = ":read"
	case vkernel.PhaseEventDone:
		name = ":done"
	default:
		return
	}
	w.mu.Lock()
	call := w.calls[th]
	w.mu.Unlock()
	w.at(call + name)
}

// hold makes the next operation that comes to phase stop there.
func (w *world) hold(phase string) *gate {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.newGateLocked()
	w.gates[phase] = g
	return g
}

func (w *world) newGate() *gate {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.newGateLocked()
}

func (w *world) newGateLocked() *gate {
	g := &gate{arrived: make(chan struct{}), open: make(chan struct{})}
	w.held = append(w.held, g)
	return g
}

func (w *world) at(phase string) {
	w.mu.Lock()
	g := w.gates[phase]
	delete(w.gates, phase)
	w.mu.Unlock()
	if g != nil {
		close(g.arrived)
		<-g.open
	}
}

func (g *gate) release() { g.once.Do(func() { close(g.open) }) }

// count takes note of how many pages are present, in windows too.
func (w *world) count() {
	n := w.kernel.PagesInUse()
	w.mu.Lock()
	w.most = max(w.most, n-w.args)
	w.mu.Unlock()
}

// must fails the test for a call that cannot fail.
func (w *world) must(call string, errno syscall.Errno) {
	if errno != 0 {
		w.tb.Errorf("%s: %s", call, vkernel.ErrnoName(errno))
	}
}
