// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"sync"
	"syscall"

	"github.com/faultline-go/faultline/mem"
)

// NewMirrorThread adds a thread that does not sleep in a goroutine of its own:
// park is called instead, and must return after wake was called, which is by
// whoever wakes the thread, and at most once for each park. wake is called with
// locks held and must do no more than to take note.
func (p *Process) NewMirrorThread(tid int, park, wake func()) *Thread {
	th := p.NewThread()
	th.tid, th.park, th.unpark = tid, park, wake
	return th
}

// End makes the thread's calls and accesses end as if the process was killed.
func (th *Thread) End() {
	th.ended.Store(true)
	th.p.mu.Lock()
	delete(th.p.threads, th)
	th.p.mu.Unlock()
	th.poke()
}

// Interrupt tells the thread that a signal waits for it, which ends a wait that
// signals end.
func (th *Thread) Interrupt() {
	th.signals.Add(1)
	th.poke()
}

// ClearSignals says that none waits any more.
func (th *Thread) ClearSignals() { th.signals.Store(0) }

// Touch makes the page at a accessible as an access of user mode does. It
// returns nil if the access would succeed now, and else what [Thread.Load]
// does, or [ErrInterrupted].
func (th *Thread) Touch(a mem.Addr, write bool) error {
	th.at = attempt{as: th.p.as.Load(), write: write, mode: userMode}
	var one [1]byte
	_, v := th.outside(a, one[:], &operation{write: write, probe: true}, &th.at)
	return th.failure(v, a)
}

// Want makes the page at a accessible as a system call does that is about to
// use it. It returns EFAULT if it cannot be had, and EINTR for the dead.
func (th *Thread) Want(a mem.Addr, write bool) syscall.Errno {
	return th.want(attempt{as: th.p.as.Load(), write: write, mode: kernelMode}, a)
}

func (th *Thread) want(at attempt, a mem.Addr) syscall.Errno {
	th.at = at
	var one [1]byte
	switch _, v := th.outside(a, one[:], &operation{write: at.write, probe: true, force: at.force}, &th.at); v {
	case retry:
		return 0
	case killed:
		return EINTR
	}
	return EFAULT
}

// WantOf makes the page at a of another process accessible, as process_vm_readv and
// process_vm_writev do. It returns what Want does.
func (th *Thread) WantOf(p *Process, a mem.Addr, write bool) syscall.Errno {
	return th.want(attempt{as: p.as.Load(), write: write, mode: pinMode}, a)
}

// Reach returns how many of n bytes from a on /proc/PID/mem reads or writes of a
// process: as many as come before a page that would have to be waited for.
func (th *Thread) Reach(p *Process, a mem.Addr, n uint64, write bool) uint64 {
	as := p.as.Load()
	for r := mem.MakeRange(a, n); !r.Empty(); r.Start = (r.Start + mem.PageSize).Down() {
		if th.want(attempt{as: as, write: write, mode: ptraceMode, force: true}, r.Start) != 0 {
			return uint64(r.Start - a)
		}
	}
	return n
}

// outside is access for memory that lies outside.
func (th *Thread) outside(a mem.Addr, buf []byte, op *operation, at *attempt) (int, verdict) {
	as := at.as
	done := 0
	for done < len(buf) {
		n := min(len(buf)-done, mem.PageSize-int(a&(mem.PageSize-1)))
		at.tries = 0
		faulted := false
		for !as.open(a, op) {
			faulted = true
			if v := as.fault(th, a, at); v != retry {
				return done, v
			}
			if at.userMode() && th.interrupted() {
				th.handle()
				return done, interrupted
			}
		}
		if faulted && !op.probe {
			as.out.Opened(a)
		}
		if !op.probe {
			if got := as.transfer(a, buf[done:done+n], op.write); got < n {
				return done + got, segvMap
			}
		}
		done += n
		a += mem.Addr(n)
	}
	return done, retry
}

func (as *space) transfer(a mem.Addr, buf []byte, write bool) int {
	if write {
		return as.out.Store(a, buf)
	}
	return as.out.Load(a, buf)
}

// open reports whether the mirror lets an access through: to memory that
// nobody has registered always, but where a page is poisoned.
func (as *space) open(a mem.Addr, op *operation) bool {
	as.mu.RLock()
	defer as.mu.RUnlock()
	v := as.vmas.find(a)
	switch {
	case v == nil || v.start > a:
		return true
	case v.uffd == nil:
		return !as.scarred.Load() || !as.poisoned(a)
	}
	s := as.pt.slot(a, false)
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.hugetlb() {
		return as.allows(s.huge, true, op)
	}
	return as.allows(s.get(index(a)), false, op)
}

var noBytes [mem.PageSize]byte

