// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
)

// ground is what the collector of a trace asks of us. Its calls begin where a
// filter's report is looked at, and end where the thread is let go with the
// result.
type ground struct{ p *Provider }

// Userfaultfd implements [collect.Ground].
func (g ground) Userfaultfd(tid, fd int) bool {
	f := g.file(tid, fd)
	return f != nil && !f.device
}

// Device implements [collect.Ground].
func (g ground) Device(tid, fd int) bool {
	f := g.file(tid, fd)
	return f != nil && f.device
}

// file is ask, without asking about what the thread that begins a call has.
func (g ground) file(tid, fd int) *file {
	if th := g.p.beginning; th != nil && th.Tid() == tid {
		return g.p.identify(th.Process(), fd)
	}
	return g.p.ask(tid, fd)
}

// Same implements [collect.Ground].
func (g ground) Same(tid, fd, tid2, fd2 int) (bool, error) {
	a, b := g.p.ask(tid, fd), g.p.ask(tid2, fd2)
	if a == nil || b == nil {
		return false, unix.EBADF
	}
	return a == b, nil
}

// Read implements [collect.Ground]. A page that is missing has no permissions.
func (g ground) Read(th *tracee.Thread, a uint64, b []byte) int {
	n, _ := inject.ReadMemory(th.Tid(), mem.Addr(a), b) // an error is told by the number
	return n
}

// Passing implements [collect.Ground]: see send.
func (g ground) Passing(*tracee.Thread) {}

// begins tells of a call that a thread is about to make. It reports whether the
// end of that must be told, too.
func (p *Provider) begins(th *tracee.Thread, c tracee.Call) bool {
	if p.trace == nil {
		return false
	}
	p.beginning = th
	seen := p.trace.Enter(th, c)
	p.beginning = nil
	return seen
}

// ends tells that the call of a thread has ended with ret, a value or a negated
// errno, before the thread goes on.
func (p *Provider) ends(th *tracee.Thread, ret int64) {
	if p.trace == nil {
		return
	}
	const mostErrno = 4095
	var errno syscall.Errno
	if ret < 0 && ret >= -mostErrno {
		errno = syscall.Errno(-ret)
	}
	p.trace.Exit(th, ret, errno)
}

// goesOn tells of the end of a call at whose exit t is, and reports whether it
// is yet to be made by the thread itself and its end must be seen.
func (t *task) goesOn() bool {
	if t.p.trace == nil || !t.p.trace.Inside(t.th) {
		return false
	}
	if !t.atExit {
		return true
	}
	t.p.trace.Exit(t.th, int64(t.call.Ret), t.call.Errno)
	return false
}
