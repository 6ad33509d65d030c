// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"slices"
	"sync"
	"syscall"
	"time"
)

// PollFD is one descriptor of a poll.
type PollFD struct {
	FD      int
	Events  int
	Revents int // set by Poll
}

// events returns what poll says of a file.
func (f *file) events() int {
	u := f.uffd
	if u == nil {
		return PollIn | PollOut
	}
	if !u.ready() || !f.nonblock() && !u.k.profile.pollBlocking {
		return PollErr
	}
	// No lock is held here, and none is taken: what waits for messages takes
	// locks of its own when it is told of them.
	u.k.reach(PhasePoll, nil, 0)
	if u.pending() {
		return PollIn
	}
	return 0
}

// Poll is poll(2): it waits until one of the descriptors has something of
// what it is asked for, for ever if timeout is negative, and returns how
// many have.
func (th *Thread) Poll(fds []PollFD, timeout time.Duration) (int, syscall.Errno) {
	th.enter()
	defer th.leave()
	files := make([]*file, len(fds))
	r := &reader{poke: th.poke}
	for i := range fds {
		files[i] = th.p.file(fds[i].FD)
		if f := files[i]; f != nil {
			defer f.put()
			if f.uffd != nil {
				f.uffd.addReader(r)
				defer f.uffd.dropReader(r)
			}
		}
	}
	expired := timeout == 0
	if timeout > 0 {
		var mu sync.Mutex
		timer := time.AfterFunc(timeout, func() {
			mu.Lock()
			expired = true
			mu.Unlock()
			th.poke()
		})
		defer timer.Stop()
		return th.pollLoop(fds, files, func() bool { mu.Lock(); defer mu.Unlock(); return expired })
	}
	return th.pollLoop(fds, files, func() bool { return expired })
}

func (th *Thread) pollLoop(fds []PollFD, files []*file, expired func() bool) (int, syscall.Errno) {
	for {
		late := expired()
		n := 0
		for i, f := range files {
			switch {
			case fds[i].FD < 0:
				fds[i].Revents = 0
			case f == nil:
				fds[i].Revents = PollNval
			default:
				fds[i].Revents = f.events() & (fds[i].Events | PollErr | PollHup)
			}
			if fds[i].Revents != 0 {
				n++
			}
		}
		switch {
		case n > 0 || late:
			return n, 0
		case th.interrupted(), th.killed():
			return -1, EINTR
		}
		th.sleep(InPoll)
	}
}

// epoll watches descriptors.
type epoll struct {
	mu     sync.Mutex
	items  []*epollItem         // protected by mu
	sleeps map[*Thread]struct{} // protected by mu
}

type epollItem struct {
	fd   int
	f    *file
	edge bool
	r    *reader
	hot  bool // something has happened since it was last reported; protected by epoll.mu
}

// EpollEvent says what a watched descriptor is ready for.
type EpollEvent struct {
	FD     int
	Events int
}

// EpollCreate returns a descriptor that watches others.
func (th *Thread) EpollCreate() (int, syscall.Errno) {
	f := newFile(ORdwr)
	f.epoll = &epoll{sleeps: make(map[*Thread]struct{})}
	return th.own(f, false)
}

// EpollAdd watches fd for input; with edge, each message makes it ready once.
func (th *Thread) EpollAdd(epfd, fd int, edge bool) syscall.Errno {
	ef, f := th.p.file(epfd), th.p.file(fd)
	if ef != nil {
		defer ef.put()
	}
	if f != nil {
		defer f.put()
	}
	switch {
	case ef == nil || f == nil:
		return EBADF
	case ef.epoll == nil || f.uffd == nil:
		return EINVAL
	}
	ep := ef.epoll
	it := &epollItem{fd: fd, f: f, edge: edge}
	it.r = &reader{poke: func() { ep.ready(it) }}
	ep.mu.Lock()
	if slices.ContainsFunc(ep.items, func(x *epollItem) bool { return x.fd == fd && x.f == f }) {
		ep.mu.Unlock()
		return EEXIST
	}
	ep.items = append(ep.items, it)
	ep.mu.Unlock()
	f.watch(ep, true)
	f.uffd.addReader(it.r)
	// In this order: what is queued before the reader is there tells nobody, and is
	// seen here.
	if f.events() != 0 {
		ep.ready(it)
	}
	return 0
}

// ready marks an item and wakes who waits.
func (ep *epoll) ready(it *epollItem) {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	it.hot = true
	for th := range ep.sleeps {
		th.poke()
	}
}

func (ep *epoll) close() {
	ep.mu.Lock()
	items := ep.items
	ep.items = nil
	ep.mu.Unlock()
	for _, it := range items {
		it.f.watch(ep, false)
		it.f.uffd.dropReader(it.r)
	}
}

// forget takes away the items of a file whose last descriptor is closed, in
// whatever process that was.
func (ep *epoll) forget(f *file) {
	ep.mu.Lock()
	var gone []*epollItem
	ep.items = slices.DeleteFunc(ep.items, func(it *epollItem) bool {
		if it.f == f {
			gone = append(gone, it)
		}
		return it.f == f
	})
	ep.mu.Unlock()
	for _, it := range gone {
		f.uffd.dropReader(it.r)
	}
}

// watch notes whether an epoll watches f.
func (f *file) watch(ep *epoll, on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !on {
		delete(f.epolls, ep)
		return
	}
	if f.epolls == nil {
		f.epolls = make(map[*epoll]struct{})
	}
	f.epolls[ep] = struct{}{}
}

// unwatch has all epolls forget f.
func (f *file) unwatch() {
	f.mu.Lock()
	epolls := f.epolls
	f.epolls = nil
	f.mu.Unlock()
	for ep := range epolls {
		ep.forget(f)
	}
}

// EpollWait returns what is ready, and waits for that like [Thread.Poll].
func (th *Thread) EpollWait(epfd int, timeout time.Duration) ([]EpollEvent, syscall.Errno) {
	th.enter()
	defer th.leave()
	ef := th.p.file(epfd)
	if ef == nil {
		return nil, EBADF
	}
	defer ef.put()
	ep := ef.epoll
	if ep == nil {
		return nil, EINVAL
	}
	ep.mu.Lock()
	ep.sleeps[th] = struct{}{}
	ep.mu.Unlock()
	defer func() {
		ep.mu.Lock()
		delete(ep.sleeps, th)
		ep.mu.Unlock()
	}()
	var deadline <-chan time.Time
	if timeout > 0 {
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		deadline = timer.C
	}
	for {
		if out := ep.collect(); len(out) > 0 || timeout == 0 {
			return out, 0
		}
		if th.interrupted() || th.killed() {
			return nil, EINTR
		}
		if !th.fallAsleep(uint32(InPoll) | parkedBit) {
			continue
		}
		select {
		case <-th.wake:
		case <-deadline:
			if !th.state.CompareAndSwap(uint32(InPoll)|parkedBit, uint32(Running)) {
				<-th.wake // somebody was faster
			}
			return ep.collect(), 0
		}
	}
}

// collect returns the items that are ready. The files are asked without the
// lock, so that a test can hold their answer up.
func (ep *epoll) collect() (out []EpollEvent) {
	ep.mu.Lock()
	var hot []*epollItem
	for _, it := range ep.items {
		if it.hot || !it.edge {
			hot = append(hot, it)
		}
		it.hot = false
	}
	ep.mu.Unlock()
	for _, it := range hot {
		if ev := it.f.events(); ev != 0 {
			out = append(out, EpollEvent{it.fd, ev})
		}
	}
	return out
}
