// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"cmp"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// owner is a thread on which a space is served: see SpaceConfig.On.
type owner struct {
	queue chan func()
	busy  atomic.Pointer[busy]
}

// busy keeps an owner from what it is asked for while a batch of s is under way.
type busy struct {
	s     *Space
	once  sync.Once
	asked chan struct{} // closed when it is asked for something
	over  chan struct{}
}

// own has a space served on a thread of r's, where its mover does its work too.
func (r *rig) own() (*owner, func(*SpaceConfig)) {
	o := &owner{queue: make(chan func())}
	go func() {
		for f := range o.queue {
			f()
		}
	}()
	r.Cleanup(func() { close(o.queue) })
	return o, func(cfg *SpaceConfig) { cfg.On = o.on }
}

func (o *owner) on(f func()) bool {
	if b := o.busy.Load(); b != nil && b.s.evicting() {
		b.once.Do(func() { close(b.asked) })
		<-b.over
	}
	o.do(f)
	return true
}

func (o *owner) do(f func()) {
	done := make(chan struct{})
	o.queue <- func() {
		defer close(done)
		f()
	}
	<-done
}

func (s *Space) evicting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.batch != nil
}

// whileMoverWaits fills pages [0, n) of k until a batch of s is under way for which
// the mover waits for the thread, where meanwhile the function runs that begin
// returns, until it returns true, and the space has its turns.
func (o *owner) whileMoverWaits(r *rig, k *sim, s *Space, n int, begin func() (done func() bool)) {
	b := &busy{s: s, asked: make(chan struct{}), over: make(chan struct{})}
	o.busy.Store(b)
	filled := run(func() { r.fill(k, 0, n, 1) })
	<-b.asked
	o.do(func() {
		for done := begin(); !done(); {
			time.Sleep(time.Millisecond)
			s.Turn()
		}
	})
	o.busy.Store(nil)
	close(b.over)
	<-filled
}

// TestForkWhileMoverWaits: a fork's event is read on the thread for which the mover
// waits that has a batch under way. The table is copied when the batch is done, and
// has what left with it.
func TestForkWhileMoverWaits(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		var c children
		k := r.space()
		k.mmap(pages(0, 600))
		o, owned := r.own()
		s := r.attach(k, c.hook, owned)
		var ck *sim
		var forked <-chan struct{}
		o.whileMoverWaits(r, k, s, 250, func() func() bool {
			told := r.hold("fork:read")
			told.release()
			forked = run(func() { ck = k.fork() })
			return func() bool { return isDone(told.arrived) }
		})
		<-forked
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

// TestForkKnowsNothingLater: the thread that forks goes on when the event is read. What
// it said then of what children shall find concerned the child whose table was not
// copied yet: memory to be wiped in others was zero in it.
func TestForkKnowsNothingLater(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		var c children
		k := r.space()
		k.mmap(pages(0, 600))
		o, owned := r.own()
		s := r.attach(k, c.hook, owned)
		if err := s.Guard(pages(590, 2)); err != nil {
			t.Fatal(err)
		}
		r.fill(k, 250, 330, 1)
		var ck *sim
		var i int
		var forked, advised <-chan struct{}
		o.whileMoverWaits(r, k, s, 250, func() func() bool {
			told := r.hold("fork:read")
			told.release()
			forked = run(func() { ck = k.fork() })
			turns := 0
			return func() bool {
				if !isDone(told.arrived) {
					return false
				}
				if turns++; turns == 1 {
					i = r.firstIn(s, 600, outside)
					advised = run(func() {
						if err := cmp.Or(s.SetWipe(pages(0, 580), true), s.Unguard(pages(590, 2))); err != nil {
							t.Error(err)
						}
					})
				}
				return turns == 3 // it has done what it can, or time would stand still
			}
		})
		<-forked
		<-advised
		cs := c.take(r.fdOf(ck)).Start(ck, SpaceConfig{Name: "child", Mover: ck.newMover, Mapping: ck.mapping, Present: ck.presentIn})
		r.wantPage(ck, page(i), pattern(uint64(i)+1))
		if cs.guards.find(page(590).Addr()) == nil {
			t.Error("the child has no guard")
		}
		if s.guards.find(page(590).Addr()) != nil {
			t.Error("the parent has its guard still")
		}
	})
}

// TestRemapWhileMoverWaits: pages are brought by mremap(2) to where those were that
// the mover is about to take, and all of that is told and applied before it has the
// thread. It took what was there now, and the content was lost.
func TestRemapWhileMoverWaits(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k := r.space()
		k.mmap(pages(0, 600))
		o, owned := r.own()
		s := r.attach(k, owned)
		var i, j, n int
		o.whileMoverWaits(r, k, s, 250, func() func() bool {
			i, j = r.firstIn(s, 600, evicting), r.firstIn(s, 600, resident)
			s.mu.Lock()
			n = s.batch.runs[0].Pages
			s.mu.Unlock()
			remapped := run(func() { k.remap(pages(j, n), page(i).Addr()) })
			return func() bool { return isDone(remapped) }
		})
		settled()
		for m := range n {
			r.wantPage(k, page(i+m), pattern(uint64(j+m)+1))
		}
		r.wantCounts()
	})
}
