// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"errors"
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// Outside is the memory of a process that lives outside of the machine, and of
// which a [Process] is the mirror: the mirror decides what a fault or a
// request comes to, and the memory itself is there.
//
// A mirror knows the pages of registered memory alone. Of other memory it
// learns what it needs when it is asked for it, by Resident and Cached.
//
// Methods are called with locks of the address space held, and must not call
// back. Those that change pages are called before anybody in the process may
// see them.
type Outside interface {
	// Load and Store copy between the process's memory and ours, with the
	// permissions that the process has there at the moment. They return how
	// many bytes came before the first that cannot be had.
	Load(a mem.Addr, dst []byte) int
	Store(a mem.Addr, src []byte) int

	// Fill gives the absent page at a its content: src, or zeros if it is
	// nil. Of a huge page src is as long as that, and of several pages of private
	// memory as long as those. After an errno none of them shows.
	Fill(a mem.Addr, src []byte) syscall.Errno

	// Move takes the page at src to the absent page at dst.
	Move(dst, src mem.Addr) syscall.Errno

	// Resident calls there for every page of r that the process has in
	// memory or swapped out; own says that it is not an object's.
	Resident(r mem.Range, there func(a mem.Addr, own bool))

	// Cached calls there for every page of r that the object has which is
	// mapped there.
	Cached(r mem.Range, there func(a mem.Addr))

	// Blank reports whether the page of the object that is mapped at a, if the
	// process has none of its own there, has nothing but zeros.
	Blank(a mem.Addr) bool
	// Opened says that a fault of the mirror's own has made the page at a
	// accessible. It is called with no locks held.
	Opened(a mem.Addr)

	// CachedHuge calls there for every huge page of r that the object has which is
	// mapped there, as far as that can be known.
	CachedHuge(r mem.Range, there func(a mem.Addr))

	// Install gives descriptor fd of the mirror a number in the process.
	Install(fd int) (int, syscall.Errno)
}

// Object names what is mapped in a process outside: device and inode.
type Object struct{ Dev, Ino uint64 }

// Mapping describes a VMA of a process outside.
type Mapping struct {
	Range  mem.Range
	Prot   int
	Shared bool
	// Fixed says that it cannot be made writable.
	Fixed bool
	// Locked says that mlock(2) keeps it.
	Locked bool
	// Anonymous memory has no object. Of an object Shmem says that it is
	// memory, and not a file that cannot be registered.
	Object Object
	Shmem  bool
	Huge   bool   // memory of pages of 2 MiB
	Off    uint64 // of the start, in bytes
	Size   uint64 // of the object, in bytes
}

// ErrInterrupted is returned by [Thread.Touch] when a signal has to be handled
// before the access can be tried again.
var ErrInterrupted = errors.New("interrupted by a signal")

// WithMirrors makes a machine whose processes are all mirrors: its pages have
// no content.
func WithMirrors() Option { return func(k *Kernel) { k.mem.bare, k.mem.huge.bare = true, true } }

// SetOutside makes p the mirror of a process. It is for a process that was
// just made and has no threads.
func (p *Process) SetOutside(o Outside) { p.as.Load().out = o }

// Reflect makes the mirror have maps in r, whole pages, but for memory that is
// registered, which it knows better.
func (p *Process) Reflect(r mem.Range, maps []Mapping) {
	if r.Empty() {
		return
	}
	as := p.as.Load()
	as.mu.Lock()
	defer as.mu.Unlock()
	scars := as.scars(r)
	defer as.restore(scars)
	maps = as.uncut(as.unscar(maps, scars))
	for v := as.vmas.find(r.Start); v != nil && v.start < r.End; {
		if v.uffd != nil {
			v = as.vmas.next(v)
			continue
		}
		if !v.hugetlb() { // which could not be cut anywhere
			v, _ = as.carve(v, r.Intersect(v.rng())) // the mirror has no bound on VMAs
		}
		next := as.vmas.next(v)
		as.drop(v)
		v = next
	}
	for i := range maps {
		m := maps[i]
		m.Range = m.Range.Intersect(r)
		m.Off += uint64(m.Range.Start - maps[i].Range.Start)
		as.reflect(m)
	}
}

// reflect adds what of m is not registered.
func (as *space) reflect(m Mapping) {
	for at := m.Range.Start; at < m.Range.End; {
		v := as.vmas.find(at)
		if v != nil && v.start <= at {
			at = v.end
			continue
		}
		end := m.Range.End
		if v != nil {
			end = min(end, v.start)
		}
		n := &vma{start: at, end: end, flags: m.flags(), off: uint64(at)}
		if m.Object != (Object{}) || m.Shared {
			n.obj = as.k.reflected(m)
			n.off = m.Off + uint64(at-m.Range.Start)
		}
		as.link(n)
		if n.obj != nil {
			n.obj.put() // the VMA has its own reference
		}
		at = end
	}
}

