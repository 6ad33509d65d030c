// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"testing"
	"time"
)

// arriveAt starts f, and waits until something comes to phase.
func (r *rig) arriveAt(phase string, f func()) (*gate, <-chan struct{}) {
	r.Helper()
	g := r.hold(phase)
	done := run(f)
	settled()
	select {
	case <-g.arrived:
	default:
		r.Fatalf("nothing came to phase %q", phase)
	}
	return g, done
}

// overfill writes pages [0, n) until an eviction is held at phase, and
// returns a page that is on its way out.
func (r *rig) overfill(k *sim, s *Space, n int, phase string) (*gate, int) {
	r.Helper()
	g := r.hold(phase)
	i := 0
	for ; i < n; i++ {
		r.put(k, i, uint64(i)+1)
		settled()
		select {
		case <-g.arrived:
			return g, r.firstIn(s, n, evicting)
		default:
		}
	}
	r.Fatalf("nothing came to phase %q", phase)
	return nil, 0
}

// TestRemoveWhileMoving: a page that is about to be moved is removed, touched
// again and written. The mover then takes what is there now, which must not
// be taken for the old content that nobody wants (H5, H6).
func TestRemoveWhileMoving(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, s := r.start(600)
		g, i := r.overfill(k, s, 600, "move")
		k.remove(pages(i, 1))
		wrote := run(func() { r.put(k, i, 77777) })
		settled()
		g.release()
		<-wrote
		settled()
		r.wantPage(k, page(i), pattern(77777))
		r.wantCounts()
	})
}

// TestAheadWhileMoving is the same with a page that readahead would bring in.
func TestAheadWhileMoving(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		k, s := r.start(600)
		g, i := r.overfill(k, s, 600, "move")
		k.remove(pages(0, i+16))
		wrote := run(func() {
			r.fill(k, 400, 3, 9) // a stream begins, elsewhere
			r.fill(k, 0, i+16, 50000)
		})
		settled()
		g.release()
		<-wrote
		for j := range i + 16 {
			r.wantPage(k, page(j), pattern(uint64(j)+50000))
		}
		r.wantCounts()
	})
}

// TestUnmapWhileMoving: what the mover no longer finds is not resident.
func TestUnmapWhileMoving(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, s := r.start(600)
		g, i := r.overfill(k, s, 600, "move")
		k.unmap(pages(i, 4))
		g.release()
		r.wantCounts()
	})
}

// TestRemapOntoMoving: a page is brought by mremap(2) to the address of one that is
// about to be moved. The mover takes the new one for the old, of which the events tell
// that it is unmapped: its content was dropped, and the page lost. Whether the events
// are read before the batch ends or after it.
func TestRemapOntoMoving(t *testing.T) {
	for _, late := range []bool{false, true} {
		simulate(t, Config{Readahead: -1}, func(r *rig) {
			k, s := r.start(600)
			g, i := r.overfill(k, s, 600, "move")
			j := r.firstIn(s, 600, resident)
			s.mu.Lock()
			n := s.batch.runs[0].Pages // all of it, or the mover meets the border of two VMAs
			s.mu.Unlock()
			var held *gate
			if late {
				held = r.hold("remap:announced")
			}
			remapped := run(func() { k.remap(pages(j, n), page(i).Addr()) })
			settled()
			g.release()
			settled()
			if held != nil {
				held.release()
			}
			<-remapped
			settled()
			for m := range n {
				r.wantPage(k, page(i+m), pattern(uint64(j+m)+1))
			}
			r.wantCounts()
		})
	}
}

// TestReadFails: pages whose content cannot be had are poisoned, all are
// named in the log, and they no longer count as resident.
func TestReadFails(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		r.lossy = true
		k, s := r.start(600)
		g, i := r.overfill(k, s, 600, "read")
		r.world.mu.Lock()
		k.readErr = errAgent
		r.world.mu.Unlock()
		g.release()
		settled()
		r.world.mu.Lock()
		k.readErr = nil
		r.world.mu.Unlock()
		if _, err := k.load(1, page(i)); err != errBus {
			t.Errorf("load of a page that is lost: %v", err)
		}
		if r.log.count("lost on their way out") == 0 {
			t.Errorf("not told: %s", r.log)
		}
		r.wantCounts()
	})
}

// TestMoverDies: what has moved when the agent dies is kept, and another
// mover takes over.
func TestMoverDies(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, _ := r.start(1000)
		r.world.mu.Lock()
		k.moveDies = 8
		r.world.mu.Unlock()
		r.fill(k, 0, 1000, 1)
		for i := range 1000 {
			r.wantPage(k, page(i), pattern(uint64(i)+1))
		}
		settled()
		if k.movers < 2 {
			t.Errorf("%d movers", k.movers)
		}
		r.wantCounts()
	})
}

// TestRescue covers a fault in each phase of an eviction.
func TestRescue(t *testing.T) {
	for _, phase := range []string{"move", "moved", "read", "put"} {
		t.Run(phase, func(t *testing.T) {
			simulate(t, Config{Readahead: -1}, func(r *rig) {
				k, s := r.start(600)
				var g *gate
				var i int
				if phase == "put" {
					g, i = r.overfillPut(k, s, 600)
				} else {
					g, i = r.overfill(k, s, 600, phase)
				}
				got := run(func() { r.wantPage(k, page(i), pattern(uint64(i)+1)) })
				settled()
				if phase == "put" && !isDone(got) {
					t.Error("a page whose content is at hand waits for the store")
				}
				g.release()
				<-got
				settled()
				r.wantPage(k, page(i), pattern(uint64(i)+1))
				r.wantCounts()
			})
		})
	}
}

