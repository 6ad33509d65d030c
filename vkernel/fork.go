// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// Fork makes a process with a copy of the thread's address space and table
// of descriptors. It has no thread yet: use NewThread. Descriptors that asked
// for the event are told, and Fork returns when they were; the child exists
// before that. It is ENOMEM, and nobody is told, where a huge page is pinned and there is
// none to copy it to.
func (th *Thread) Fork() (*Process, syscall.Errno) {
	return th.ForkWith(nil)
}

// ForkWith is Fork, and calls started with the child when that exists, before
// any event has been read.
func (th *Thread) ForkWith(started func(child *Process)) (*Process, syscall.Errno) {
	th.enter()
	defer th.leave()
	p := th.p
	as := p.as.Load()
	child := as.k.newSpace()
	var told news
	as.mu.Lock()
	if as.dead {
		as.mu.Unlock()
		return nil, EINTR
	}
	child.mu.Lock() // nobody sees it yet; for the helpers' preconditions
	child.brk = as.brk
	c := cloner{from: as, to: child, told: &told, heirs: make(map[*uffd]*uffd)}
	for v := as.vmas.find(0); v != nil && !c.failed; v = as.vmas.next(v) {
		c.vma(v)
	}
	child.mu.Unlock()
	as.mu.Unlock()
	if c.failed {
		told.drop()
		child.exit()
		return nil, ENOMEM
	}

	q := p.k.newProcess(p.options, child)
	p.mu.Lock()
	q.files = make([]fdEntry, len(p.files))
	for i, e := range p.files {
		// The descriptors of a mirror are not those of its process.
		if e.file != nil && as.out == nil {
			e.file.get()
			q.files[i] = e
		}
	}
	for sig, on := range p.ignored {
		q.ignored[sig] = on
	}
	p.mu.Unlock()
	if started != nil {
		started(q)
	}
	told.deliver(th)
	return q, 0
}

// cloner copies an address space. Both are locked for writing.
type cloner struct {
	from, to *space
	told     *news
	heirs    map[*uffd]*uffd // the child's descriptor for the parent's
	failed   bool            // for want of a huge page
}

// vma copies one VMA.
func (c *cloner) vma(v *vma) {
	if v.is(vmDontCopy) {
		return
	}
	if c.from.scarred.Load() {
		c.to.scarred.Store(true)
	}
	n := *v
	n.flags &^= vmLockedMask
	n.uffd = c.heir(v.uffd)
	if n.uffd == nil {
		n.flags &^= vmUffd
	}
	if v.line != nil {
		n.setLine(&lineage{forked: true})
	}
	n.inherited = !v.shared()
	if v.is(vmWipeOnFork) {
		n.setLine(nil)
		c.to.link(&n)
		return
	}
	c.to.link(&n)
	// Memory whose pages its object has is faulted in by the child, unless
	// the page table knows more. A mirror does not know which VMAs have pages of
	// their own, but anonymous memory has no others.
	mirrored := c.from.out != nil && v.obj == nil
	if v.line == nil && !n.is(vmWP) && !mirrored {
		return
	}
	if v.hugetlb() {
		c.hugePages(v, &n)
	} else {
		c.pages(v, &n)
	}
}

// heir returns the child's descriptor for u, nil if u did not ask for one.
func (c *cloner) heir(u *uffd) *uffd {
	if u == nil || !u.has(uapi.UFFD_FEATURE_EVENT_FORK) {
		return nil
	}
	h := c.heirs[u]
	if h == nil {
		h = c.from.k.newUffd(c.to, u.flags)
		h.state.Store(u.state.Load())
		c.heirs[u] = h
		e := newEvent(u, uapi.Fork{}.Msg())
		e.child = h
		c.told.events = append(c.told.events, e)
	}
	return h
}

// pages shares the small pages of v with n. Those of private memory become
// read-only in both; a pinned one is copied, so that the device and the
// parent go on seeing the same.
func (c *cloner) pages(v, n *vma) {
	m := &c.from.k.mem
	c.from.pt.update(v.rng(), func(a mem.Addr, e pte) pte {
		copied := e
		if !n.is(vmWP) {
			copied &^= pteWP
		}
		if fr := e.frame(); e.present() && fr != 0 {
			switch {
			case v.shared():
				m.get(fr)
			case c.from.k.pinned(pin{frame: fr}):
				copied = copied&(1<<pteShift-1) | pte(m.duplicate(fr))<<pteShift
			default:
				m.get(fr)
				m.clear(fr, frameExclusive)
				e &^= pteWrite
				copied &^= pteWrite
			}
		}
		s := c.to.pt.slot(a, true)
		s.mu.Lock()
		s.set(index(a), copied)
		s.mu.Unlock()
		return e
	})
}

// hugePages is pages for huge ones.
func (c *cloner) hugePages(v, n *vma) {
	h := &c.from.k.mem.huge
	c.from.pt.updateHuge(v.rng(), func(a mem.Addr, e pte) pte {
		copied := e
		if !n.is(vmWP) {
			copied &^= pteWP
		}
		if fr := e.frame(); e.present() {
			switch {
			case !v.shared() && c.from.k.pinned(pin{fr, true}):
				own, ok := h.alloc(false)
				if !ok {
					c.failed = true
					return e
				}
				copyHuge(h, own, fr)
				copied = copied&(1<<pteShift-1) | pte(own)<<pteShift
			case v.shared():
				h.get(fr)
			default:
				h.get(fr)
				h.page(fr).word.And(^uint32(frameExclusive))
				e &^= pteWrite
				copied &^= pteWrite
			}
		}
		s := c.to.pt.slot(a, true)
		s.mu.Lock()
		s.huge = copied
		s.mu.Unlock()
		return e
	})
}

// Exec gives the process an empty address space and closes descriptors that
// are marked for it. Descriptors of the old memory stay open and find it
// gone. No other thread of the process may be in a call.
func (th *Thread) Exec() syscall.Errno {
	th.enter()
	defer th.leave()
	p := th.p
	old := p.as.Swap(p.k.newSpace())
	old.exit()
	p.mu.Lock()
	var closing []*file
	for i, e := range p.files {
		if e.file != nil && e.cloexec {
			closing = append(closing, e.file)
			p.files[i] = fdEntry{}
		}
	}
	p.mu.Unlock()
	for _, f := range closing {
		f.put()
	}
	return 0
}
