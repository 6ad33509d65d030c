// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// windowSlots is the size of one half of a mover's window in pages: two of the
// pager's batches, since pages that had to be unshared come on top of one.
const windowSlots = 512

const windowSize = 2 * windowSlots * mem.PageSize

// window is memory in the program into which pages move on their way out. Pages
// move only between mappings with the same permissions (EINVAL, Linux 6.18), and
// so a mover may have two: one for data, and one for memory that can be executed
// as well, of which just-in-time compilers have much and most programs none.
//
// It has two halves, which take turns. The one into which pages move was emptied
// before, and it is known that it was: should the agent die in the midst of a
// request, what is there has moved. The other is emptied first in that request.
type window struct {
	mem.Range      // empty if there is none
	used      bool // something may have moved into the half that is in use
	dirty     bool // the other half is to be emptied with the next request
}

// Windows of a mover.
const (
	data = 0
	code = 1
)

// openWindow makes a window, empty, registered to W and kept from children, who must
// not carry copies of pages that are on their way.
//
// No scan may run until it is known as ours: it would take the new mapping for the
// program's and register it with the program's descriptor, and W be refused (EBUSY).
//
// A program may have all that is mapped locked and populated, mlockall(2). A window
// that is locked cannot be emptied.
func (m *mover) openWindow(prot uintptr) (_ mem.Range, err error) {
	m.owner.scanMu.Lock()
	defer m.owner.scanMu.Unlock()
	at, err := m.agent.Call(unix.SYS_MMAP, inject.Hint(), windowSize, prot,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE, ^uintptr(0), 0)
	if err != nil {
		return mem.Range{}, fmt.Errorf("mapping the window: %w", err)
	}
	r := mem.MakeRange(mem.Addr(at), windowSize)
	m.owner.addPrivate(r)
	defer func() {
		if err != nil {
			m.closeWindow(r)
		}
	}()
	if _, err := m.agent.Call(unix.SYS_MUNLOCK, at, windowSize); err != nil {
		return mem.Range{}, fmt.Errorf("unlocking the window: %w", err)
	}
	for _, advice := range []uintptr{unix.MADV_DONTNEED, unix.MADV_DONTFORK} {
		if _, err := m.agent.Call(unix.SYS_MADVISE, at, windowSize, advice); err != nil {
			return mem.Range{}, fmt.Errorf("preparing the window: %w", err)
		}
	}
	if _, errno := m.keep.Register(r, uapi.UFFDIO_REGISTER_MODE_MISSING); errno != 0 {
		return mem.Range{}, fmt.Errorf("registering the window: %w", errno)
	}
	return r, nil
}

func (m *mover) closeWindow(r mem.Range) {
	if r.Empty() {
		return
	}
	if _, err := m.agent.Call(unix.SYS_MUNMAP, uintptr(r.Start), uintptr(r.Len())); err == nil {
		m.owner.removePrivate(r)
	}
}

// slot returns the address for page i of a run, in the half that is in use.
func (m *mover) slot(r *pager.Run, i int) mem.Addr {
	return m.windows[r.Window].Start + mem.Addr((m.half*windowSlots+r.Slot+i)*mem.PageSize)
}

// Drop is pager.Mover's.
func (m *mover) Drop() {
	m.half = 1 - m.half
	for k := range m.windows {
		w := &m.windows[k]
		w.dirty, w.used = w.dirty || w.used, false
	}
}

// Flush is pager.Mover's.
func (m *mover) Flush() {
	if m.broken {
		return
	}
	if m.dropOps(); len(m.ops) > 0 && m.agent.Run(m.ops) == nil {
		_ = m.dropped() // what fails here fails at the next Move as well
	}
}