// outside installs a page whose content is outside: one of the process's own,
// or one that the object does not have yet.
func (f *filler) outside(v *vma, a mem.Addr, done int) syscall.Errno {
	as := f.u.as
	m := &as.k.mem
	object := v.obj != nil && v.shared()
	e := as.pt.entry(a)
	there := e.present() || f.kind == fillZero && !object && e != 0
	if object {
		if v.obj.beyond(v.offset(a)) {
			return EFAULT
		}
		as.learnObject(v, mem.MakeRange(a, mem.PageSize))
		v.obj.mu.Lock()
		_, has := v.obj.lookupLocked(v.offset(a) >> mem.PageShift)
		v.obj.mu.Unlock()
		there = there || has
	}
	var src []byte
	if f.kind == fillCopy {
		if len(f.page) == 0 {
			f.page = make([]byte, mem.PageSize)
		}
		if f.bytes != nil {
			src = f.bytes[done : done+mem.PageSize]
		} else if src = f.page; !f.ahead && !f.read(src, done) {
			return errSource
		}
	} else if f.kind == fillZero && v.obj != nil {
		src = noBytes[:] // the object's page would show
	}
	if there {
		return EEXIST // the source has been looked at first
	}
	phantom := !object && v.obj != nil && f.phantom(v, a)
	if errno := as.out.Fill(a, src); errno != 0 {
		return errno
	}
	var fr frame // the page of zeros
	if f.kind == fillCopy || object || v.obj == nil {
		fr = m.alloc()
	}
	if phantom {
		v.obj.haunt(v.offset(a) >> mem.PageShift)
	}
	if object {
		v.obj.mu.Lock()
		v.obj.storeLocked(v.offset(a)>>mem.PageShift, fr)
		v.obj.mu.Unlock()
		m.get(fr)
	}
	s := as.pt.slot(a, true)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(index(a), f.entry(v, fr, !object && fr != 0))
	return 0
}

// mostAtOnce is how many pages are filled in one step outside.
const mostAtOnce = 64

var batches = sync.Pool{New: func() any { return new([mostAtOnce * mem.PageSize]byte) }}

// several copies to as many absent pages from a on as can be had at once: each
// page by itself is two system calls outside. It returns how many bytes that were,
// none where one page is looked at by itself: for its errno, or since there is no
// more than one.
func (f *filler) several(v *vma, a mem.Addr, done, total int) int {
	as := f.u.as
	if as.out == nil || f.kind != fillCopy || !v.anon() || v.hugetlb() || f.ahead {
		return 0
	}
	most := min(total-done, mostAtOnce*mem.PageSize)
	n := 0
	for n < most && !as.pt.entry(a+mem.Addr(n)).present() {
		n += mem.PageSize
	}
	if n <= mem.PageSize {
		return 0
	}
	var src []byte
	if f.bytes != nil {
		src = f.bytes[done:]
	} else {
		b := batches.Get().(*[mostAtOnce * mem.PageSize]byte)
		defer batches.Put(b)
		src = b[:]
		n = f.th.p.as.Load().peekRun(f.src+mem.Addr(done), src[:n]) &^ (mem.PageSize - 1)
	}
	if n <= mem.PageSize || as.out.Fill(a, src[:n]) != 0 {
		return 0
	}
	for at := a; at < a+mem.Addr(n); at += mem.PageSize {
		fr := as.k.mem.alloc()
		s := as.pt.slot(at, true)
		s.mu.Lock()
		s.set(index(at), f.entry(v, fr, true))
		s.mu.Unlock()
	}
	return n
}

// peekRun reads without faulting, and returns how many bytes could be had.
func (as *space) peekRun(a mem.Addr, dst []byte) int {
	if as.out == nil {
		return 0
	}
	var op operation
	n := 0
	for n < len(dst) && as.open(a+mem.Addr(n), &op) {
		n = min(len(dst), n+mem.PageSize-int((a+mem.Addr(n))&(mem.PageSize-1)))
	}
	return as.out.Load(a, dst[:n])
}

// phantom reports whether the object has no page at a. It gets one when the
// process is given its own, by the way in which that is done.
func (f *filler) phantom(v *vma, a mem.Addr) bool {
	f.u.as.learnObject(v, mem.MakeRange(a, mem.PageSize))
	v.obj.mu.Lock()
	defer v.obj.mu.Unlock()
	_, has := v.obj.lookupLocked(v.offset(a) >> mem.PageShift)
	return !has
}

// haunt notes a phantom.
func (o *object) haunt(n uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.phantoms == nil {
		o.phantoms = make(map[uint64]struct{})
	}
	o.phantoms[n] = struct{}{}
}

// OnReadable has f called whenever something to read comes to fd, and returns
// what tells whether there is anything. f is called with locks held
// and must do no more than to take note. It is for a process that keeps
// descriptors for others, until Close.
func (p *Process) OnReadable(fd int, f func()) (pending func() bool) {
	file := p.file(fd)
	if file == nil || file.uffd == nil {
		if file != nil {
			file.put()
		}
		return func() bool { return false }
	}
	u := file.uffd
	file.put() // the number keeps it
	u.addReader(&reader{poke: f})
	return u.pending
}

// Blocking reports whether poll on fd is an error: before the handshake, and
// where the descriptor was not made non-blocking.
func (p *Process) Blocking(fd int) bool {
	f := p.file(fd)
	if f == nil {
		return false
	}
	defer f.put()
	return f.uffd != nil && f.events() == PollErr
}

// Memory returns what descriptor fd takes the faults of, nil if that is no
// mirror or fd is none.
func (p *Process) Memory(fd int) Outside {
	f := p.file(fd)
	if f == nil {
		return nil
	}
	defer f.put()
	if f.uffd == nil {
		return nil
	}
	return f.uffd.as.out
}
