// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/place"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/uffd/uapi"
	"github.com/faultline-go/faultline/vkernel"
)

// Manager is a descriptor that our own process has for the memory of another one:
// a pager.Descriptor, with the way to take pages out besides. Its methods may be
// called from any goroutine; what they do is done on the tracer's thread, between
// two events. They return ESRCH when the tree is gone.
//
// Where it is served by Serve, that is done at the end of the event that has queued
// a message, without a change of thread.
type Manager struct {
	p    *Provider
	sp   *space
	d    *vkernel.Descriptor
	bell *place.Bell // for Interrupt
	turn func()      // see Serve; of the tracer's thread
}

// On runs f on the tracer's thread: see pager.SpaceConfig. What f lets happen is
// not served before it has returned.
func (m *Manager) On(f func()) bool {
	p := m.p
	return p.tracer.Do(func() {
		if !p.serving {
			p.serving = true
			defer func() {
				p.serving = false
				p.serve()
			}()
		}
		f()
	})
}

// Serve has turn called on the tracer's thread whenever there is something to read.
func (m *Manager) Serve(turn func()) { m.p.tracer.Do(func() { m.turn = turn }) }

// mostRounds bounds how long an event can take whose service makes others fault.
const mostRounds = 64

// serve has the messages read that are queued. What a turn does may end here too.
func (p *Provider) serve() {
	if p.serving {
		return
	}
	p.serving = true
	defer func() { p.serving = false }()
	for round := range mostRounds {
		again := false
		for _, sp := range p.spaces {
			m := sp.manager()
			switch {
			case m == nil || m.turn == nil || !m.d.Pending():
			case round == mostRounds-1:
				m.Interrupt()
			default:
				m.turn()
				again = true
			}
		}
		if !again {
			return
		}
	}
}

// manager returns the manager of a space that is managed, or nil.
func (sp *space) manager() *Manager {
	if sp.managed == nil {
		return nil
	}
	return sp.managed.manager
}

// on runs f on the tracer's thread and lets go on whom it has woken.
func (m *Manager) on(f func() (int, syscall.Errno)) (n int, errno syscall.Errno) {
	ok := m.p.tracer.Do(func() {
		if m.p.spaces[m.sp.ts] != m.sp {
			errno = unix.ESRCH
			return
		}
		n, errno = f()
		m.p.settle()
	})
	if !ok {
		return 0, unix.ESRCH
	}
	return n, errno
}

// Read is pager.Descriptor's. A descriptor whose space has ended has nothing to
// read.
func (m *Manager) Read(msgs []uapi.Msg) (n int, errno syscall.Errno) {
	if !m.d.Pending() {
		return 0, unix.EAGAIN
	}
	n, errno = m.on(func() (int, syscall.Errno) {
		n, errno := m.d.Read(msgs)
		for i := range msgs[:n] {
			if msgs[i].Event == uapi.UFFD_EVENT_FORK {
				m.p.unborn[int(msgs[i].ForkFD())] = m
			}
		}
		return n, errno
	})
	if errno == unix.ESRCH {
		errno = unix.EAGAIN
	}
	return n, errno
}

// Wait is pager.Descriptor's. It returns at an Interrupt only: messages are not
// waited for.
func (m *Manager) Wait(timeout time.Duration) (ready bool, errno syscall.Errno) {
	m.bell.Wait(timeout)
	return m.d.Pending(), 0
}

// Interrupt is pager.Descriptor's.
func (m *Manager) Interrupt() { m.bell.Ring() }

// Changing is pager.Descriptor's.
func (m *Manager) Changing() bool { return m.d.Changing() }

// Pending is pager.Descriptor's.
func (m *Manager) Pending() bool { return m.d.Pending() }

// Copy is pager.Descriptor's. Pages of zeros are not written: an absent page is
// one.
func (m *Manager) Copy(dst mem.Addr, src []byte, mode uapi.CopyMode) (done int, errno syscall.Errno) {
	return m.on(func() (int, syscall.Errno) {
		if m.sp.gate.busy() || m.d.Changing() {
			return 0, unix.EAGAIN
		}
		done := 0
		var errno syscall.Errno
		for done < len(src) && errno == 0 {
			n, zero := alike(src[done:])
			at := dst + mem.Addr(done)
			m.sp.unseal(mem.MakeRange(at, uint64(n)))
			if zero {
				n, errno = m.d.Zeropage(mem.MakeRange(at, uint64(n)), uapi.ZeropageMode(mode&uapi.UFFDIO_COPY_MODE_DONTWAKE))
			} else {
				n, errno = m.d.Copy(at, src[done:done+n], mode)
			}
			done += n
		}
		// All of it: what could not be filled is closed again.
		m.sp.apply(mem.MakeRange(dst, uint64(len(src))))
		if done > 0 && errno != 0 {
			errno = unix.EAGAIN // as the kernel says of a short copy
		}
		return done, errno
	})
}

