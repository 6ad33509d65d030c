// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"context"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// accessMode says on whose behalf memory is touched, which decides what may
// interrupt a wait and whether there can be one.
type accessMode uint8

const (
	userMode   accessMode = iota // an instruction of the program
	kernelMode                   // a system call's argument
	pinMode                      // a page that a call looks up for later: process_vm_readv, mlock, madvise
	ptraceMode                   // a lookup that must not wait
)

// attempt is an access on its way through faults.
type attempt struct {
	as    *space
	write bool
	mode  accessMode
	force bool            // whatever the protection, as a debugger does
	tries int             // of the same page
	ctx   context.Context // nil if it cannot end
	bad   mem.Addr        // what a signal is to name, if not the access
}

func (at *attempt) userMode() bool { return at.mode == userMode }

// verdict is what a fault came to.
type verdict uint8

const (
	retry       verdict = iota // the access may succeed now
	segvMap                    // no memory there
	segvAcc                    // memory there, but not for this
	bus                        // no page can be had
	noMemory                   // no page can be had, for want of memory
	killed                     // the process is dead
	interrupted                // a signal has to be handled first
	cancelled                  // the context has ended
)

// fault makes the page at a accessible, or finds out why it cannot be.
func (as *space) fault(th *Thread, a mem.Addr, at *attempt) verdict {
	as.k.reach(PhaseFault, th, a)
	if th.killed() {
		return killed
	}
	if at.ctx != nil && at.ctx.Err() != nil {
		return cancelled
	}
	as.mu.RLock()
	v := as.vmas.find(a)
	if v == nil || v.start > a {
		as.mu.RUnlock()
		if v == nil || v.flags&vmGrowsDown == 0 || !at.expands() || !as.expand(a, th.p.options.MaxStack) {
			return segvMap
		}
		return retry
	}
	if !at.permitted(v) {
		as.mu.RUnlock()
		return segvAcc
	}
	f := &th.path
	*f = faulting{as: as, v: v, th: th, addr: a, at: at}
	var todo need
	switch {
	case v.hugetlb():
		todo = f.hugetlb()
	case v.anon():
		todo = f.anonymous()
	default:
		todo = f.object()
	}
	if todo.wait {
		return f.userfault(todo.flags)
	}
	as.mu.RUnlock()
	at.tries = 0
	return todo.verdict
}

func (at *attempt) permitted(v *vma) bool {
	if at.write {
		return v.is(vmWrite) || at.force && v.flags&(vmShared|vmMayWrite) == vmMayWrite
	}
	return v.is(vmAccess) || at.force && v.is(vmMayRead)
}

// expands reports whether the access makes memory grow down. One that only looks
// pages up does not, unless we are a mirror, which may not have been told yet
// how far the original has grown.
func (at *attempt) expands() bool { return at.mode != pinMode || at.as.out != nil }

// expand grows memory that grows down to hold a, if it is not longer than limit
// then.
func (as *space) expand(a mem.Addr, limit uint64) bool {
	as.mu.Lock()
	defer as.mu.Unlock()
	v := as.vmas.find(a)
	if v == nil || v.flags&vmGrowsDown == 0 {
		return false
	}
	if v.start <= a {
		return true
	}
	start := a.Down()
	if start < hintMin {
		return false
	}
	if prev := as.vmas.prev(v.start); prev != nil && prev.is(vmAccess) && start < prev.end+stackGap && prev.flags&vmGrowsDown == 0 {
		return false
	}
	as.adopt(v) // whatever the access comes to
	if uint64(v.end-start) > limit {
		return false
	}
	v.off -= uint64(v.start - start)
	as.vmas.resize(v, mem.Range{Start: start, End: v.end})
	return true
}

// faulting is one fault under the read lock of its address space.
type faulting struct {
	as   *space
	v    *vma
	th   *Thread
	addr mem.Addr
	at   *attempt
}

// need is what a look at the page table has found: a verdict, or that the
// descriptor must be asked.
type need struct {
	wait    bool
	flags   uapi.FaultFlags
	verdict verdict
}

func ask(flags uapi.FaultFlags) need { return need{wait: true, flags: flags} }

// missing and minor return the flags of such a fault.
func (f *faulting) missing() need {
	if f.at.write {
		return ask(uapi.UFFD_PAGEFAULT_FLAG_WRITE)
	}
	return ask(0)
}

func (f *faulting) minor() need {
	n := f.missing()
	n.flags |= uapi.UFFD_PAGEFAULT_FLAG_MINOR
	return n
}

