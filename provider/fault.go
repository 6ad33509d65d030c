// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/procmem"
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
	if p.at.Read(th.Tid()) != nil {
		return sig
	}
	t := p.task(th)
	if sp.fenced(si.Addr) {
		return sig
	}
	if !sp.v.Watches(si.Addr) {
		if t.late(si.Addr) {
			return 0
		}
		return sig
	}
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
	var err error
	t.waited = false
	t.as(waitPage, func() { err = t.v.Touch(si.Addr, write) })
	if t.gone {
		return
	}
	var sig *vkernel.Signal
	switch {
	case err == nil:
		page := mem.MakeRange(si.Addr.Down(), mem.PageSize)
		t.sp.apply(page)
		if idle := !t.waited && len(t.sp.ops) == 0; !t.stuck(si.Addr, idle) {
			t.resume(0)
		}
	case errors.Is(err, vkernel.ErrInterrupted):
		t.resume(0) // it faults again when the handler has run
	case errors.As(err, &sig):
		t.signal(sig)
	}
}

// writes reports whether the access that faulted was a write. A page that can be
// read now need not have been there when the thread faulted: so that alone tells
// nothing, but that it faults there again and again does.
func (t *task) writes(a mem.Addr) bool {
	if t.decode(a) {
		return true
	}
	again := t.seen > 2 && a == t.seenAt && mem.Addr(t.at.Registers().PC) == t.seenPC
	return again && t.sp.prot.at(a)&unix.PROT_READ != 0
}

// mostFaults is how often a thread may fault at one place in a row without that
// there was anything to do about it.
const mostFaults = 10000

// stuck notes that a fault was resolved, or that there was nothing to resolve, and
// ends the program if that never helps.
func (t *task) stuck(a mem.Addr, idle bool) bool {
	pc := mem.Addr(t.at.Registers().PC)
	if !idle || a != t.seenAt || pc != t.seenPC {
		t.seenAt, t.seenPC, t.seen = a, pc, 0
		return false
	}
	switch t.seen++; {
	case t.seen == mostFaults:
		t.p.fatal("serve a fault", fmt.Errorf("the access to %#x by the instruction at %#x never succeeds", uint64(a), uint64(pc)))
		return true
	case t.seen > 16:
		// The page may have other permissions than we think.
		t.sp.prot.forget(mem.MakeRange(a.Down(), mem.PageSize))
	}
	return false
}

// mostLate bounds late, for instructions that insn does not know.
const mostLate = 100

// late reports whether a fault outside of registered memory is one that can be
// tried again: the memory was given up since the thread has faulted, and the
// kernel lets it be accessed now.
func (t *task) late(a mem.Addr) bool {
	pc := mem.Addr(t.p.at.Registers().PC)
	if a != t.lateAt || pc != t.latePC {
		t.lateAt, t.latePC, t.lates = a, pc, 0
	}
	if t.lates++; t.lates > mostLate {
		return false
	}
	vmas, err := procmem.Maps(t.sp.ts.Pid())
	if err != nil {
		return false // it is dying
	}
	i := slices.IndexFunc(vmas, func(v procmem.VMA) bool { return v.Contains(a) })
	switch {
	case i < 0:
		return false
	case pc <= a && a < pc+16: // the code itself
		return vmas[i].Exec
	}
	t.at = t.p.at
	if t.decode(a) {
		return vmas[i].Write
	}
	return vmas[i].Read
}

// signal gives the thread the signal that its access comes to.
func (t *task) signal(s *vkernel.Signal) {
	sig := syscall.Signal(s.Signo)
	if t.sp.managed != nil && !t.frame() {
		return
	}
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
