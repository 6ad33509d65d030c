// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/vkernel"
)

// segv decides about a SIGSEGV that is about to be delivered: one for memory
// that is registered is a page fault, and every other one is the program's.
func (p *Provider) segv(th *tracee.Thread, sig syscall.Signal) syscall.Signal {
	sp := p.spaces[th.Process().Space()]
	if sp == nil {
		return sig
	}
	si, err := inject.ReadSignal(th.Tid())
	if err != nil || si.Code <= 0 {
		return sig
	}
	p.reap()
	if !sp.v.Watches(si.Addr) && !sp.prot.known(si.Addr) {
		return sig
	}
	if p.at.Read(th.Tid()) != nil {
		return sig
	}
	t := p.task(th)
	t.start(func() { t.fault(si) })
	return 0
}

// fault waits until the page at which the thread has faulted can be accessed,
// and lets it try again.
func (t *task) fault(si inject.Signal) {
	if !t.sp.restoreHandler(t) {
		return
	}
	write := t.writes(si.Addr)
	if t.repeats(si.Addr) {
		return
	}
	var err error
	t.as(waitPage, func() { err = t.v.Touch(si.Addr, write) })
	if t.gone {
		return
	}
	var sig *vkernel.Signal
	switch {
	case err == nil:
		t.sp.apply(mem.MakeRange(si.Addr.Down(), mem.PageSize))
		t.resume(0)
	case errors.Is(err, vkernel.ErrInterrupted):
		t.resume(0) // it faults again when the handler has run
	case errors.As(err, &sig):
		t.signal(sig)
	}
}

// writes reports whether the access that faulted was a write.
func (t *task) writes(a mem.Addr) bool {
	if t.sp.prot.at(a)&unix.PROT_READ != 0 {
		return true // it could have read
	}
	return t.decode(a)
}

// mostFaults is how often a thread may fault at one place in a row, each time
// told that its page is there.
const mostFaults = 10000

// repeats notes a fault, and ends the program if nothing resolves it.
func (t *task) repeats(a mem.Addr) bool {
	r := t.at.Registers()
	if a != t.seenAt || mem.Addr(r.PC) != t.seenPC {
		t.seenAt, t.seenPC, t.seen = a, mem.Addr(r.PC), 0
		return false
	}
	switch t.seen++; {
	case t.seen == mostFaults:
		t.p.fatal("serve a fault", fmt.Errorf("the access to %#x by the instruction at %#x never succeeds", uint64(a), r.PC))
		return true
	case t.seen > 16:
		// The page may have other permissions than we think.
		t.sp.prot.forget(mem.MakeRange(a.Down(), mem.PageSize))
	}
	return false
}

// signal gives the thread the signal that its access comes to.
func (t *task) signal(s *vkernel.Signal) {
	sig := syscall.Signal(s.Signo)
	tid := t.th.Tid()
	blocked, err := inject.Blocked(tid, sig)
	if err == nil && blocked {
		// A signal for what a thread does itself cannot wait: the kernel
		// unblocks it, and it kills.
		t.unhandle(sig)
		err = inject.Unblock(tid, sig)
	}
	if err == nil {
		err = inject.WriteSignal(tid, inject.Signal{Signo: sig, Code: s.Code, Addr: s.Addr})
	}
	if err == nil {
		t.resume(sig)
	}
}

// unhandle sets the default action of a signal.
func (t *task) unhandle(sig syscall.Signal) {
	t.session("force a signal", func(s *inject.Session) error {
		at := t.sp.agent.DataAddr()
		clear(t.sp.agent.Data()[:64])
		_, err := s.Syscall(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(at), 0, 8)
		return err
	})
}

// known reports whether a is memory whose permissions we have set.
func (p *protections) known(a mem.Addr) bool { return p.at(a) != unknown }

// at returns the permissions of a, as they were set last.
func (p *protections) at(a mem.Addr) uint8 {
	c := p.chunks[a>>chunkShift]
	if c == nil {
		return unknown
	}
	return c.get(a)
}