func (m *Mapping) flags() vmaFlags {
	f := vmaFlags(m.Prot&7) | vmMayRead | vmMayWrite | vmMayExec
	if m.Shared {
		f |= vmShared | vmMayShare
	}
	if m.Fixed {
		f &^= vmMayWrite
	}
	if m.Locked {
		f |= vmLocked
	}
	if m.Huge {
		f |= vmHugetlb | vmDontExpand
	}
	if !m.Shared && m.Prot&ProtWrite != 0 {
		f |= vmAccount // unless the program said otherwise, which nothing tells
	}
	return f
}

// reflected returns the mirror of an object, with a reference.
func (k *Kernel) reflected(m Mapping) *object {
	k.mu.Lock()
	defer k.mu.Unlock()
	o := k.objects[m.Object]
	if o != nil && o.revive() {
		o.mu.Lock()
		o.size = max(o.size, m.Size)
		o.mu.Unlock()
		return o
	}
	kind := kindRegular
	switch {
	case m.Huge:
		kind = kindHugetlb
	case m.Shmem:
		kind = kindShmem
	}
	o = k.newObject(kind, "", m.Size)
	if k.objects == nil {
		k.objects = make(map[Object]*object)
	}
	k.objects[m.Object] = o
	return o
}

// revive takes a reference unless the last was dropped.
func (o *object) revive() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.refs == 0 {
		return false
	}
	o.refs++
	return true
}

// Reflects reports whether memory of a mirror maps o.
func (k *Kernel) Reflects(o Object) bool {
	obj := k.object(o)
	if obj == nil {
		return false
	}
	obj.put()
	return true
}

// Punch takes the pages that lie wholly within n bytes from off on from the
// mirror of o, and from all that map it.
func (k *Kernel) Punch(o Object, off, n uint64) {
	if obj := k.object(o); obj != nil {
		obj.punch(off, n)
		obj.put()
	}
}

// Truncate sets the size of the mirror of o.
func (k *Kernel) Truncate(o Object, size uint64) {
	if obj := k.object(o); obj != nil {
		obj.truncate(size)
		obj.put()
	}
}

// object returns the mirror of o with a reference, nil if there is none.
func (k *Kernel) object(o Object) *object {
	k.mu.Lock()
	defer k.mu.Unlock()
	if obj := k.objects[o]; obj != nil && obj.revive() {
		return obj
	}
	return nil
}

// learn brings what the mirror knows of the pages of r, a part of v, up to
// date. What it knows of pages that it watches for being missing is right
// anyway.
func (as *space) learn(v *vma, r mem.Range) {
	if as.out == nil || v.uffd != nil && v.is(vmMissing) {
		return
	}
	if v.uffd == nil {
		scars := as.scars(r)
		as.zapAll(v, r)
		as.restore(scars)
	}
	if v.obj != nil {
		if v.uffd == nil && v.shared() {
			as.unlearnObject(v, r)
		}
		as.learnObject(v, r)
	}
	if v.hugetlb() {
		as.learnHuge(v, r)
		return
	}
	m := &as.k.mem
	as.out.Resident(r, func(a mem.Addr, own bool) {
		s := as.pt.slot(a, true)
		s.mu.Lock()
		defer s.mu.Unlock()
		e := s.get(index(a))
		if e.present() || e&ptePoison != 0 {
			return
		}
		flags := e & pteWP
		if v.is(vmWrite) && (own || v.shared()) {
			flags |= pteWrite
		}
		if !v.is(vmAccess) {
			flags |= pteNoAccess
		}
		if own || v.obj == nil {
			s.set(index(a), makePTE(m.alloc(), flags))
			return
		}
		v.obj.mu.Lock()
		defer v.obj.mu.Unlock()
		if fr, ok := v.obj.lookupLocked(v.offset(a) >> mem.PageShift); ok {
			m.get(fr)
			s.set(index(a), makePTE(fr, flags))
		}
	})
}

