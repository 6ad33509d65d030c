// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"cmp"
	"runtime"
	"slices"
	"time"

	"github.com/faultline-go/faultline/internal/place"
	"github.com/faultline-go/faultline/internal/sys"
	"github.com/faultline-go/faultline/tracee"
)

const (
	// fillRate is how fast a tree may make memory resident at the most, in
	// bytes a second: some threads that write to fresh pages. The monitor
	// looks again before that could have used up what is free.
	fillRate = 8 << 30
	// minLook and maxLook bound the time between two looks.
	minLook = time.Millisecond
	maxLook = 50 * time.Millisecond
	// steady is the time between two looks when all that matters is engaged.
	steady = 20 * time.Millisecond
	// rescanTime is the time between two searches of an engaged space for
	// memory that was made by ways that the filter does not see.
	rescanTime = 500 * time.Millisecond
	// worthwhile is the anonymous memory from which on a space is engaged
	// under pressure. Smaller ones are counted and left alone.
	worthwhile = 1 << 20
	// retryTime is the time before a space that could not be engaged is
	// tried again.
	retryTime = 100 * time.Millisecond
)

// margin is how far below the limit the first spaces are engaged: what can
// become resident while that is done.
func (r *Run) margin() uint64 { return min(max(r.limit/4, 4<<20), 256<<20, r.limit/2) }

// watch looks at the size of the tree until it has ended.
func (r *Run) watch() {
	// What becomes resident until the first spaces are engaged is bounded
	// only by how soon we look: before any program that wants the processor.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	urgent := place.Urgent()
	defer urgent()
	defer r.sizes.Close()
	for next := minLook; ; {
		// Not a timer: the runtime's are run by threads of normal priority.
		// An error can only mean that it did not wait for so long.
		if revents, _ := sys.Poll(r.kick.FD(), -1, next); revents != 0 {
			r.kick.Drain()
		}
		select {
		case <-r.quit:
			return
		default:
		}
		next = r.look()
	}
}

// rescans looks for memory that has come to be unseen until the tree has ended. It is not
// for watch to do: whoever makes as much garbage may have to help the collector, and that
// waits, awake, for threads that a thread before all others does not let run.
func (r *Run) rescans() {
	tick := time.NewTicker(rescanTime)
	defer tick.Stop()
	for {
		select {
		case <-r.quit:
			return
		case <-tick.C:
			r.rescanAll()
		}
	}
}

// untouched is a space that is not engaged, and its size.
type untouched struct {
	space *tracee.Space
	anon  uint64
}

// probe is a space that is about to be measured.
type probe struct {
	space      *tracee.Space
	engagement *engagement
	refused    time.Time
}

// look measures the tree, engages what has to be, and returns when to look
// again.
func (r *Run) look() time.Duration {
	list, other := r.measure()
	var anon uint64
	for _, u := range list {
		anon += u.anon
	}
	r.pager.SetForeign(anon)
	r.noteOther(other + anon)
	total := r.pager.Resident() + anon
	edge := r.limit - r.margin()
	if total < edge {
		d := time.Duration(float64(edge-total) / fillRate * float64(time.Second))
		return min(max(d, minLook), maxLook)
	}
	slices.SortFunc(list, func(a, b untouched) int { return cmp.Compare(b.anon, a.anon) })
	next := steady
	for _, u := range list {
		if u.anon < worthwhile {
			break
		}
		// From here on the pager counts its pages.
		anon -= u.anon
		r.pager.SetForeign(anon)
		if err := r.engage(u.space); err != nil {
			r.cannotEngage(u.space, err)
			anon += u.anon
			r.pager.SetForeign(anon)
		}
		next = minLook
	}
	if anon > r.limit/16 {
		next = minLook
	}
	return next
}

// measure returns the spaces that are not engaged, good until the next call, and the
// resident bytes of the tree that nobody bounds.
func (r *Run) measure() (list []untouched, other uint64) {
	r.mu.Lock()
	probes := r.probes[:0]
	for sp, s := range r.spaces {
		probes = append(probes, probe{sp, s.engagement, s.refused})
	}
	r.mu.Unlock()
	clear(r.measured) // as the probes are: a space may be gone by now
	list = r.measured[:0]
	var engagedAnon uint64
	for _, p := range probes {
		u, err := r.sizes.Resident(p.space.Pid())
		if err != nil {
			continue // it has ended
		}
		other += u.File
		if p.engagement != nil {
			engagedAnon += u.Anon
			continue
		}
		if time.Since(p.refused) < retryTime {
			other += u.Anon
			continue
		}
		list = append(list, untouched{p.space, u.Anon})
	}
	clear(probes)
	r.probes, r.measured = probes, list
	// What the kernel counts beyond what the pager knows: stacks, changed
	// data of files, pages shared with a parent until their grace is over.
	other += engagedAnon - min(engagedAnon, r.pager.Resident())
	return list, other
}

func (r *Run) noteOther(bytes uint64) {
	r.other.Store(bytes)
	if bytes > r.otherPeak.Load() {
		r.otherPeak.Store(bytes) // the monitor alone writes it
	}
}

// cannotEngage notes that a space stays outside the limit for now.
func (r *Run) cannotEngage(sp *tracee.Space, err error) {
	r.mu.Lock()
	s := r.spaces[sp]
	first := s != nil && s.refused.IsZero()
	if s != nil {
		s.refused = time.Now()
	}
	r.mu.Unlock()
	if first && !gone(err) {
		r.log.Warn("cannot bound a process yet, trying again", "err", err)
	}
}

// rescanAll looks for memory that has come to be unseen.
func (r *Run) rescanAll() {
	r.mu.Lock()
	var all []*engagement
	for _, s := range r.spaces {
		if s.engagement != nil && s.engagement.live.Load() {
			all = append(all, s.engagement)
		}
	}
	r.mu.Unlock()
	for _, e := range all {
		e.rescan()
	}
}

// hurry makes the monitor look at once.
func (r *Run) hurry() { r.kick.Signal() }
