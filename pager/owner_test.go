// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"testing"
	"time"
)

// owner is a thread on which a space is served: see SpaceConfig.On.
type owner struct {
	queue chan func()
	// asked, if not nil, is closed when a mover needs the thread, which it asks for
	// once busy is closed.
	asked, busy chan struct{}
}

// own has a space served on a thread of r's, where its mover does its work too.
func (r *rig) own(k *sim) (*owner, func(*SpaceConfig)) {
	o := &owner{queue: make(chan func())}
	go func() {
		for f := range o.queue {
			f()
		}
	}()
	r.Cleanup(func() { close(o.queue) })
	return o, func(cfg *SpaceConfig) {
		cfg.On = o.on
		cfg.Mover = func() (Mover, error) {
			m, err := k.newMover()
			return &ownedMover{m, o}, err
		}
	}
}

func (o *owner) on(f func()) bool {
	done := make(chan struct{})
	o.queue <- func() {
		defer close(done)
		f()
	}
	<-done
	return true
}

type ownedMover struct {
	Mover
	o *owner
}

func (m *ownedMover) Move(runs []Run) (err error) {
	if asked := m.o.asked; asked != nil {
		m.o.asked = nil
		close(asked)
		<-m.o.busy
	}
	m.o.on(func() { err = m.Mover.Move(runs) })
	return err
}

// TestForkWhileMoverWaits: a fork's event is read on the thread for which the mover
// waits that has a batch under way. The table is copied when the batch is done, and
// has what left with it.
func TestForkWhileMoverWaits(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		var c children
		k := r.space()
		k.mmap(pages(0, 600))
		o, owned := r.own(k)
		s := r.attach(k, c.hook, owned)
		asked := make(chan struct{})
		o.on(func() { o.asked, o.busy = asked, make(chan struct{}) })
		filled := run(func() { r.fill(k, 0, 250, 1) })
		var ck *sim
		var forked <-chan struct{}
		// The thread is busy from when the mover needs it until the event was read.
		<-asked
		done := make(chan struct{})
		o.queue <- func() {
			close(o.busy)
			told := r.hold("fork:read")
			told.release()
			forked = run(func() { ck = k.fork() })
			for !isDone(told.arrived) {
				time.Sleep(time.Millisecond)
				s.Turn()
			}
			close(done)
		}
		<-done
		<-forked
		<-filled
		cs := c.take(r.fdOf(ck)).Start(ck, SpaceConfig{Name: "child", Mover: ck.newMover, Mapping: ck.mapping, Present: ck.presentIn})
		for _, v := range ck.areas {
			_ = cs.FindResident(v.Range, false)
		}
		for i := range 100 {
			r.wantPage(ck, page(i), pattern(uint64(i)+1))
			r.wantPage(k, page(i), pattern(uint64(i)+1))
		}
	})
}
