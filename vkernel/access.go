// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"context"
	"encoding/binary"
	"sync"
	"syscall"

	"github.com/faultline-go/faultline/mem"
)

// operation is what an access does with the bytes of one page.
type operation struct {
	write    bool
	probe    bool // nothing: the page is only to be there
	force    bool // whatever the protection
	swap     bool // compare and swap of the 8 bytes of buf with old and new
	swapped  bool
	old, new uint64
}

// apply does op on the bytes of a page.
func (op *operation) apply(page, buf []byte) {
	switch {
	case op.swap:
		now := binary.LittleEndian.Uint64(page)
		binary.LittleEndian.PutUint64(buf, now)
		if op.swapped = now == op.old; op.swapped {
			binary.LittleEndian.PutUint64(page, op.new)
		}
	case op.write:
		copy(page, buf)
	default:
		copy(buf, page)
	}
}

// touch does op at a if the page table allows that without a fault, and
// reports whether it did. The bytes of buf lie in one page.
func (as *space) touch(a mem.Addr, buf []byte, op *operation) bool {
	s := as.pt.slot(a, false)
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	huge := s.huge != 0
	e := s.huge
	if !huge {
		e = s.get(index(a))
	}
	if !as.allows(e, huge, op) {
		return false
	}
	if len(buf) == 0 {
		return true // it was only asked, perhaps of a mirror, which has no content
	}
	var page []byte
	var mu *sync.Mutex
	if huge {
		h := as.k.mem.huge.page(e.frame())
		page, mu = h.data[a&(HugePageSize-1):], &h.mu
	} else {
		p, lock := as.k.mem.mapped(e.frame())
		page, mu = p[a&(mem.PageSize-1):], lock
	}
	if mu != nil {
		mu.Lock()
		defer mu.Unlock()
	}
	op.apply(page[:len(buf)], buf)
	return true
}

// vacant reports whether nothing is known of the page at a, for who would have
// to take a lock to find out more.
func (as *space) vacant(a mem.Addr) bool {
	s := as.pt.slot(a, false)
	return s == nil || s.vacant(index(a))
}

// allows reports whether op on a page with entry e needs no fault.
func (as *space) allows(e pte, huge bool, op *operation) bool {
	switch {
	case !op.force:
		return e.readable() && (!op.write || e.writable())
	case !e.present():
		return false
	case !op.write || e&pteWrite != 0:
		return true
	case e&pteWP != 0:
		return false
	}
	// A page of the process's own can be written by who may do that at all,
	// and is not made writable for others.
	if huge {
		return as.k.mem.huge.page(e.frame()).word.Load()&frameExclusive != 0
	}
	return as.k.mem.has(e.frame(), frameExclusive)
}

// access does op on buf at a, faulting as often as it takes. It returns the
// number of bytes before the one that could not be had, and why.
func (th *Thread) access(a mem.Addr, buf []byte, op *operation, at *attempt) (int, verdict) {
	if at.as.out != nil {
		return th.outside(a, buf, op, at)
	}
	done := 0
	for done < len(buf) {
		n := min(len(buf)-done, mem.PageSize-int(a&(mem.PageSize-1)))
		part := buf[done : done+n]
		at.tries = 0
		vacant := at.as.vacant(a)
		for vacant || !at.as.touch(a, part, op) {
			vacant = false
			if v := at.as.fault(th, a, at); v != retry {
				return done, v
			}
			if at.userMode() {
				th.handle()
			}
		}
		done += n
		a += mem.Addr(n)
	}
	return done, retry
}

// user does an access in user mode and turns its failure into an error.
func (th *Thread) user(ctx context.Context, a mem.Addr, buf []byte, op *operation) error {
	th.enter()
	defer th.leave()
	at := &th.at
	*at = attempt{as: th.p.as.Load(), write: op.write, mode: userMode}
	if ctx.Done() != nil {
		if err := ctx.Err(); err != nil {
			return err
		}
		at.ctx = ctx
		defer context.AfterFunc(ctx, th.poke)()
	}
	n, v := th.access(a, buf, op, at)
	switch v {
	case retry:
		return nil
	case cancelled:
		return ctx.Err()
	}
	return th.failure(v, a+mem.Addr(n))
}

// failure makes the error of an access in user mode that came to v at a.
func (th *Thread) failure(v verdict, a mem.Addr) error {
	at := &th.at
	if at.bad == 0 {
		at.bad = a
	}
	switch v {
	case retry:
		return nil // of a mirror
	case interrupted:
		return ErrInterrupted
	case segvMap:
		return &Signal{SIGSEGV, SegvMapErr, at.bad}
	case segvAcc:
		return &Signal{SIGSEGV, SegvAccErr, at.bad}
	case killed:
		return ErrKilled
	}
	return &Signal{SIGBUS, BusAdrErr, at.bad}
}

// Load reads memory as the program does. It blocks while a page is missing,
// until that is there, ctx ends or the process dies. Its error is a *Signal
// for what a program could not survive, ErrKilled, or that of ctx; bytes of
// pages before that may have been read.
func (th *Thread) Load(ctx context.Context, addr mem.Addr, dst []byte) error {
	return th.user(ctx, addr, dst, &operation{})
}

// Store writes memory as the program does. See [Thread.Load].
func (th *Thread) Store(ctx context.Context, addr mem.Addr, src []byte) error {
	return th.user(ctx, addr, src, &operation{write: true})
}

