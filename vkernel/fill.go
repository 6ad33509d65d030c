// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// filler is a request that puts pages into memory: COPY, ZEROPAGE, CONTINUE
// or POISON.
type filler struct {
	u    *uffd
	th   *Thread // the caller; nil for one outside of the machine
	kind fillKind
	wp   bool // install write-protected

	// The source of a copy is bytes, or the caller's memory.
	bytes []byte
	src   mem.Addr
	// page holds what was read of the source while no lock was held.
	page  []byte
	ahead bool // page has the bytes for the next page
}

type fillKind uint8

const (
	fillCopy fillKind = iota
	fillZero
	fillContinue
	fillPoison
)

// fillCall is the frame that the four requests share. words counts those of
// the argument before the result, which is the last.
func fillCall(u *uffd, th *Thread, arg mem.Addr, n int, run func(w words) (done int64, wake mem.Range, errno syscall.Errno)) syscall.Errno {
	if u.changing.Load() > 0 {
		// Before the argument is looked at.
		if errno := th.writeWord(arg, n, negated(EAGAIN)); errno != 0 {
			return errno
		}
		return EAGAIN
	}
	w, errno := th.readArg(arg, n)
	if errno != 0 {
		return errno
	}
	done, wake, errno := run(w)
	if errno == EINVAL && done == untouched || errno == ESRCH {
		return errno
	}
	result := uint64(done)
	if done == 0 && errno != 0 {
		result = negated(errno)
	}
	if failed := th.writeWord(arg, n, result); failed != 0 {
		return failed
	}
	if done > 0 && !wake.Empty() {
		u.k.reach(PhaseFilled, th, wake.Start)
		u.wakeRange(wake)
	}
	if done > 0 && errno != 0 {
		return EAGAIN // the next call shows why
	}
	return errno
}

// untouched is the count of a request that was refused before anything: its
// result word stays as it was.
const untouched = -1

func negated(e syscall.Errno) uint64 { return uint64(-int64(e)) }

func refused(errno syscall.Errno) (int64, mem.Range, syscall.Errno) {
	return untouched, mem.Range{}, errno
}

// outcome is what run returns of a request on r that did done bytes.
func outcome(start mem.Addr, done int, errno syscall.Errno, dontwake bool) (int64, mem.Range, syscall.Errno) {
	var wake mem.Range
	if !dontwake {
		wake = mem.MakeRange(start, uint64(done))
	}
	return int64(done), wake, errno
}

func copyLinux618(u *uffd, th *Thread, arg mem.Addr) syscall.Errno {
	return fillCall(u, th, arg, 4, func(w words) (int64, mem.Range, syscall.Errno) {
		const dontwake, wp = uapi.UFFDIO_COPY_MODE_DONTWAKE, uapi.UFFDIO_COPY_MODE_WP
		mode := uapi.CopyMode(w[3])
		p := u.k.profile
		if !p.checkLength(w[1], w[2]) || !p.checkRange(w[0], w[2]) || mode&^(dontwake|wp) != 0 {
			return refused(EINVAL)
		}
		f := filler{u: u, th: th, kind: fillCopy, wp: mode&wp != 0, src: mem.Addr(w[1])}
		done, errno := f.run(mem.Addr(w[0]), w[2])
		return outcome(mem.Addr(w[0]), done, errno, mode&dontwake != 0)
	})
}

func zeropageLinux618(u *uffd, th *Thread, arg mem.Addr) syscall.Errno {
	return fillCall(u, th, arg, 3, func(w words) (int64, mem.Range, syscall.Errno) {
		const dontwake = uapi.UFFDIO_ZEROPAGE_MODE_DONTWAKE
		mode := uapi.ZeropageMode(w[2])
		if !u.k.profile.checkRange(w[0], w[1]) || mode&^dontwake != 0 {
			return refused(EINVAL)
		}
		f := filler{u: u, th: th, kind: fillZero}
		done, errno := f.run(mem.Addr(w[0]), w[1])
		return outcome(mem.Addr(w[0]), done, errno, mode&dontwake != 0)
	})
}

func continueLinux618(u *uffd, th *Thread, arg mem.Addr) syscall.Errno {
	return fillCall(u, th, arg, 3, func(w words) (int64, mem.Range, syscall.Errno) {
		const dontwake, wp = uapi.UFFDIO_CONTINUE_MODE_DONTWAKE, uapi.UFFDIO_CONTINUE_MODE_WP
		mode := uapi.ContinueMode(w[2])
		if !u.k.profile.checkRange(w[0], w[1]) || mode&^(dontwake|wp) != 0 {
			return refused(EINVAL)
		}
		f := filler{u: u, th: th, kind: fillContinue, wp: mode&wp != 0}
		done, errno := f.run(mem.Addr(w[0]), w[1])
		return outcome(mem.Addr(w[0]), done, errno, mode&dontwake != 0)
	})
}

func poisonLinux618(u *uffd, th *Thread, arg mem.Addr) syscall.Errno {
	return fillCall(u, th, arg, 3, func(w words) (int64, mem.Range, syscall.Errno) {
		const dontwake = uapi.UFFDIO_POISON_MODE_DONTWAKE
		mode := uapi.PoisonMode(w[2])
		if !u.k.profile.checkRange(w[0], w[1]) || mode&^dontwake != 0 {
			return refused(EINVAL)
		}
		f := filler{u: u, th: th, kind: fillPoison}
		done, errno := f.run(mem.Addr(w[0]), w[1])
		return outcome(mem.Addr(w[0]), done, errno, mode&dontwake != 0)
	})
}

