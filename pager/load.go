// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"context"
	"sync"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager/internal/evict"
	"github.com/faultline-go/faultline/store"
)

// job is the load of one page by a worker, because the store had to wait for
// a device.
type job struct {
	s    *Space
	page mem.Page // where it is wanted; changed by a REMAP, under Pager.mu
	ref  store.Ref
	// fetched is set when the worker is through, orphan when nobody wants
	// the page any more before that: then the worker gives ref back, since
	// it must not be freed while it is read. Protected by Pager.mu.
	fetched, orphan bool
	buf             []byte
	err             error
}

// loader runs blocking store reads on a bounded number of goroutines.
type loader struct {
	p      *Pager
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	more  sync.Cond
	queue []*job // protected by mu; bounded by the pages of all spaces that are loading
	ended bool   // protected by mu
}

func newLoader(p *Pager, workers int) *loader {
	l := &loader{p: p}
	l.more.L = &l.mu
	l.ctx, l.cancel = context.WithCancel(context.Background())
	for range workers {
		l.wg.Go(l.work)
	}
	return l
}

func (l *loader) close() {
	l.cancel()
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.more.Broadcast()
	l.wg.Wait()
}

func (l *loader) submit(j *job) {
	l.mu.Lock()
	l.queue = append(l.queue, j)
	l.mu.Unlock()
	l.more.Signal()
}

func (l *loader) work() {
	for {
		l.mu.Lock()
		for len(l.queue) == 0 && !l.ended {
			l.more.Wait()
		}
		if len(l.queue) == 0 {
			l.mu.Unlock()
			return
		}
		j := l.queue[0]
		l.queue = l.queue[1:]
		l.mu.Unlock()

		l.p.mu.Lock()
		orphan := j.orphan
		l.p.mu.Unlock()
		if !orphan {
			ctx, cancel := context.WithTimeout(l.ctx, l.p.cfg.Patience)
			j.buf = make([]byte, mem.PageSize)
			j.err = l.p.fetchWait(ctx, j.ref, j.buf)
			cancel()
		}
		l.p.mu.Lock()
		j.fetched, orphan = true, j.orphan
		l.p.mu.Unlock()
		if orphan {
			l.p.free(j.ref)
			continue
		}
		j.s.loadedMu.Lock()
		j.s.loaded = append(j.s.loaded, j)
		j.s.loadedMu.Unlock()
		j.s.fd.Interrupt()
	}
}

// lend hands the load of a page that is marked loading to a worker.
func (s *Space) lend(pg mem.Page, ref store.Ref) {
	j := &job{s: s, page: pg, ref: ref}
	s.mu.Lock()
	s.inflight[pg] = j
	s.p.loans.Add(1)
	s.mu.Unlock()
	s.p.stat.slow.Add(1)
	s.p.loader.submit(j)
}

// abandon ends the interest in a load. It reports whether the caller is to
// free its ref, and not the worker. Preconditions: s.mu is held.
func (s *Space) abandon(pg mem.Page) bool {
	j := s.inflight[pg]
	if j == nil {
		return true
	}
	delete(s.inflight, pg)
	s.p.loans.Add(-1)
	j.orphan = !j.fetched
	return j.fetched
}

// finishLoads installs what the workers have loaded. It reports whether there
// was anything.
func (s *Space) finishLoads() bool {
	s.loadedMu.Lock()
	done := s.loaded
	s.loaded = nil
	s.loadedMu.Unlock()
	for _, j := range done {
		s.finishLoad(j)
	}
	return len(done) > 0
}

func (s *Space) finishLoad(j *job) {
	s.mu.Lock()
	pg := j.page
	if s.inflight[pg] != j {
		// Unmapped or dropped meanwhile. The slot may have been given to
		// another page, so not even an error means anything.
		s.mu.Unlock()
		return
	}
	delete(s.inflight, pg)
	s.p.loans.Add(-1)
	e := s.table.peek(pg)
	w := want{page: pg, ref: j.ref, stamp: e.stamp, inStore: true, kind: evict.Demand}
	if j.err == nil && s.batch.takingPage(pg) {
		// A REMAP has brought it to where the mover is at work.
		s.takeBack(pg, *e)
		s.mu.Unlock()
		s.park(fault{page: pg, at: time.Now()}, moving)
		return
	}
	s.mu.Unlock()
	if j.err != nil {
		s.lost(pg, j.err)
		return
	}
	sv := &s.server
	sv.want = append(sv.want[:0], w)
	copy(sv.stage, j.buf)
	s.installRun(0, 1)
	// Its waiters are known to the kernel alone. If the install has to be
	// taken back, a fault stands in for them.
	f := fault{page: pg, at: time.Now()}
	why, retry := s.commit(f)
	sv.want = sv.want[:0]
	if retry {
		s.park(f, why)
	}
}