// CompareAndSwap replaces the 8 bytes at addr, little-endian, by new if they
// are old, in one step for all threads. A failed comparison needs write
// access too. An addr that is not a multiple of 8 is a SIGBUS. See
// [Thread.Load].
func (th *Thread) CompareAndSwap(ctx context.Context, addr mem.Addr, old, new uint64) (bool, error) {
	if addr%8 != 0 {
		return false, &Signal{SIGBUS, BusAdrErr, addr}
	}
	op := operation{write: true, swap: true, old: old, new: new}
	var now [8]byte
	err := th.user(ctx, addr, now[:], &op)
	return err == nil && op.swapped, err
}

// CopyIn reads the thread's memory as a system call does, such as a write(2)
// to a file: a fault on the way is one of kernel mode, which no signal ends but one
// that kills. It returns how many bytes it got. Its error is EFAULT where the next cannot
// be had, EINTR when the process dies, or that of ctx.
func (th *Thread) CopyIn(ctx context.Context, a mem.Addr, dst []byte) (n int, err error) {
	return th.system(ctx, a, dst, false)
}

// CopyOut writes the thread's memory like that, as a read(2) does.
func (th *Thread) CopyOut(ctx context.Context, a mem.Addr, src []byte) (n int, err error) {
	return th.system(ctx, a, src, true)
}

// system does an access in kernel mode that is a call of its own.
func (th *Thread) system(ctx context.Context, a mem.Addr, buf []byte, write bool) (int, error) {
	th.enter()
	defer th.leave()
	at := attempt{as: th.p.as.Load(), write: write, mode: kernelMode}
	if ctx.Done() != nil {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		at.ctx = ctx
		defer context.AfterFunc(ctx, th.poke)()
	}
	n, v := th.kernelAccess(at, a, buf)
	if v == cancelled {
		return n, ctx.Err()
	}
	if errno := v.errno(); errno != 0 {
		return n, errno
	}
	return n, nil
}

// copyIn reads the caller's memory in a system call. n counts the bytes
// before the failure.
func (th *Thread) copyIn(a mem.Addr, dst []byte) (n int, errno syscall.Errno) {
	n, v := th.kernelAccess(attempt{as: th.p.as.Load(), mode: kernelMode}, a, dst)
	return n, v.errno()
}

// copyOut writes the caller's memory in a system call.
func (th *Thread) copyOut(a mem.Addr, src []byte) (n int, errno syscall.Errno) {
	n, v := th.kernelAccess(attempt{as: th.p.as.Load(), mode: kernelMode, write: true}, a, src)
	return n, v.errno()
}

// kernelAccess does an access in any mode but the user's.
func (th *Thread) kernelAccess(at attempt, a mem.Addr, buf []byte) (int, verdict) {
	if len(buf) == 0 {
		return 0, retry
	}
	if end := a + mem.Addr(len(buf)); end < a || end > taskSize {
		return 0, segvMap
	}
	th.at = at
	return th.access(a, buf, &operation{write: at.write, force: at.force}, &th.at)
}

// errno is what a system call says of an access that came to v.
func (v verdict) errno() syscall.Errno {
	switch v {
	case retry:
		return 0
	case killed:
		return EINTR
	case noMemory:
		return ENOMEM
	}
	return EFAULT
}

// peek reads without faulting, and reports whether all was there.
func (as *space) peek(a mem.Addr, dst []byte) bool {
	op := operation{}
	for done := 0; done < len(dst); {
		n := min(len(dst)-done, mem.PageSize-int(a&(mem.PageSize-1)))
		if as.out != nil {
			if !as.open(a, &op) || as.out.Load(a, dst[done:done+n]) < n {
				return false
			}
			done += n
			a += mem.Addr(n)
			continue
		}
		if !as.touch(a, dst[done:done+n], &op) {
			return false
		}
		done += n
		a += mem.Addr(n)
	}
	return true
}

// ProcessVMRead reads another process's memory. It faults there like a
// thread of its own in a system call, and may so return a short count.
func (th *Thread) ProcessVMRead(p *Process, addr mem.Addr, dst []byte) (int, syscall.Errno) {
	return th.remote(p, addr, dst, false, pinMode)
}

// ProcessVMWrite writes another process's memory. See [Thread.ProcessVMRead].
func (th *Thread) ProcessVMWrite(p *Process, addr mem.Addr, src []byte) (int, syscall.Errno) {
	return th.remote(p, addr, src, true, pinMode)
}

// PtracePeek reads another process's memory as PTRACE_PEEKDATA and
// /proc/PID/mem do: without regard to its protection, and never waiting. A
// page that would have to be waited for is EIO, and nobody hears of it.
func (th *Thread) PtracePeek(p *Process, addr mem.Addr, dst []byte) (int, syscall.Errno) {
	n, errno := th.remote(p, addr, dst, false, ptraceMode)
	if errno == EFAULT {
		errno = EIO
	}
	return n, errno
}

func (th *Thread) remote(p *Process, addr mem.Addr, buf []byte, write bool, mode accessMode) (int, syscall.Errno) {
	th.enter()
	defer th.leave()
	as := p.as.Load()
	if p.Dead() || !as.use() {
		return 0, ESRCH
	}
	defer as.leave()
	n, v := th.kernelAccess(attempt{as: as, write: write, mode: mode, force: mode == ptraceMode}, addr, buf)
	if n > 0 && mode == pinMode {
		return n, 0
	}
	return n, v.errno()
}
