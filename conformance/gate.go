// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"slices"
	"sync"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/vkernel"
)

// gate lets a case of the seed stop a thread where a race is: no process can do that to a
// kernel, and there the seed's races would be left to luck.
type gate struct {
	mu   sync.Mutex
	held []*held // protected by mu
}

// held is a thread that stops when it next reaches a phase.
type held struct {
	c     *C
	phase vkernel.Phase
	th    *vkernel.Thread // nil for any, where the phase tells of none
	at    chan struct{}   // closed when it has stopped
	open  chan struct{}
	once  sync.Once
}

func (g *gate) reach(ph vkernel.Phase, th *vkernel.Thread, _ mem.Addr) {
	g.mu.Lock()
	var found *held
	if i := slices.IndexFunc(g.held, func(h *held) bool { return h.phase == ph && h.th == th }); i >= 0 {
		found = g.held[i]
		g.held = slices.Delete(g.held, i, i+1)
	}
	g.mu.Unlock()
	if found != nil {
		close(found.at)
		<-found.open
	}
}

// forget gives up h, if nobody has come: it is not to stop a thread of another case.
func (g *gate) forget(h *held) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held = slices.DeleteFunc(g.held, func(x *held) bool { return x == h })
}

// holdAt makes the thread stop at a phase, or with nil who reaches one that tells of no
// thread. Where the case fails it goes on at the end.
func (c *C) holdAt(ph vkernel.Phase, t *Thread) *held {
	h := &held{c: c, phase: ph, at: make(chan struct{}), open: make(chan struct{})}
	if t != nil {
		h.th = t.t.(*modelTask).th
	}
	g := &c.backend.(*model).gate
	g.mu.Lock()
	g.held = append(g.held, h)
	g.mu.Unlock()
	c.atEnd = append(c.atEnd, func() {
		g.forget(h)
		h.goOn()
	})
	return h
}

// stopped waits until it has.
func (h *held) stopped() {
	select {
	case <-h.at:
	case <-time.After(budget):
		h.c.Failf("nobody has reached the phase %q", h.phase)
	}
}

// goOn lets it go on.
func (h *held) goOn() { h.once.Do(func() { close(h.open) }) }
