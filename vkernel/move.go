// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// moveLinux618 is UFFDIO_MOVE: it takes pages from one place of the caller's
// own address space to another.
func moveLinux618(u *uffd, th *Thread, arg mem.Addr) syscall.Errno {
	return fillCall(u, th, arg, 4, func(w words) (int64, mem.Range, syscall.Errno) {
		const dontwake, holes = uapi.UFFDIO_MOVE_MODE_DONTWAKE, uapi.UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES
		mode := uapi.MoveMode(w[3])
		p := u.k.profile
		switch {
		case th.p.as.Load() != u.as:
			return refused(EINVAL)
		case !p.checkRange(w[0], w[2]), !p.checkRange(w[1], w[2]), mode&^(dontwake|holes) != 0:
			return refused(EINVAL)
		}
		m := mover{u: u, th: th, holes: mode&holes != 0}
		done, errno := m.run(mem.Addr(w[0]), mem.Addr(w[1]), int(w[2]))
		return outcome(mem.Addr(w[0]), done, errno, mode&dontwake != 0)
	})
}

type mover struct {
	u     *uffd
	th    *Thread
	holes bool
}

func (m *mover) run(dst, src mem.Addr, n int) (done int, errno syscall.Errno) {
	as := m.u.as
	as.mu.RLock()
	defer as.mu.RUnlock()
	if as.dead {
		return 0, ESRCH
	}
	sv, dv := as.vmas.find(src), as.vmas.find(dst)
	if dv != nil && dv.start <= dst && !dv.shared() {
		as.adopt(dv) // whatever becomes of the request
	}
	if sv == nil || sv.start > src || dv == nil || dv.start > dst {
		return 0, ENOENT
	}
	if m.u.changing.Load() > 0 {
		return 0, EAGAIN
	}
	if !m.compatible(sv, dv, mem.MakeRange(src, uint64(n)), mem.MakeRange(dst, uint64(n))) {
		return 0, EINVAL
	}
	as.learn(sv, mem.MakeRange(src, uint64(n)))
	as.learn(dv, mem.MakeRange(dst, uint64(n)))
	for done < n && errno == 0 {
		if m.th.killed() {
			errno = EINTR
		} else if errno = m.page(dv, dst+mem.Addr(done), src+mem.Addr(done)); errno == 0 {
			done += mem.PageSize
		}
	}
	return done, errno
}

// compatible reports whether pages of sv may become those of dv.
func (m *mover) compatible(sv, dv *vma, src, dst mem.Range) bool {
	switch {
	case sv.shared() || !sv.rng().Covers(src), dv.shared() || !dv.rng().Covers(dst):
		return false
	case (sv.flags^dv.flags)&(vmAccess|vmLocked) != 0, !sv.is(vmWrite):
		return false
	case sv.hugetlb() || dv.hugetlb(), dv.uffd != m.u, !sv.anon() || !dv.anon():
		return false
	}
	return true
}

// page moves one page.
func (m *mover) page(dv *vma, dst, src mem.Addr) syscall.Errno {
	as := m.u.as
	ds, ss := as.pt.slot(dst, true), as.pt.slot(src, true)
	// Two slots are locked in the order of their addresses.
	first, second := ds, ss
	if src < dst {
		first, second = ss, ds
	}
	first.mu.Lock()
	defer first.mu.Unlock()
	if first != second {
		second.mu.Lock()
		defer second.mu.Unlock()
	}
	if ds.get(index(dst)) != 0 {
		return EEXIST
	}
	e := ss.get(index(src))
	fr := e.frame()
	if as.out != nil && e.present() {
		if errno := as.out.Move(dst, src); errno != 0 {
			return errno
		}
	}
	switch {
	case e == 0 && m.holes:
		return 0
	case e == 0:
		return ENOENT
	case !e.present():
		return EFAULT
	case fr == 0:
		ds.set(index(dst), makePTE(0, 0))
	case !as.k.mem.has(fr, frameExclusive) || as.k.pinned(pin{frame: fr}):
		return EBUSY
	default:
		ds.set(index(dst), makePTE(fr, pteWrite))
	}
	ss.set(index(src), 0)
	return 0
}