// dropOps begins a request with what empties the halves that are not in use.
func (m *mover) dropOps() {
	m.ops = m.ops[:0]
	for _, w := range m.windows {
		if w.dirty {
			other := w.Start + mem.Addr((1-m.half)*windowSlots*mem.PageSize)
			m.ops = append(m.ops, inject.Op{NR: unix.SYS_MADVISE, StopOnError: true,
				Args: [6]uintptr{uintptr(other), windowSlots * mem.PageSize, unix.MADV_DONTNEED}})
		}
	}
}

// dropped looks at what became of that.
func (m *mover) dropped() error {
	n := 0
	for k := range m.windows {
		w := &m.windows[k]
		if !w.dirty {
			continue
		}
		if err := m.ops[n].Err(); err != nil {
			return err
		}
		w.dirty = false
		n++
	}
	return nil
}

// What of the program's memory can be executed is not followed, but found out where
// pages do not move.

const (
	// codeGrain is the size of blocks of memory of which a mover remembers that
	// they go through the window for code.
	codeGrain = 2 << 20
	mostCode  = 1 << 14 // blocks, 32 GiB; then it begins anew
)

// likely returns the window that what is at a went through the last time.
func (m *mover) likely(a mem.Addr) int {
	if _, ok := m.code[a&^(codeGrain-1)]; ok {
		return code
	}
	return data
}

// redirect makes what did not fit into one window try the other one, and reports
// whether there is anything to try.
func (m *mover) redirect(runs []pager.Run) (any bool) {
	for i := range runs {
		r := &runs[i]
		if r.Errno != syscall.EINVAL || r.Moved > 0 {
			continue
		}
		if m.windows[1-r.Window].Empty() {
			m.widen(r.Src)
			continue
		}
		r.Window, r.Errno, any = 1-r.Window, 0, true
	}
	return any
}

// learn remembers where what was redirected did fit.
func (m *mover) learn(runs []pager.Run) {
	for i := range runs {
		r := &runs[i]
		switch {
		case r.Errno == syscall.EINVAL && r.Moved == 0 || r.Window == m.likely(r.Src):
		case r.Window == data:
			delete(m.code, r.Src&^(codeGrain-1))
		default:
			if m.code == nil || len(m.code) >= mostCode {
				m.code = make(map[mem.Addr]struct{})
			}
			m.code[r.Src&^(codeGrain-1)] = struct{}{}
		}
	}
}

// widening is how the window for code comes to be, on the side: to make one waits
// for scanMu, whose holder may wait for the batch that asks for it.
type widening struct {
	until time.Time // no other try before

	mu     sync.Mutex
	busy   bool      // one is being made, or cannot be; protected by mu, as what follows
	made   mem.Range // and not taken yet
	closed bool
}

// widenEvery is the least time between two tries: not everything that does not move
// can be executed.
const widenEvery = time.Second

// widen begins to make the window for code, if what is at a can be executed.
func (m *mover) widen(a mem.Addr) {
	w := &m.wider
	if now := time.Now(); now.Before(w.until) {
		return
	} else {
		w.until = now.Add(widenEvery)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy || !m.owner.beginMaking() {
		return
	}
	w.busy = true
	go func() {
		defer m.owner.making.Done()
		var made mem.Range
		vmas, err := procmem.Maps(m.owner.pid())
		i := slices.IndexFunc(vmas, func(v procmem.VMA) bool { return v.Contains(a) })
		if err == nil && i >= 0 && vmas[i].Write && vmas[i].Exec {
			made, err = m.openWindow(unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		switch {
		case w.closed:
			m.closeWindow(made)
		case err == nil:
			w.made, w.busy = made, false
		case !gone(err):
			m.owner.r.log.Warn("memory that can be executed stays resident", "pid", m.owner.pid(), "err", err)
		}
	}()
}

// takeWider puts a new window to use.
func (m *mover) takeWider() {
	w := &m.wider
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.made.Empty() {
		m.windows[code].Range, w.made = w.made, mem.Range{}
	}
}

// stopWidening leaves a window that is under way, or not in use yet, to be closed.
func (m *mover) stopWidening() {
	w := &m.wider
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	m.closeWindow(w.made)
}