// errSource says that the source could not be read with the lock held.
const errSource syscall.Errno = 1 << 20

// run installs n bytes of pages at dst. done is valid with any errno.
func (f *filler) run(dst mem.Addr, n uint64) (done int, errno syscall.Errno) {
	total := int(n)
	for {
		more, errno := f.locked(dst, total, done)
		done = more
		if errno != errSource {
			return done, errno
		}
		// The source has to be faulted in, with no lock held. Everything is
		// looked at again after that.
		size := mem.PageSize
		if len(f.page) > size {
			size = len(f.page)
		}
		if len(f.page) < size {
			f.page = make([]byte, size)
		}
		got, _ := f.th.copyIn(f.src+mem.Addr(done), f.page)
		if got < len(f.page) {
			if f.th.killed() {
				return done, EINTR
			}
			return done, EFAULT
		}
		f.ahead = true
	}
}

// locked installs what it can under one hold of the lock and returns how many
// bytes are done in all.
func (f *filler) locked(dst mem.Addr, total, done int) (int, syscall.Errno) {
	as := f.u.as
	as.mu.RLock()
	defer as.mu.RUnlock()
	if as.dead {
		return done, ESRCH
	}
	// The whole request stays in one VMA, what is done of it included.
	at := dst + mem.Addr(done)
	v := as.vmas.find(at)
	if v != nil && v.start <= at && !v.shared() {
		as.adopt(v) // whatever becomes of the request
	}
	if v == nil || v.start > at || at+mem.Addr(total-done) > v.end || v.uffd == nil {
		return done, ENOENT
	}
	if f.u.changing.Load() > 0 {
		return done, EAGAIN
	}
	if f.wp && !v.is(vmWP) {
		return done, EINVAL
	}
	as.learn(v, mem.MakeRange(at, uint64(total-done)))
	size := mem.PageSize
	switch {
	case v.hugetlb():
		if size = HugePageSize; f.kind == fillZero || dst&v.pageMask() != 0 || mem.Addr(total)&v.pageMask() != 0 {
			return done, EINVAL
		}
	case v.anon() && f.kind == fillContinue:
		return done, EINVAL
	}
	as.k.reach(PhaseFill, f.th, at)
	for done < total {
		if f.th != nil && f.th.killed() {
			return done, EINTR
		}
		if n := f.several(v, dst+mem.Addr(done), done, total); n != 0 {
			done += n
			continue
		}
		errno := f.page1(v, dst+mem.Addr(done), done)
		if errno == errSource && len(f.page) < size {
			f.page = make([]byte, size)
		}
		if errno != 0 {
			return done, errno
		}
		f.ahead = false
		done += size
	}
	return done, 0
}

// page1 installs one page of any kind.
func (f *filler) page1(v *vma, a mem.Addr, done int) syscall.Errno {
	switch {
	case v.hugetlb():
		return f.hugePage(v, a, done)
	case f.kind == fillPoison:
		return f.poison(v, a)
	case v.anon() || !v.shared() && f.kind != fillContinue:
		return f.private(v, a, done)
	}
	return f.object(v, a, done)
}

// read fills a page from the source.
func (f *filler) read(dst []byte, done int) bool {
	switch {
	case f.bytes != nil:
		copy(dst, f.bytes[done:])
		return true
	case f.ahead:
		copy(dst, f.page)
		return true
	}
	return f.th.p.as.Load().peek(f.src+mem.Addr(done), dst)
}

// entry makes the entry of a page. COPY and CONTINUE let the owner write at
// once if the VMA does; own says that the frame is not an object's.
func (f *filler) entry(v *vma, fr frame, own bool) pte {
	var flags pte
	if v.is(vmWrite) && (own || v.shared()) {
		flags |= pteWrite
	}
	if f.wp {
		flags = flags.protect()
	}
	if !v.is(vmAccess) {
		flags |= pteNoAccess
	}
	return makePTE(fr, flags)
}

// private installs a page of the process's own.
func (f *filler) private(v *vma, a mem.Addr, done int) syscall.Errno {
	as := f.u.as
	m := &as.k.mem
	if v.obj != nil && v.obj.beyond(v.offset(a)) {
		return EFAULT
	}
	if as.out != nil {
		return f.outside(v, a, done)
	}
	s := as.pt.slot(a, true)
	if f.kind == fillZero {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.get(index(a)) != 0 {
			return EEXIST
		}
		s.set(index(a), f.entry(v, 0, false))
		return 0
	}
	fr := m.alloc()
	page, _ := m.page(fr)
	if !f.read(page[:], done) {
		m.put(fr)
		return errSource
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// A marker gives way to a copy, a page does not.
	if s.get(index(a)).present() {
		m.put(fr)
		return EEXIST
	}
	s.set(index(a), f.entry(v, fr, true))
	return 0
}

// poison marks one page.
func (f *filler) poison(v *vma, a mem.Addr) syscall.Errno {
	if v.obj != nil && v.obj.beyond(v.offset(a)) {
		return EFAULT
	}
	s := f.u.as.pt.slot(a, true)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.get(index(a)) != 0 {
		return EEXIST
	}
	s.set(index(a), ptePoison)
	f.u.as.scarred.Store(true)
	return 0
}

// beyond reports whether offset off lies past the last page of the object.
func (o *object) beyond(off uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return off>>o.shift >= (o.size+1<<o.shift-1)>>o.shift
}
