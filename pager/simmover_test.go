// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"context"
	"encoding/binary"
	"errors"
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
	"github.com/faultline-go/faultline/vkernel"
)

var _ Mover = (*simMover)(nil)

var errAgent = errors.New("the agent died")

// simMover moves pages of a sim by UFFDIO_MOVE, through a thread of the
// process and into a window with a descriptor of its own, as is done in a
// process of the kernel's.
type simMover struct {
	k      *sim
	th     *vkernel.Thread
	fd     int
	window mem.Range
	args   mem.Addr
	dirty  bool
}

const simSlots = 512

// newMover is SpaceConfig.Mover.
func (k *sim) newMover() (Mover, error) {
	k.at("mover")
	return k.mover(), nil
}

func (k *sim) mover() *simMover {
	m := &simMover{k: k, th: k.proc.NewThread()}
	m.window = mem.MakeRange(k.anon(m.th, simSlots), simSlots*mem.PageSize)
	m.args = k.anon(m.th, 1)
	k.must("dontfork", m.th.Madvise(m.window.Start, m.window.Len(), vkernel.MadvDontFork))
	k.must("dontfork", m.th.Madvise(m.args, mem.PageSize, vkernel.MadvDontFork))
	m.fd = k.open(m.th, 0)
	_, errno := k.ioctl(m.th, m.args, m.fd, uapi.UFFDIO_REGISTER,
		uint64(m.window.Start), m.window.Len(), uint64(uapi.UFFDIO_REGISTER_MODE_MISSING), 0)
	k.must("register", errno)
	k.mu.Lock()
	k.movers++
	k.world.args++
	k.mu.Unlock()
	return m
}

// anon maps n pages somewhere.
func (k *sim) anon(th *vkernel.Thread, n int) mem.Addr {
	a, errno := th.Mmap(0, uint64(n)*mem.PageSize, vkernel.ProtRead|vkernel.ProtWrite,
		vkernel.MapPrivate|vkernel.MapAnonymous, -1, 0)
	k.must("mmap", errno)
	return a
}

// open returns a descriptor that has shaken hands.
func (k *sim) open(th *vkernel.Thread, features uapi.Features) int {
	fd, errno := th.Userfaultfd(vkernel.ONonblock | vkernel.OCloexec)
	k.must("userfaultfd", errno)
	args := k.anon(th, 1)
	_, errno = k.ioctl(th, args, fd, uapi.UFFDIO_API, uapi.UFFD_API, uint64(features), 0)
	k.must("handshake", errno)
	k.must("munmap", th.Munmap(args, mem.PageSize))
	return fd
}

// ioctl makes a request whose argument is words, and returns what they are
// then.
func (k *sim) ioctl(th *vkernel.Thread, args mem.Addr, fd int, request uint32, words ...uint64) ([]uint64, syscall.Errno) {
	b := make([]byte, 0, 8*5)
	for _, w := range words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	if err := th.Store(context.Background(), args, b); err != nil {
		return words, vkernel.EFAULT // the process has ended
	}
	_, errno := th.Ioctl(fd, request, args)
	if err := th.Load(context.Background(), args, b); err != nil {
		return words, vkernel.EFAULT
	}
	for i := range words {
		words[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return words, errno
}

func (m *simMover) Slots() int { return simSlots }

func (m *simMover) slot(i int) mem.Addr { return m.window.Start + mem.Addr(i*mem.PageSize) }

func (m *simMover) Move(runs []Run) error {
	m.k.at("move")
	m.k.mu.Lock()
	later := m.k.later
	m.k.mu.Unlock()
	if later {
		for i := range runs {
			runs[i].Moved, runs[i].Errno = 0, syscall.EAGAIN
		}
		return nil
	}
	m.Flush()
	for i := range runs {
		runs[i].Moved, runs[i].Errno = 0, syscall.EBUSY
	}
	for i := range runs {
		if err := m.move(&runs[i]); err != nil {
			return err
		}
	}
	m.k.at("moved")
	return nil
}

// move moves one run, or what of it an agent that dies has time for.
func (m *simMover) move(r *Run) error {
	for r.Moved < r.Pages {
		n := r.Pages - r.Moved
		m.k.mu.Lock()
		left := m.k.moveDies
		m.k.mu.Unlock()
		if left > 0 {
			n = min(n, left)
		}
		done := mem.Addr(r.Moved * mem.PageSize)
		words, errno := m.k.ioctl(m.th, m.args, m.fd, uapi.UFFDIO_MOVE,
			uint64(m.slot(r.Slot)+done), uint64(r.Src+done), uint64(n)*mem.PageSize, 0, 0)
		moved := max(0, int(int64(words[4]))/mem.PageSize)
		r.Moved += moved
		if left > 0 {
			m.k.mu.Lock()
			m.k.moveDies -= moved
			m.k.mu.Unlock()
			if moved == left {
				return errAgent
			}
		}
		if errno == vkernel.EEXIST {
			m.k.tb.Errorf("slots of %+v are not empty", *r)
		}
		// EAGAIN is a page that could not move behind some that could. It is
		// asked again for its errno, which is the same number on all systems.
		if errno != 0 && (errno != vkernel.EAGAIN || moved == 0) {
			r.Errno = errno
			return nil
		}
	}
	r.Errno = 0
	return nil
}

func (m *simMover) Read(runs []Run, buf []byte) error {
	m.k.at("read")
	m.k.mu.Lock()
	err := m.k.readErr
	m.k.mu.Unlock()
	if err != nil {
		return err
	}
	for _, r := range runs {
		if r.Moved == 0 {
			continue
		}
		dst := buf[r.Slot*mem.PageSize : (r.Slot+r.Moved)*mem.PageSize]
		if n, errno := m.th.PtracePeek(m.k.proc, m.slot(r.Slot), dst); n < len(dst) {
			return errno
		}
	}
	return nil
}

func (m *simMover) Drop() { m.dirty = true }

func (m *simMover) Flush() {
	if m.dirty {
		m.k.must("dontneed", m.th.Madvise(m.window.Start, m.window.Len(), vkernel.MadvDontNeed))
		m.dirty = false
	}
}

func (m *simMover) Unshare(r mem.Range) error {
	m.k.at("unshare")
	if errno := m.th.Madvise(r.Start, r.Len(), vkernel.MadvPopulateWrite); errno != 0 {
		return errno
	}
	return nil
}

func (m *simMover) Close() {
	_ = m.th.Munmap(m.window.Start, m.window.Len()) // fails if the process has ended
	_ = m.th.Munmap(m.args, mem.PageSize)
	_ = m.th.Close(m.fd)
	m.k.mu.Lock()
	m.k.world.args--
	m.k.mu.Unlock()
}