// alike returns how many bytes from the start of b are pages of zeros, or are
// pages that are not.
func alike(b []byte) (n int, zero bool) {
	zero = bytes.Equal(b[:mem.PageSize], zeros[:])
	for n = mem.PageSize; n < len(b) && bytes.Equal(b[n:n+mem.PageSize], zeros[:]) == zero; n += mem.PageSize {
	}
	return n, zero
}

// Wake is pager.Descriptor's.
func (m *Manager) Wake(r mem.Range) syscall.Errno {
	_, errno := m.on(func() (int, syscall.Errno) { return 0, m.d.Wake(r) })
	return errno
}

// Poison is pager.Descriptor's.
func (m *Manager) Poison(r mem.Range, mode uapi.PoisonMode) (done int, errno syscall.Errno) {
	return m.on(func() (int, syscall.Errno) {
		if m.sp.gate.busy() {
			return 0, unix.EAGAIN
		}
		done, errno := m.d.Poison(r, mode)
		m.sp.apply(r)
		return done, errno
	})
}

// Register makes faults of r come here that find no page. While the space is being
// copied it waits. EPERM is memory that grows by being touched (MAP_GROWSDOWN),
// which the kernel must do. EINVAL is memory that is not private and anonymous, or is
// not any more: the program may have put other memory there since it was looked.
func (m *Manager) Register(r mem.Range) syscall.Errno {
	for {
		busy := false
		_, errno := m.on(func() (int, syscall.Errno) {
			if busy = m.sp.gate.busy(); busy {
				return 0, 0
			}
			if slices.Contains(m.sp.growing, r.End) {
				return 0, unix.EPERM
			}
			if !m.sp.reflect(r) {
				return 0, unix.EINVAL
			}
			errno := m.d.Register(r, uapi.UFFDIO_REGISTER_MODE_MISSING)
			m.sp.follow()
			m.sp.apply(r)
			return 0, errno
		})
		if !busy {
			return errno
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// Mapping returns the mapping at a, if it is registered.
func (m *Manager) Mapping(a mem.Addr) (r mem.Range, ok bool) {
	_, _ = m.on(func() (int, syscall.Errno) {
		r, ok = m.sp.v.Mapping(a)
		return 0, 0
	})
	return r, ok
}

// Guards calls f for the parts of r that the program has made guards, in order.
func (m *Manager) Guards(r mem.Range, f func(mem.Range)) {
	var parts []mem.Range // f may let threads go on that change them
	_, _ = m.on(func() (int, syscall.Errno) {
		if m.sp.managed == nil {
			return 0, 0
		}
		for _, g := range m.sp.managed.guards {
			if part := g.Intersect(r); !part.Empty() {
				parts = append(parts, part)
			}
		}
		return 0, 0
	})
	for _, part := range parts {
		f(part)
	}
}

// Wipe tells of memory that a forked child finds zeroed (MADV_WIPEONFORK) since before it
// was managed.
func (m *Manager) Wipe(r mem.Range) {
	_, _ = m.on(func() (int, syscall.Errno) {
		// What is not mapped any more needs nothing.
		return 0, m.sp.keeper.Madvise(r.Start, r.Len(), unix.MADV_WIPEONFORK)
	})
}

// Private returns the memory that is ours in the process.
func (m *Manager) Private() []mem.Range { return m.sp.agent.Ranges() }

// Close is pager.Descriptor's.
func (m *Manager) Close() error {
	var err error
	if !m.p.tracer.Do(func() {
		m.turn = nil
		err = m.d.Close()
		if m.p.spaces[m.sp.ts] == m.sp {
			m.sp.follow()
		}
		m.p.settle()
	}) {
		err = m.d.Close()
	}
	return err
}

// Taken is a run of pages to take out, and what became of it.
type Taken struct {
	From mem.Addr
	// To gets the content: whole pages, as many as are to be taken.
	To []byte
	// Pages is the number of pages that went, Errno why the next one did not: 0
	// if all did. EBUSY is a page that a system call is using, or that is locked;
	// EAGAIN is that nothing can go at this moment, as while a fork is under way.
	Pages int
	Errno syscall.Errno
}

// Take takes pages out of the process, run by run: no thread can see them any
// more before their content is read, and who touches one faults.
//
// An error is one of package tracee's or inject's, or an errno, and then nothing
// has been taken that is not said to be.
func (m *Manager) Take(runs []Taken) error {
	for i := range runs {
		runs[i].Pages, runs[i].Errno = 0, unix.EAGAIN
	}
	err := error(tracee.ErrGone)
	m.p.tracer.Do(func() {
		if m.p.spaces[m.sp.ts] == m.sp && m.sp.managed != nil {
			err = m.take(runs)
			m.p.settle()
		}
	})
	return err
}

func (m *Manager) take(runs []Taken) error {
	sp := m.sp
	if m.d.Changing() || sp.gate.busy() {
		return nil // what is queued may concern them
	}
	for _, parent := range m.p.unborn {
		if parent == m {
			return nil // the child has them too, and its table is still to be copied
		}
	}
	if !sp.sure() {
		return nil
	}
	sp.ops = sp.ops[:0]
	for i := range runs {
		r := &runs[i]
		r.Errno = unix.EBUSY
		all := mem.MakeRange(r.From, uint64(len(r.To)))
		free := sp.unpinned(all)
		n, errno := sp.v.Withdraw(free)
		switch r.Pages = n; {
		case errno != 0:
			r.Errno = errno
		case free.Len() == all.Len():
			r.Errno = 0
		}
		part := mem.MakeRange(r.From, uint64(n)*mem.PageSize)
		if !part.Empty() {
			sp.ops = append(sp.ops, inject.Op{NR: unix.SYS_MPROTECT,
				Args: [6]uintptr{uintptr(part.Start), uintptr(part.Len()), unix.PROT_NONE}})
		}
	}
	closed := sp.ops
	if len(closed) == 0 {
		return nil
	}
	if err := sp.agent.Run(closed); err != nil {
		return err // the process is gone, or its pages are where they were
	}
	// A mapping more for each run: the kernel has a bound on them
	// (vm.max_map_count). What could not be closed stays.
	var failed error
	var open []*Taken
	k := 0
	for i := range runs {
		r := &runs[i]
		if r.Pages == 0 {
			continue
		}
		err := closed[k].Err()
		k++
		part := mem.MakeRange(r.From, uint64(r.Pages)*mem.PageSize)
		if err == nil {
			sp.prot.set(part, unix.PROT_NONE)
			continue
		}
		if errno := syscall.Errno(0); !errors.As(err, &errno) || errno != unix.ENOMEM {
			failed = fmt.Errorf("close %v of pid %d: %w", part, sp.ts.Pid(), err)
		}
		sp.prot.forget(part) // some of it may be closed
		open = append(open, r)
	}
	for _, r := range open {
		sp.putBack(r)
	}
	// They are nobody's now.
	sp.ops = sp.ops[:0]
	first := make([]int, len(runs))
	for i := range runs {
		r := &runs[i]
		first[i] = len(sp.ops)
		if r.Pages == 0 {
			continue
		}
		n := r.Pages * mem.PageSize
		if got, err := unix.Pread(int(sp.mem.Fd()), r.To[:n], int64(r.From)); err != nil || got < n {
			failed = fmt.Errorf("read %v of pid %d: %d bytes came: %w", mem.MakeRange(r.From, uint64(n)), sp.ts.Pid(), max(got, 0), err)
			defer sp.putBack(r)
			continue
		}
		part := mem.MakeRange(r.From, uint64(n))
		if !sp.seals {
			sp.op(unix.SYS_MADVISE, part, unix.MADV_DONTNEED)
			continue
		}
		// A guard drops the page, too.
		sp.op(unix.SYS_MADVISE, part, unix.MADV_GUARD_INSTALL)
		sp.v.Allowed(part, func(of mem.Range, prot int) { sp.op(unix.SYS_MPROTECT, of, prot) })
	}
	if err := sp.agent.Run(sp.ops); err != nil {
		return err
	}
	for i := range runs {
		r := &runs[i]
		if first[i] == len(sp.ops) || i+1 < len(runs) && first[i] == first[i+1] {
			continue // not read
		}
		part := mem.MakeRange(r.From, uint64(r.Pages)*mem.PageSize)
		err := sp.ops[first[i]].Err()
		if err == nil && sp.seals {
			sp.prot.set(part, sealed)
		}
		if err == nil {
			continue
		}
		defer sp.putBack(r)
		// Locked memory keeps its pages.
		if errno := syscall.Errno(0); !errors.As(err, &errno) || errno != unix.EINVAL {
			failed = fmt.Errorf("drop %v of pid %d: %w", part, sp.ts.Pid(), err)
		}
	}
	return failed
}

// putBack makes the pages of a run present again, which have not been dropped.
func (sp *space) putBack(r *Taken) {
	part := mem.MakeRange(r.From, uint64(r.Pages)*mem.PageSize)
	for a := part.Start; a < part.End; a += mem.PageSize {
		sp.v.Restore(a)
	}
	r.Pages, r.Errno = 0, unix.EBUSY
	sp.apply(part)
}