// overfillPut is overfill for the phase in which the store is written.
func (r *rig) overfillPut(k *sim, s *Space, n int) (*gate, int) {
	r.Helper()
	g := r.newGate()
	r.st.set(func(s *testStore) { s.hold = g })
	for i := range n {
		r.put(k, i, uint64(i)+1)
		settled()
		select {
		case <-g.arrived:
			return g, r.firstIn(s, n, evicting)
		default:
		}
	}
	r.Fatal("nothing was put")
	return nil, 0
}

// TestRescueTakenBack: the install of a rescued page meets EAGAIN (H2), its
// batch finishes meanwhile, and the page comes in from the store after all.
// With the batch still under way it is rescued once more.
func TestRescueTakenBack(t *testing.T) {
	for _, finish := range []bool{false, true} {
		simulate(t, Config{Readahead: -1}, func(r *rig) {
			k, s := r.start(600)
			g, i := r.overfillPut(k, s, 600)
			// An operation whose event was read and whose thread has not
			// run since.
			late, removed := r.arriveAt("remove:read", func() { k.remove(pages(599, 1)) })
			got := run(func() { r.wantPage(k, page(i), pattern(uint64(i)+1)) })
			settled()
			if isDone(got) {
				t.Error("installed in the middle of a change")
			}
			if finish {
				g.release()
				settled()
			}
			late.release()
			<-removed
			<-got
			if !finish {
				g.release()
			}
			r.wantCounts()
		})
	}
}

// TestRescueLandsWhileLoading forces the install of a rescued page to be
// under way when its batch finishes: the batch hands its ref to the entry.
func TestRescueLandsWhileLoading(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		k, s := r.start(600)
		g, i := r.overfillPut(k, s, 600)
		c := r.hold("copy")
		got := run(func() { r.wantPage(k, page(i), pattern(uint64(i)+1)) })
		<-c.arrived
		g.release()
		settled()
		if e := *s.table.peek(page(i)); e.state != loading || !e.inStore || e.is(rescued) {
			t.Errorf("%+v, want a loading page that owns its ref", e)
		}
		c.release()
		<-got
		r.wantCounts()
	})
}

// TestPatience: a fault that meets EAGAIN for too long is poisoned, the user
// is told, other threads are served again afterwards, and nobody spins (H2).
func TestPatience(t *testing.T) {
	simulate(t, Config{Readahead: -1}, func(r *rig) {
		r.lossy = true
		k, _ := r.start(600)
		r.world.mu.Lock()
		k.stuck = true
		r.world.mu.Unlock()
		var errs [3]error
		var done [3]<-chan struct{}
		for i := range 3 {
			done[i] = run(func() { _, errs[i] = k.load(uint32(i), page(i)) })
		}
		g := r.tries(k)
		time.Sleep(10 * time.Second)
		if n := g(); n > 3*10*1000/5+1000 {
			t.Errorf("%d tries in 10 s: that is spinning", n)
		}
		time.Sleep(21 * time.Second)
		if r.log.count("is lost") == 0 {
			t.Errorf("not told: %s", r.log)
		}
		late := run(func() { r.wantPage(k, page(10), zeroPage) })
		settled()
		r.world.mu.Lock()
		k.stuck = false
		r.world.mu.Unlock()
		time.Sleep(time.Second)
		for i := range 3 {
			if !isDone(done[i]) {
				t.Errorf("thread %d waits for ever", i)
			} else if errs[i] != errBus {
				t.Errorf("thread %d: %v", i, errs[i])
			}
		}
		if !isDone(late) {
			t.Error("a fault read while another page was poisoned is lost")
		}
	})
}

// tries counts calls of Copy.
func (r *rig) tries(k *sim) func() int {
	r.world.mu.Lock()
	defer r.world.mu.Unlock()
	from := k.tried
	return func() int {
		r.world.mu.Lock()
		defer r.world.mu.Unlock()
		return k.tried - from
	}
}

// TestPoisonMeetsEvents: the pages of one fault are being brought in when one
// of them proves corrupt, and poisoning it has to wait for an event that
// removes others. What was removed must not be resurrected (H6, H21).
func TestPoisonMeetsEvents(t *testing.T) {
	simulate(t, Config{}, func(r *rig) {
		r.lossy = true
		k, s := r.start(2000)
		r.fill(k, 0, 600, 1)
		settled()
		// Pages 0.. are outside. A stream brings some in ahead.
		first := r.firstIn(s, 600, outside)
		r.wantPage(k, page(first), pattern(uint64(first)+1))
		next := r.firstIn(s, 600, outside)
		bad := next + 1
		r.st.set(func(st *testStore) {
			s.mu.Lock()
			st.corrupt[s.table.peek(page(bad)).ref] = true
			s.mu.Unlock()
			st.onTry = func() { // the remove begins while the bad page is read
				g := r.hold("remove:read")
				go k.remove(pages(next, 8))
				go func() {
					<-g.arrived
					time.Sleep(time.Millisecond)
					g.release()
				}()
				time.Sleep(100 * time.Microsecond)
			}
		})
		var got []string
		done := run(func() {
			for i := next; i < next+3; i++ {
				b, err := k.load(1, page(i))
				if err != nil {
					got = append(got, err.Error())
				} else {
					got = append(got, describe(b))
				}
			}
		})
		time.Sleep(time.Second)
		if !isDone(done) {
			t.Fatal("a thread waits for ever")
		}
		for i := range 8 {
			b, err := k.load(1, page(next+i))
			if err == nil && describe(b) != "zeros" {
				t.Errorf("page %d holds %s after it was removed", next+i, describe(b))
			}
		}
		r.wantCounts()
	})
}
