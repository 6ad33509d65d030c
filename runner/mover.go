// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/place"
	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager"
	"github.com/faultline-go/faultline/uffd"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// mover moves pages with UFFDIO_MOVE, which only a task of the same address
// space may call: the agent.
//
// W is a descriptor of its own, that has no event features and to which the
// windows are registered. So emptying one raises no REMOVE event, and moving into
// it is not held up by the events of the program's own memory. UFFDIO_MOVE needs
// its destination registered with the descriptor it is called on, and asks
// nothing of the source's registration (since Linux 6.8).
//
// W is opened with UFFD_USER_MODE_ONLY: should anything of ours ever read an
// empty slot, it gets EFAULT, rather than waiting for a handler that is not
// there.
type mover struct {
	agent   *inject.Agent
	pid     int      // of any process in the space, for reading
	w       int      // W's number in the agent
	keep    *uffd.FD // W once more: the agent's death must not unregister the windows
	windows [2]window
	half    int  // of each, that is next, or in use: 0 or 1
	broken  bool // the agent is gone
	cpu     int
	idle    bool      // the agent is in the idle class, as far as we know
	starved time.Time // when it was found to starve there
	ops     []inject.Op
	segs    []procmem.Segment
	owner   *engagement
	code    map[mem.Addr]struct{} // see likely
	wider   widening
}

// newMover sets up the window for data. The agent must be the space's.
func newMover(owner *engagement, agent *inject.Agent) (_ *mover, err error) {
	m := &mover{agent: agent, pid: agent.Tid(), owner: owner, w: -1, cpu: -1}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	w, err := create(agent, uintptr(unix.O_CLOEXEC|uapi.UFFD_USER_MODE_ONLY))
	if err != nil {
		return nil, fmt.Errorf("userfaultfd for the window: %w", err)
	}
	m.w = int(w)
	raw, err := agent.FD(m.w)
	if err != nil {
		return nil, err
	}
	m.keep = uffd.Take(raw)
	if err := m.keep.Handshake(0); err != nil {
		return nil, err
	}
	m.windows[data].Range, err = m.openWindow(unix.PROT_READ | unix.PROT_WRITE)
	return m, err
}

// Slots is pager.Mover's.
func (m *mover) Slots() int { return windowSlots }

// Move is pager.Mover's.
func (m *mover) Move(runs []pager.Run) error {
	m.place(runs)
	m.takeWider()
	for i := range runs {
		runs[i].Moved, runs[i].Errno, runs[i].Window = 0, 0, m.likely(runs[i].Src)
	}
	err := m.moveAll(runs)
	if err == nil && m.redirect(runs) {
		if err = m.moveAll(runs); err == nil {
			m.learn(runs)
		}
	}
	if err != nil {
		m.salvage(runs)
		return err
	}
	for i := range runs {
		if runs[i].Errno == syscall.EEXIST {
			m.recount(&runs[i])
		}
	}
	return nil
}

// moveAll moves what of runs has not failed yet.
func (m *mover) moveAll(runs []pager.Run) error {
	// A call that moved only some of its pages fails with EAGAIN, and says
	// why when it is called again for the rest.
	for again := true; again; {
		again = false
		for i := 0; i < len(runs); i += maxMoves {
			more, err := m.moveSome(runs[i:min(i+maxMoves, len(runs))])
			if err != nil {
				return err
			}
			again = again || more
		}
	}
	return nil
}

// recount finds out what has moved of a run whose place in the window was taken,
// as the kernel says. It was empty: Linux 6.18 moves pages at times that it does not
// count, and then finds them in its own way. That was seen in a program with
// MADV_COLD in another thread, so probably once a page was locked for a moment; the
// cause is not known for sure. Such pages were thought to be resident, and were lost.
func (m *mover) recount(r *pager.Run) {
	rest := mem.MakeRange(m.slot(r, r.Moved), uint64(r.Pages-r.Moved)*mem.PageSize)
	// An error means that the process has ended.
	_ = m.owner.present(rest, func(p mem.Range) {
		if p.Start == m.slot(r, r.Moved) { // they move in order
			r.Moved += p.Pages()
		}
	})
	r.Errno = syscall.EAGAIN // of what was not tried any more
	if r.Moved == r.Pages {
		r.Errno = 0
	}
}

