// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd"
	"github.com/faultline-go/faultline/uffd/uapi"
)

const (
	ahead    = 4               // pages that one fault may bring in
	patience = 5 * time.Second // how long a fault may be put off
)

// page is what the manager knows of one page of the object.
type page struct {
	addr    mem.Addr // where it is now; 0 if it is unmapped
	dropped bool     // it reads as zeros, since the program gave it back
}

// manager serves the faults of one descriptor. One goroutine uses it, so
// that nothing in it needs a lock.
type manager struct {
	fd     *uffd.FD
	pages  []page
	msgs   []uapi.Msg
	parked []mem.Addr // faults that were read and not served yet
	buf    []byte     // what is copied from; never memory that is served

	faults, raced, putOff, events int
}

func newManager(fd *uffd.FD, object mem.Range) *manager {
	m := &manager{fd: fd, msgs: make([]uapi.Msg, 16), buf: make([]byte, 0, ahead*mem.PageSize)}
	for a := object.Start; a < object.End; a += mem.PageSize {
		m.pages = append(m.pages, page{addr: a})
	}
	return m
}

// run serves until stopped, a descriptor, is readable or has no writer. An
// error means that a thread may be left asleep.
func (m *manager) run(stopped int) error {
	var since time.Time // when the first of what is parked was put off
	for {
		timeout := time.Duration(-1)
		if len(m.parked) > 0 {
			timeout = time.Millisecond // message or no message
		}
		ready, errno := m.fd.Wait(stopped, timeout)
		if errno != 0 {
			return fmt.Errorf("wait for faults: %w", errno)
		}
		if !ready && len(m.parked) == 0 {
			return nil // it was stopped
		}
		// All there is, before anything is served: faults come out before
		// events, also before older ones.
		if err := m.drain(); err != nil {
			return err
		}
		if err := m.servePending(); err != nil {
			return err
		}
		switch {
		case len(m.parked) == 0:
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > patience:
			return fmt.Errorf("fault at %v: the address space has been changing for %v", m.parked[0], patience)
		}
	}
}

// drain reads all messages, applies the events and parks the faults.
func (m *manager) drain() error {
	for {
		n, errno := m.fd.Read(m.msgs)
		if errno == syscall.EAGAIN {
			return nil
		}
		if errno != 0 {
			return fmt.Errorf("read faults: %w", errno)
		}
		for _, msg := range m.msgs[:n] {
			switch msg.Event {
			case uapi.UFFD_EVENT_PAGEFAULT:
				addr, _, _ := msg.Fault()
				m.parked = append(m.parked, addr.Down())
			case uapi.UFFD_EVENT_REMOVE:
				m.events++
				m.each(msg.Range(), func(p *page) { p.dropped = true })
			case uapi.UFFD_EVENT_UNMAP:
				m.events++
				m.each(msg.Range(), func(p *page) { p.addr = 0 })
			default:
				return fmt.Errorf("%v was not asked for", msg.Typed())
			}
		}
	}
}

// each calls f for the pages of the object that are in r.
func (m *manager) each(r mem.Range, f func(*page)) {
	for i := range m.pages {
		if p := &m.pages[i]; p.addr != 0 && r.Contains(p.addr) {
			f(p)
		}
	}
}

// servePending serves what is parked, and keeps what cannot be served yet.
func (m *manager) servePending() error {
	kept := m.parked[:0]
	for _, addr := range m.parked {
		done, err := m.serve(addr)
		if err != nil {
			return err
		}
		if done {
			m.faults++
		} else {
			m.putOff++
			kept = append(kept, addr)
		}
	}
	m.parked = kept
	return nil
}

// serve brings in the page at addr and some that follow. It returns false if
// that must wait until an event has been read.
func (m *manager) serve(addr mem.Addr) (bool, error) {
	first, end := m.span(addr)
	if first == end {
		// The page went away after its fault was sent. The thread tries
		// again, and gets what is right for memory that is not ours.
		return true, m.wake(addr)
	}
	for first < end {
		at := m.pages[first].addr
		n, errno := m.install(first, end)
		first += n / mem.PageSize // these are in, and their threads awake
		switch uffd.OutcomeOf(errno) {
		case uffd.Done:
		case uffd.Deferred:
			if n == 0 {
				return false, nil
			}
			// It stopped half way: go on, and see why.
		case uffd.Raced:
			// Nothing was installed, so that nobody was woken.
			m.raced++
			if err := m.wake(at); err != nil {
				return false, err
			}
			first++
		case uffd.Changed:
			// Not one registered mapping any more. One page of it may be.
			if end-first == 1 {
				return true, m.wake(at)
			}
			end = first + 1
		case uffd.Gone:
			return true, nil
		default:
			return false, uffd.Check("install", mem.MakeRange(at, mem.PageSize), n, errno)
		}
	}
	return true, nil
}

// span returns the page at addr and up to three of those that follow it both
// in the object and in memory, all dropped or none.
func (m *manager) span(addr mem.Addr) (first, end int) {
	first = slices.IndexFunc(m.pages, func(p page) bool { return p.addr == addr })
	if first < 0 {
		return 0, 0
	}
	next := m.pages[first]
	for end = first; end < len(m.pages) && end < first+ahead && m.pages[end] == next; end++ {
		next.addr += mem.PageSize
	}
	return first, end
}

// install resolves the pages from first to end, which follow one another. It
// returns how many bytes of them are in.
func (m *manager) install(first, end int) (int, syscall.Errno) {
	r := mem.MakeRange(m.pages[first].addr, uint64(end-first)*mem.PageSize)
	if m.pages[first].dropped {
		return m.fd.Zeropage(r, 0)
	}
	src := m.buf[:0]
	for i := first; i < end; i++ {
		src = append(src, bytes.Repeat([]byte{content(i)}, mem.PageSize)...)
	}
	return m.fd.Copy(r.Start, src, 0)
}

// wake lets the threads that sleep on a page look again.
func (m *manager) wake(addr mem.Addr) error {
	page := mem.MakeRange(addr, mem.PageSize)
	return uffd.Check("UFFDIO_WAKE", page, 0, m.fd.Wake(page))
}