// learnObject brings what the mirror knows of the object's pages that v shows
// in r up to date.
func (as *space) learnObject(v *vma, r mem.Range) {
	if as.out != nil && v.hugetlb() {
		as.learnHugeObject(v, r)
		return
	}
	if as.out == nil || v.obj == nil || v.obj.kind != kindShmem {
		return
	}
	o := v.obj
	o.mu.Lock()
	defer o.mu.Unlock()
	// A page of the process's own hides what the object has: that is looked at
	// when it is gone.
	var own map[mem.Addr]bool
	if !v.shared() {
		own = make(map[mem.Addr]bool)
		as.out.Resident(r, func(a mem.Addr, is bool) { own[a] = is })
	}
	as.out.Cached(r, func(a mem.Addr) {
		if own[a] {
			return
		}
		n := v.offset(a) >> mem.PageShift
		if _, phantom := o.phantoms[n]; phantom {
			if as.out.Blank(a) {
				return
			}
			delete(o.phantoms, n)
		}
		if _, ok := o.lookupLocked(n); !ok {
			o.storeLocked(n, o.k.mem.alloc())
		}
		if size := (n + 1) << mem.PageShift; o.size < size {
			o.size = size
		}
	})
}

// Registered returns the memory of p that is registered with any descriptor,
// and the pages that are poisoned, wherever they are, in order.
func (p *Process) Registered() (rs []mem.Range) {
	as := p.as.Load()
	as.mu.RLock()
	defer as.mu.RUnlock()
	for v := as.vmas.find(0); v != nil; v = as.vmas.next(v) {
		parts := []mem.Range{v.rng()}
		if v.uffd == nil {
			parts = as.scars(v.rng())
		}
		for _, part := range parts {
			rs = appendRange(rs, part)
		}
	}
	return rs
}

// appendRange adds r, which comes after all of rs.
func appendRange(rs []mem.Range, r mem.Range) []mem.Range {
	if len(rs) != 0 && rs[len(rs)-1].End == r.Start {
		rs[len(rs)-1].End = r.End
		return rs
	}
	return append(rs, r)
}

// KernelFaults reports whether system calls wait for memory of p: whether any
// of it is registered with a descriptor that is not for user mode alone.
func (p *Process) KernelFaults() bool {
	as := p.as.Load()
	as.mu.RLock()
	defer as.mu.RUnlock()
	for v := as.vmas.find(0); v != nil; v = as.vmas.next(v) {
		if v.uffd != nil && v.uffd.flags&uapi.UFFD_USER_MODE_ONLY == 0 {
			return true
		}
	}
	return false
}

// Watches reports whether a is registered memory, or poisoned.
func (p *Process) Watches(a mem.Addr) bool {
	as := p.as.Load()
	as.mu.RLock()
	defer as.mu.RUnlock()
	v := as.vmas.find(a)
	return v != nil && v.start <= a && (v.uffd != nil || as.scarred.Load() && as.poisoned(a))
}

// Permissions returns what the VMA at a allows.
func (p *Process) Permissions(a mem.Addr) int {
	as := p.as.Load()
	as.mu.RLock()
	defer as.mu.RUnlock()
	if v := as.vmas.find(a); v != nil && v.start <= a {
		return int(v.flags & vmAccess)
	}
	return ProtNone
}

// Shared calls fn for the registered parts of r that map an object which the
// process shares.
func (p *Process) Shared(r mem.Range, fn func(part mem.Range)) {
	for _, part := range p.registered(r, (*vma).shared) {
		fn(part)
	}
}

// Wiped returns the registered memory that a forked child finds zeroed
// (MADV_WIPEONFORK), in order.
func (p *Process) Wiped() []mem.Range {
	return p.registered(mem.Range{End: ^mem.Addr(0)}, func(v *vma) bool { return v.is(vmWipeOnFork) })
}

// Mapping returns the VMA at a, if it is registered.
func (p *Process) Mapping(a mem.Addr) (r mem.Range, ok bool) {
	for _, r := range p.registered(mem.MakeRange(a, 1), func(*vma) bool { return true }) {
		return r, true
	}
	return r, false
}

// registered returns the registered parts of r, in whole VMAs, of which is is true.
func (p *Process) registered(r mem.Range, is func(*vma) bool) (parts []mem.Range) {
	as := p.as.Load()
	as.mu.RLock()
	defer as.mu.RUnlock()
	as.vmas.all(r, func(v *vma) bool {
		if v.uffd != nil && is(v) {
			parts = append(parts, v.rng())
		}
		return true
	})
	return parts
}

// Flags returns the flags with which descriptor fd was made.
func (p *Process) Flags(fd int) int {
	f := p.file(fd)
	if f == nil {
		return 0
	}
	defer f.put()
	if f.uffd == nil {
		return 0
	}
	return f.uffd.flags
}