// place puts the agent on the processor where it costs the least.
//
// Each call of UFFDIO_MOVE flushes what it has unmapped from the translation
// caches of all processors on which the program runs. From another one that
// takes an interrupt there for every call, which is dear in a virtual machine
// and hits the faulting thread. So scattered pages are moved on that thread's
// own processor, where the flush is local, in the idle class: to a thread that
// is woken the processor looks free, and it stays. Long runs are few calls:
// they are moved on the evictor's processor, and the program goes on meanwhile.
func (m *mover) place(runs []pager.Run) {
	pages := 0
	for _, r := range runs {
		pages += r.Pages
	}
	here := place.Current()
	cpu, idle := here, false
	if pages < scattered*len(runs) {
		if fault := m.owner.pg.CPU(); fault >= 0 {
			cpu, idle = fault, true
		}
	}
	if m.idle && !m.agent.Idle() {
		m.starved = time.Now() // the program, or others, keep it from running there
	}
	idle = idle && time.Since(m.starved) > starvedFor
	m.idle = m.agent.SetIdle(idle)
	m.agent.Watch(cpu != here)
	if cpu != m.cpu && m.agent.SetCPU(cpu) == nil {
		m.cpu = cpu
	}
}

// starvedFor is how long an agent that has starved in the idle class stays out
// of it.
const starvedFor = 100 * time.Millisecond

// scattered is the mean length of runs, in pages, below which a batch counts
// as scattered.
const scattered = 4

// maxMoves is the number of runs in one request.
const maxMoves = 256

func (m *mover) moveSome(runs []pager.Run) (again bool, err error) {
	m.dropOps()
	first := len(m.ops)
	args := m.agent.Data()
	for i := range runs {
		r := &runs[i]
		if r.Errno != 0 || r.Moved == r.Pages {
			continue
		}
		m.windows[r.Window].used = true
		putMove(args, i, uapi.Move{
			Dst: uint64(m.slot(r, r.Moved)),
			Src: uint64(r.Src) + uint64(r.Moved)*mem.PageSize,
			Len: uint64(r.Pages-r.Moved) * mem.PageSize,
		})
		m.ops = append(m.ops, inject.Op{NR: unix.SYS_IOCTL, Args: [6]uintptr{
			uintptr(m.w), uapi.UFFDIO_MOVE, uintptr(m.agent.DataAddr()) + uintptr(i*moveSize),
		}})
	}
	if err := m.agent.Run(m.ops); err != nil {
		return false, err
	}
	if err := m.dropped(); err != nil {
		return false, fmt.Errorf("emptying the window: %w", err) // locked since; nothing has moved
	}
	op := first
	for i := range runs {
		r := &runs[i]
		if r.Errno != 0 || r.Moved == r.Pages {
			continue
		}
		errno, _ := m.ops[op].Err().(syscall.Errno)
		op++
		moved := 0
		if n := getMoved(args, i); n > 0 {
			moved = int(n) / mem.PageSize
		}
		r.Moved += moved
		if errno == syscall.EAGAIN && moved > 0 {
			again = true
			continue
		}
		r.Errno = errno
	}
	return again, nil
}

// salvage finds out what has moved when the agent died before it could say: that
// half of the window was empty, so what is present there has.
func (m *mover) salvage(runs []pager.Run) {
	m.broken = true
	for i := range runs {
		r := &runs[i]
		r.Moved, r.Errno = 0, syscall.EAGAIN
		pm, err := procmem.OpenPagemap(m.owner.pid())
		if err != nil {
			continue // the process has ended, too
		}
		_ = pm.Present(mem.MakeRange(m.slot(r, 0), uint64(r.Pages)*mem.PageSize), func(p mem.Range) {
			if p.Start == m.slot(r, r.Moved) { // they move in order
				r.Moved += p.Pages()
			}
		})
		pm.Close()
	}
	m.pid = m.owner.pid()
}

// Read is pager.Mover's.
func (m *mover) Read(runs []pager.Run, buf []byte) error {
	m.segs = m.segs[:0]
	for i := range runs {
		if r := &runs[i]; r.Moved > 0 {
			m.segs = append(m.segs, procmem.Segment{
				Addr: m.slot(r, 0),
				Dst:  buf[r.Slot*mem.PageSize : (r.Slot+r.Moved)*mem.PageSize],
			})
		}
	}
	err := procmem.Read(m.pid, m.segs)
	if errors.Is(err, syscall.ESRCH) {
		// The agent is gone, and what it has moved is still there.
		m.broken, m.pid = true, m.owner.pid()
		err = procmem.Read(m.pid, m.segs)
	}
	return err
}

// Unshare is pager.Mover's. Needs Linux 5.14.
func (m *mover) Unshare(r mem.Range) error {
	_, err := m.agent.Call(unix.SYS_MADVISE, uintptr(r.Start), uintptr(r.Len()), unix.MADV_POPULATE_WRITE)
	return err
}

// Close is pager.Mover's. With a dead agent the windows stay mapped, empty,
// until the process ends: there is nobody to unmap them.
func (m *mover) Close() {
	if m.keep != nil {
		m.keep.Close()
	}
	m.stopWidening()
	for _, w := range m.windows {
		m.closeWindow(w.Range)
	}
	if m.w >= 0 {
		_, _ = m.agent.Call(unix.SYS_CLOSE, uintptr(m.w))
	}
}
