// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/procmem"
)

// action is the program's handler of SIGSEGV. A thread that blocks the signal
// and faults loses the handler for all threads, since the kernel forces the
// signal upon it before we see that; so it is remembered, and set again.
type action struct {
	known bool
	bytes [32]byte // struct sigaction of the kernel
	on    bool     // there is a handler
}

// learnAction reads the program's handler of SIGSEGV.
func (t *task) learnAction(s *inject.Session) error {
	sp := t.sp
	if sp.action.known {
		return nil
	}
	at := sp.agent.DataAddr()
	if _, err := s.Syscall(unix.SYS_RT_SIGACTION, uintptr(unix.SIGSEGV), 0, uintptr(at), 8); err != nil {
		return err
	}
	sp.action.set(sp.agent.Data())
	return nil
}

func (a *action) set(b []byte) {
	copy(a.bytes[:], b)
	a.known = true
	// SIG_DFL and SIG_IGN are 0 and 1.
	a.on = a.bytes[0] > 1
	for _, x := range a.bytes[1:8] {
		a.on = a.on || x != 0
	}
}

// sigaction follows a change of the handler. The call is made by the thread
// itself.
func (t *task) sigaction(new uintptr) {
	var b [32]byte
	read := new != 0 && t.sp.Load(addr(new), b[:]) == len(b)
	if t.run() && t.call.Errno == 0 && read {
		t.sp.action.set(b[:])
	}
	t.resume(0)
}

// restoreHandler undoes what the fault of a thread that blocks SIGSEGV has done
// to the program's handler and to the thread's mask. It reports whether the
// thread is still there.
func (sp *space) restoreHandler(t *task) bool {
	if !sp.action.on || procmem.Catches(t.th.Tid(), int(unix.SIGSEGV)) {
		return true
	}
	ok := t.session("set a handler again", func(s *inject.Session) error {
		copy(sp.agent.Data(), sp.action.bytes[:])
		_, err := s.Syscall(unix.SYS_RT_SIGACTION, uintptr(unix.SIGSEGV), uintptr(sp.agent.DataAddr()), 0, 8)
		return err
	})
	if !ok {
		return false
	}
	return inject.Block(t.th.Tid(), unix.SIGSEGV) == nil
}
