// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// children collects what Forked is told.
type children struct {
	mu  sync.Mutex
	all map[int]*Child
}

func (c *children) hook(cfg *SpaceConfig) {
	c.all = make(map[int]*Child)
	cfg.Forked = c.forked
}

func (c *children) forked(fd int, child *Child) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all[fd] = child
}

// take waits for the child of descriptor fd: the forking thread may go on
// before the event, which has been read, is applied.
func (c *children) take(fd int) *Child {
	for {
		c.mu.Lock()
		child := c.all[fd]
		delete(c.all, fd)
		c.mu.Unlock()
		if child != nil {
			return child
		}
		time.Sleep(time.Millisecond)
	}
}

// forkOff forks k and serves the child.
func (r *rig) forkOff(k *sim, c *children) (*sim, *Space) {
	r.Helper()
	ck := k.fork()
	cfg := SpaceConfig{Name: "child", Mover: ck.newMover, Mapping: ck.mapping, Present: ck.presentIn}
	cfg.Forked = c.forked
	cs := c.take(r.fdOf(ck)).Start(ck, cfg)
	for _, v := range ck.areas {
		_ = cs.FindResident(v.Range, false)
	}
	return ck, cs
}

func (r *rig) fdOf(k *sim) int {
	r.world.mu.Lock()
	defer r.world.mu.Unlock()
	for fd, s := range r.forked {
		if s == k {
			return fd
		}
	}
	return -1
}

// TestFork: parent and child both see what was there at the fork, and then
// each its own stores, with most pages outside, shared and evicted again
// (H14). What MADV_WIPEONFORK covers is zero in the child.
func TestFork(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		const n = 700
		var c children
		k := r.space()
		k.mmap(pages(0, n))
		k.mmap(pages(n, 10))
		k.wipe()
		r.attach(k, c.hook)
		r.fill(k, 0, n+10, 1)
		ck, _ := r.forkOff(k, &c)
		r.fill(k, 0, 100, 5000)
		r.fill(ck, 50, 100, 9000)
		for i := range n {
			parent, child := uint64(i)+1, uint64(i)+1
			if i < 100 {
				parent = uint64(i) + 5000
			}
			if i >= 50 && i < 150 {
				child = uint64(i) + 9000
			}
			r.wantPage(ck, page(i), pattern(child))
			r.wantPage(k, page(i), pattern(parent))
		}
		for i := n; i < n+10; i++ {
			r.wantPage(ck, page(i), zeroPage)
			r.wantPage(k, page(i), pattern(uint64(i)+1))
		}
		grand, _ := r.forkOff(ck, &c)
		for i := range 50 {
			r.wantPage(grand, page(i), pattern(uint64(i)+1))
		}
		time.Sleep(20 * time.Second)
		if r.p.Resident() > MinLimit || r.p.Stats().Unbounded {
			t.Errorf("shared pages stay: %d bytes, unbounded %v", r.p.Resident(), r.p.Stats().Unbounded)
		}
		// The account may be a little low: a page that the parent evicts
		// between the fork and its event is outside in the child's table,
		// and present in the child.
	})
}

// TestForkDiscard: a child that is not served gives back what it shares.
func TestForkDiscard(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		k, _ := r.start(600) // without Forked: discarded
		r.fill(k, 0, 600, 1)
		time.Sleep(time.Second)
		before := r.st.Stats().Live
		for range 3 {
			k.fork()
		}
		settled()
		if now := r.st.Stats().Live; now != before {
			t.Errorf("%d pages live, %d before", now, before)
		}
		for i := range 600 {
			r.wantPage(k, page(i), pattern(uint64(i)+1))
		}
		for _, s := range r.sims[1:] { // the children exit
			s.end()
		}
	})
}

// TestForkInEveryPhase: the child is forked while a page is on its way out,
// on loan, or rescued, or lost.
func TestForkInEveryPhase(t *testing.T) {
	for _, phase := range []string{"move", "moved", "read", "unshare", "loan"} {
		t.Run(phase, func(t *testing.T) {
			simulate(t, Config{Readahead: -1}, func(r *rig) {
				var c children
				k, s := r.start(600, c.hook)
				var release func()
				i := 0
				switch phase {
				case "loan":
					r.fill(k, 0, 400, 1)
					settled()
					i = r.firstIn(s, 400, outside)
					release = r.slowly()
					go k.load(5, page(i))
					settled()
				case "unshare":
					r.fill(k, 0, 200, 1)
					k.fork()
					g := r.hold("unshare")
					r.fill(k, 200, 100, 1)
					time.Sleep(time.Second)
					<-g.arrived
					i, release = 0, g.release
				default:
					var g *gate
					g, i = r.overfill(k, s, 600, phase)
					release = g.release
				}
				var ck *sim
				told := r.hold("fork:read")
				forked := run(func() { ck, _ = r.forkOff(k, &c) })
				<-told.arrived
				if phase == "loan" || phase == "unshare" {
					settled()
				} else {
					// The serving thread waits for the batch on a mutex,
					// which is not what a bubble calls settled.
					for range 1000 {
						runtime.Gosched()
					}
					c.mu.Lock()
					if len(c.all) > 0 {
						t.Error("the table was copied with a page on its way out")
					}
					c.mu.Unlock()
				}
				told.release()
				release()
				<-forked
				settled()
				r.wantPage(ck, page(i), pattern(uint64(i)+1))
				r.wantPage(k, page(i), pattern(uint64(i)+1))
				r.put(k, i, 31337)
				r.wantPage(ck, page(i), pattern(uint64(i)+1))
				c.mu.Lock()
				for fd, child := range c.all {
					if r.forked[fd] != ck {
						child.Discard()
					}
				}
				c.mu.Unlock()
			})
		})
	}
}

// TestForkPoisoned: a page that is lost is lost to the child, too.
func TestForkPoisoned(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		r.lossy = true
		var c children
		k, s := r.start(600, c.hook)
		r.fill(k, 0, 600, 1)
		settled()
		i := r.firstIn(s, 600, outside)
		r.st.set(func(st *testStore) {
			s.mu.Lock()
			st.corrupt[s.table.peek(page(i)).ref] = true
			s.mu.Unlock()
		})
		_, _ = k.load(1, page(i))
		ck, cs := r.forkOff(k, &c)
		if _, err := ck.load(1, page(i)); err != errBus || cs.pageState(i) != poisoned {
			t.Errorf("%v, %v", err, cs.pageState(i))
		}
	})
}
