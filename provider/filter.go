// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/bpf"
	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/sysargs"
	"github.com/faultline-go/faultline/mem"
)

// Filters only ever stack up, and each costs a little at every call that it
// looks at. So there are three kinds, put on when they are needed:
//
//   - The first sees how a descriptor is made, and nothing else.
//   - One for each number under which a descriptor was ever known sees what is
//     done with that; with the first of them comes what concerns descriptors in
//     general.
//   - One for each window of addresses that was ever registered sees the calls
//     which change that memory, and those whose buffers lie there.
//
// What they report needlessly, since a number or an address is used for
// something else by now, is looked at and let go.

// filters is what a process has.
type filters struct {
	general bool
	numbers map[int]bool
	windows []mem.Range
	buffers []mem.Range // those of the windows that see buffers, too

	// fds are the descriptors that are known by number. It is kept right by
	// the number's filter, but not where another process, or a thread by
	// itself, may close them: where they are shared.
	fds    map[int]*file
	reused map[int]bool
	shared bool
	// proc are numbers under which files of /proc were opened that are watched,
	// and written those that are seen being written.
	proc, written map[int]bool
	// epolls are descriptors of ours by the number of the epoll(7) that they are in,
	// and their own.
	epolls map[int]map[item]*interest
	// droppable is set once such memory was mapped.
	droppable bool
}

// unshare makes nothing be remembered of descriptors.
func (f *filters) unshare() { f.shared, f.fds = true, nil }

func (f *filters) clone() *filters {
	return &filters{general: f.general, numbers: maps.Clone(f.numbers), windows: slices.Clone(f.windows),
		buffers: slices.Clone(f.buffers), shared: f.shared, proc: maps.Clone(f.proc), written: maps.Clone(f.written), droppable: f.droppable}
}

// Values that a filter's report carries are not used: the call itself tells.
const (
	trace = unix.SECCOMP_RET_TRACE | 0x0fa1
	trap  = unix.SECCOMP_RET_TRAP
	allow = unix.SECCOMP_RET_ALLOW
)

// program is a filter in the making.
type program struct{ bpf.Program }

// only adds body for system calls that the filter looks at in no other place.
func (p *program) only(nrs []uintptr, body func()) {
	p.IfCall(nrs, func() {
		body()
		p.Ret(allow)
	})
}

func (p *program) report() { p.Ret(trace) }

// end returns the filter, which lets go what was not looked at.
func (p *program) end() []unix.SockFilter {
	p.Ret(allow)
	return p.Link()
}

// slack is how far below a window a buffer may begin that is still looked at
// by its address alone.
const slack = 1 << 20

// within adds body for an address that may be in r, or for a buffer that may
// reach into it; n is the argument with its length, -1 if it is short.
func (p *program) within(arg, n int, r mem.Range, body func()) {
	first, last := r.Start-min(r.Start, slack), r.End-1
	p.Load(bpf.OffArgHigh(arg))
	if first>>32 == last>>32 {
		p.If(uint32(first>>32), func() {
			p.Load(bpf.OffArg(arg))
			p.IfAtLeast(uint32(first), func() {
				p.IfAtMost(uint32(last), body)
			})
		})
	} else {
		p.IfAtLeast(uint32(first>>32), func() {
			p.IfAtMost(uint32(last>>32), body)
		})
	}
	if n < 0 {
		return
	}
	// A long buffer, whatever its address.
	p.Load(bpf.OffArgHigh(n))
	p.IfMore(0, body)
	p.Load(bpf.OffArg(n))
	p.IfMore(slack, body)
}

// ours lets the calls of our agents go.
func (p *program) ours() {
	home := inject.Home()
	p.Load(bpf.OffPCHigh)
	p.IfAtLeast(uint32(home.Start>>32), func() {
		p.IfAtMost(uint32(home.End>>32), func() { p.Ret(allow) })
	})
}

// firstFilter sees how a descriptor is made, or taken, and who uses the memory of
// others. The call itself is answered by a
// signal, since that outranks a filter of somebody else's which refuses it by
// an error; see seccomp(2).
//
// The device is opened for writing, or not at all by this way.
func firstFilter() []unix.SockFilter {
	p := &program{}
	p.Load(bpf.OffArch)
	p.Unless(auditArch, func() { p.Ret(allow) })
	p.IfCall([]uintptr{unix.SYS_USERFAULTFD}, func() { p.Ret(trap) })
	p.IfCall([]uintptr{unix.SYS_PIDFD_GETFD, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV}, p.report)
	p.IfCall([]uintptr{unix.SYS_MMAP}, func() {
		p.Load(bpf.OffArg(3))
		p.And(unix.MAP_TYPE)
		p.If(unix.MAP_DROPPABLE, p.report)
	})
	for _, c := range openCalls {
		p.IfCall([]uintptr{c.nr}, func() {
			p.Load(bpf.OffArg(c.flags))
			p.And(unix.O_ACCMODE | unix.O_CREAT | unix.O_TRUNC | unix.O_APPEND)
			p.If(unix.O_RDWR, p.report)
			p.If(unix.O_WRONLY, p.report)
		})
	}
	return p.end()
}