// anonymous handles a fault of memory without an object.
func (f *faulting) anonymous() need {
	s := f.as.pt.slot(f.addr, true)
	i := index(f.addr)
	own := f.at.write || f.as.k.noZero
	if f.v.is(vmMissing) && s.vacant(i) {
		if own {
			f.adopt()
		}
		return f.missing()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := f.stale(s, i)
	if e.present() {
		return f.present(s, i, e)
	}
	if e&ptePoison != 0 {
		return need{verdict: bus}
	}
	if own {
		f.adopt() // before anybody is asked for the page
	}
	if f.v.is(vmMissing) {
		return f.missing()
	}
	wp := e & pteWP
	if !own {
		s.set(i, f.entry(0, wp))
		return need{}
	}
	s.set(i, f.entry(f.as.k.mem.allocZero(), wp|pteWrite))
	return need{}
}

// stale returns entry i of s, of which it first takes a protection that the
// registration no longer has and that marks no page.
func (f *faulting) stale(s *slot, i int) pte {
	e := s.get(i)
	if e.marker() && e&ptePoison == 0 && e&pteWP != 0 && !f.v.is(vmWP) {
		e &^= pteWP
		s.set(i, e)
	}
	return e
}

// entry makes the entry of a page that the fault has brought in.
func (f *faulting) entry(fr frame, flags pte) pte {
	if !f.v.is(vmWrite) || flags&pteWP != 0 {
		flags &^= pteWrite
	}
	if !f.v.is(vmAccess) {
		flags |= pteNoAccess // who faults here does so by force
	}
	return makePTE(fr, flags)
}

// present handles a fault on a page that is there: most often a write to one
// that is protected, by a descriptor or because it is shared.
func (f *faulting) present(s *slot, i int, e pte) need {
	if e&pteNoAccess != 0 && !f.at.force {
		e &^= pteNoAccess
		s.set(i, e)
	}
	if !f.at.write || e.writable() {
		return need{}
	}
	if e&pteWP != 0 && f.guarded() {
		return ask(uapi.UFFD_PAGEFAULT_FLAG_WRITE | uapi.UFFD_PAGEFAULT_FLAG_WP)
	}
	if f.v.is(vmWP) {
		e &^= pteWP
	}
	m := &f.as.k.mem
	fr := e.frame()
	switch {
	case f.v.shared():
	case m.has(fr, frameExclusive):
	case fr != 0 && !m.has(fr, frameCached) && m.count(fr) == 1:
		m.set(fr, frameExclusive)
	default:
		f.adopt()
		own := m.duplicate(fr)
		m.put(fr)
		fr = own
		e &^= pteWP // the copy is another page; the page itself keeps it
	}
	if e &= 1<<pteShift - 1; f.v.is(vmWrite) {
		e |= pteWrite
	}
	s.set(i, makePTE(fr, e))
	return need{}
}

// guarded reports whether a write to a page with pteWP has to ask: not where
// the registration no longer has the mode, nor where the descriptor wants the
// protection to go by itself.
func (f *faulting) guarded() bool {
	return f.v.is(vmWP) && !f.v.uffd.has(uapi.UFFD_FEATURE_WP_ASYNC)
}

// object handles a fault of memory that maps one of small pages.
func (f *faulting) object() need {
	v, o := f.v, f.v.obj
	around := !f.at.write && !v.is(vmWP) && !v.is(vmMinor)
	if f.as.out != nil {
		near := mem.MakeRange(f.addr.Down(), mem.PageSize)
		if around {
			near.Start &^= aroundPages*mem.PageSize - 1
			near.End = near.Start + aroundPages*mem.PageSize
		}
		f.as.learnObject(v, near.Intersect(v.rng()))
	}
	s := f.as.pt.slot(f.addr, true)
	// The object comes before the slot in the order of locks: a page leaves
	// the object first and the page tables then, so that none that has left
	// is mapped again.
	o.mu.Lock()
	defer o.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	i := index(f.addr)
	e := f.stale(s, i)
	if e.present() {
		return f.present(s, i, e)
	}
	if e&ptePoison != 0 {
		return need{verdict: bus}
	}
	if around {
		f.around(s, i)
	}
	if f.at.write && !v.shared() {
		f.adopt() // before anybody is asked for the page, and be there none
	}
	n := v.offset(f.addr.Down()) >> mem.PageShift
	if n >= (o.size+mem.PageSize-1)>>mem.PageShift {
		return need{verdict: bus}
	}
	m := &f.as.k.mem
	fr, cached := o.lookupLocked(n)
	switch {
	case cached && v.is(vmMinor):
		return f.minor()
	case !cached && v.is(vmMissing):
		return f.missing()
	case !cached:
		fr = m.allocZero()
		o.storeLocked(n, fr)
	}
	wp := e & pteWP
	if v.shared() {
		m.get(fr)
		s.set(i, f.entry(fr, wp|pteWrite))
		return need{}
	}
	if f.at.write {
		s.set(i, f.entry(m.duplicate(fr), wp|pteWrite))
		return need{}
	}
	m.get(fr)
	s.set(i, f.entry(fr, wp))
	return need{}
}

// aroundPages is how many pages a read brings in that are there.
const aroundPages = 16

// around maps the pages near slot entry i that the object has already, as a
// kernel does when one of them is read. It locks nothing that object has not.
func (f *faulting) around(s *slot, i int) {
	const pages = aroundPages
	v, o, m := f.v, f.v.obj, &f.as.k.mem
	table := f.addr.Down() - mem.Addr(i)<<mem.PageShift // what entry 0 maps
	from := max(i&^(pages-1), 0)
	if table+mem.Addr(from)<<mem.PageShift < v.start {
		from = int((v.start - table) >> mem.PageShift)
	}
	for k := from; k < min(from+pages, slotPages) && table+mem.Addr(k)<<mem.PageShift < v.end; k++ {
		if k == i || s.get(k) != 0 {
			continue // the page itself is not among its neighbours
		}
		a := table + mem.Addr(k)<<mem.PageShift
		n := v.offset(a) >> mem.PageShift
		if n >= (o.size+mem.PageSize-1)>>mem.PageShift {
			return
		}
		if fr, cached := o.lookupLocked(n); cached {
			m.get(fr)
			flags := pte(0)
			if v.shared() {
				flags = pteWrite
			}
			s.set(k, f.entry(fr, flags))
		}
	}
}

// adopt notes that the VMA has pages of its own from now on. The slot's lock
// does not exclude a fault elsewhere in the VMA.
func (f *faulting) adopt() { f.as.adopt(f.v) }