// numberFilter sees what is done with a descriptor, and with descriptors in
// general if that is set. What programs call most is let go first. That a call
// is of another ABI is noticed when it is reported.
func numberFilter(fd int, general bool) []unix.SockFilter {
	p := &program{}
	is := func(arg int) {
		p.Load(bpf.OffArg(arg))
		p.RetIf(uint32(fd), trace)
	}
	p.only([]uintptr{unix.SYS_READ, unix.SYS_READV, unix.SYS_PREAD64, unix.SYS_PREADV, unix.SYS_PREADV2,
		unix.SYS_DUP, unix.SYS_CLOSE, unix.SYS_LSEEK}, func() { is(0) })
	p.only(slices.Concat([]uintptr{unix.SYS_DUP3}, dup2), func() { is(0); is(1) })
	p.only([]uintptr{unix.SYS_EPOLL_CTL}, func() { is(2) })
	p.only([]uintptr{unix.SYS_FCNTL}, func() {
		p.Load(bpf.OffArg(1))
		for _, cmd := range []uint32{unix.F_DUPFD, unix.F_DUPFD_CLOEXEC, unix.F_SETFL} {
			p.If(cmd, func() { is(0); p.Ret(allow) })
		}
	})
	p.only([]uintptr{unix.SYS_IOCTL}, func() {
		is(0)
		if general {
			p.Load(bpf.OffArg(1))
			p.And(0xff00)
			p.If(0xaa00, p.report)
		}
	})
	if !general {
		return p.end()
	}
	p.only(slices.Concat(pollCalls, []uintptr{unix.SYS_SENDMSG, unix.SYS_SENDMMSG, unix.SYS_RECVMSG, unix.SYS_RECVMMSG, unix.SYS_PIDFD_GETFD,
		unix.SYS_FALLOCATE, unix.SYS_FTRUNCATE, unix.SYS_CLOSE_RANGE, unix.SYS_UNSHARE, unix.SYS_READLINKAT}), p.report)
	p.only(readlinks, p.report)
	for _, c := range openCalls {
		p.only([]uintptr{c.nr}, p.report)
	}
	p.only([]uintptr{unix.SYS_RT_SIGACTION}, func() {
		p.Load(bpf.OffArg(0))
		p.If(uint32(unix.SIGSEGV), p.report)
	})
	return p.end()
}

// windowFilter sees the calls that change memory in r, and with buffers set
// those that use it.
func windowFilter(r mem.Range, buffers bool) []unix.SockFilter {
	p := &program{}
	if buffers {
		p.uses(r)
	} else {
		p.ours()
	}
	p.only([]uintptr{unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_PKEY_MPROTECT, unix.SYS_MADVISE,
		unix.SYS_MLOCK, unix.SYS_MLOCK2, unix.SYS_MUNLOCK}, func() { p.within(0, 1, r, p.report) })
	p.only([]uintptr{unix.SYS_MREMAP}, func() {
		p.within(0, 1, r, p.report)
		p.Load(bpf.OffArg(3))
		p.And(unix.MREMAP_FIXED)
		p.If(unix.MREMAP_FIXED, func() { p.within(4, 2, r, p.report) })
	})
	p.only([]uintptr{unix.SYS_MMAP}, func() {
		p.Load(bpf.OffArg(3))
		p.And(unix.MAP_FIXED)
		p.If(unix.MAP_FIXED, func() { p.within(0, 1, r, p.report) })
	})
	p.only([]uintptr{unix.SYS_BRK}, func() { p.within(0, -1, r, p.report) })
	p.only([]uintptr{unix.SYS_MINCORE}, func() {
		p.within(0, 1, r, p.report)
		p.within(2, -1, r, p.report)
	})
	p.IfCall([]uintptr{unix.SYS_MLOCKALL, unix.SYS_MUNLOCKALL}, p.report)
	p.forks()
	return p.end()
}

// forks sees the calls that copy the address space, or start a thread in it: they use
// memory, too.
func (p *program) forks() { p.IfCall(forkCalls, p.report) }

// uses sees the calls whose buffers may lie in r. Calls with pointers in the
// same places share their checks.
func (p *program) uses(r mem.Range) {
	type group struct {
		nrs  []uintptr
		args []sysargs.Pointer
	}
	var groups []*group
	var indirect []uintptr
	for _, nr := range sysargs.Calls() {
		if sysargs.Indirect(nr) {
			indirect = append(indirect, nr)
			continue
		}
		args := sysargs.Pointers(nr)
		for i := range args {
			args[i].Size = 0 // the slack has room for it
		}
		if len(args) == 0 || ownCalls[nr] || slices.Contains(forkCalls, nr) {
			continue
		}
		i := slices.IndexFunc(groups, func(g *group) bool { return slices.Equal(g.args, args) })
		if i < 0 {
			i = len(groups)
			groups = append(groups, &group{args: args})
		}
		groups[i].nrs = append(groups[i].nrs, nr)
	}
	// What programs call most comes first.
	slices.SortStableFunc(groups, func(x, y *group) int { return hot(y.nrs) - hot(x.nrs) })
	for i, g := range groups {
		if i == 1 {
			p.ours() // they read and write nothing
		}
		p.only(g.nrs, func() {
			for _, a := range g.args {
				p.within(a.Arg, a.LenArg, r, p.report)
			}
		})
	}
	p.IfCall(indirect, p.report)
}

func hot(nrs []uintptr) (n int) {
	for _, nr := range []uintptr{unix.SYS_READ, unix.SYS_WRITE, unix.SYS_FUTEX} {
		if slices.Contains(nrs, nr) {
			n++
		}
	}
	return n
}

// ownCalls change memory and are seen as such.
var ownCalls = map[uintptr]bool{
	unix.SYS_MUNMAP: true, unix.SYS_MPROTECT: true, unix.SYS_PKEY_MPROTECT: true, unix.SYS_MADVISE: true,
	unix.SYS_MREMAP: true, unix.SYS_MMAP: true, unix.SYS_BRK: true, unix.SYS_MLOCK: true, unix.SYS_MLOCK2: true, unix.SYS_MINCORE: true,
	unix.SYS_MUNLOCK: true,
}
