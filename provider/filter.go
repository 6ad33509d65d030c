// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"maps"
	"slices"

	"golang.org/x/sys/unix"

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
}

// unshare makes nothing be remembered of descriptors.
func (f *filters) unshare() { f.shared, f.fds = true, nil }

func (f *filters) clone() *filters {
	return &filters{general: f.general, numbers: maps.Clone(f.numbers), windows: slices.Clone(f.windows),
		buffers: slices.Clone(f.buffers), shared: f.shared}
}

// Values that a filter's report carries are not used: the call itself tells.
const (
	trace = unix.SECCOMP_RET_TRACE | 0x0fa1
	trap  = unix.SECCOMP_RET_TRAP
	allow = unix.SECCOMP_RET_ALLOW
)

// bpf is a filter in the making. It is straight-line code: every check is a
// block that is jumped over.
type bpf []unix.SockFilter

func (b *bpf) emit(code uint16, k uint32) { *b = append(*b, unix.SockFilter{Code: code, K: k}) }

const (
	offNR   = 0
	offArch = 4
	offIP   = 8
	offArgs = 16
)

func (b *bpf) load(off uint32) { b.emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, off) }

// low and high load half of an argument.
func (b *bpf) low(arg int)  { b.load(offArgs + 8*uint32(arg)) }
func (b *bpf) high(arg int) { b.load(offArgs + 8*uint32(arg) + 4) }

func (b *bpf) ret(v uint32) { b.emit(unix.BPF_RET|unix.BPF_K, v) }

// ifTrue and ifFalse have body done if the comparison of what was loaded is so.
func (b *bpf) ifTrue(op uint16, k uint32, body func())  { b.block(op, k, 1, 0, body) }
func (b *bpf) ifFalse(op uint16, k uint32, body func()) { b.block(op, k, 0, 1, body) }

func (b *bpf) block(op uint16, k uint32, jt, jf uint8, body func()) {
	at := len(*b)
	*b = append(*b, unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: jt, Jf: jf, K: k})
	// A conditional jump reaches 255 instructions, this one any number.
	b.emit(unix.BPF_JMP|unix.BPF_JA, 0)
	body()
	(*b)[at+1].K = uint32(len(*b) - at - 2)
}

// calls adds body for system calls, at most 250 of them.
func (b *bpf) calls(nrs []uintptr, body func()) {
	b.load(offNR)
	for i, nr := range nrs {
		*b = append(*b, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(len(nrs) - i), K: uint32(nr)})
	}
	at := len(*b)
	b.emit(unix.BPF_JMP|unix.BPF_JA, 0)
	body()
	(*b)[at].K = uint32(len(*b) - at - 1)
}

// only is calls for what the filter looks at in no other place.
func (b *bpf) only(nrs []uintptr, body func()) {
	b.calls(nrs, func() {
		body()
		b.ret(allow)
	})
}

func (b *bpf) traceAll(nrs ...uintptr) { b.calls(nrs, func() { b.ret(trace) }) }

// slack is how far below a window a buffer may begin that is still looked at
// by its address alone.
const slack = 1 << 20

// within adds body for an address that may be in r, or for a buffer that may
// reach into it; n is the argument with its length, -1 if it is short.
func (b *bpf) within(arg, n int, r mem.Range, body func()) {
	first, last := r.Start-min(r.Start, slack), r.End-1
	b.high(arg)
	if first>>32 == last>>32 {
		b.ifTrue(unix.BPF_JEQ, uint32(first>>32), func() {
			b.low(arg)
			b.ifTrue(unix.BPF_JGE, uint32(first), func() {
				b.ifFalse(unix.BPF_JGT, uint32(last), body)
			})
		})
	} else {
		b.ifTrue(unix.BPF_JGE, uint32(first>>32), func() {
			b.ifFalse(unix.BPF_JGT, uint32(last>>32), body)
		})
	}
	if n < 0 {
		return
	}
	// A long buffer, whatever its address.
	b.high(n)
	b.ifTrue(unix.BPF_JGT, 0, body)
	b.low(n)
	b.ifTrue(unix.BPF_JGT, slack, body)
}

// ours lets the calls of our agents go.
func (b *bpf) ours() {
	home := inject.Home()
	b.load(offIP + 4)
	b.ifTrue(unix.BPF_JGE, uint32(home.Start>>32), func() {
		b.ifFalse(unix.BPF_JGT, uint32(home.End>>32), func() { b.ret(allow) })
	})
}

func (b *bpf) end() []unix.SockFilter {
	b.ret(allow)
	return *b
}

// firstFilter sees how a descriptor is made. The call itself is answered by a
// signal, since that outranks a filter of somebody else's which refuses it by
// an error; see seccomp(2).
//
// The device is opened for writing, or not at all by this way.
func firstFilter() []unix.SockFilter {
	b := &bpf{}
	b.load(offArch)
	b.ifFalse(unix.BPF_JEQ, auditArch, func() { b.ret(allow) })
	b.calls([]uintptr{unix.SYS_USERFAULTFD}, func() { b.ret(trap) })
	for _, c := range openCalls {
		b.calls([]uintptr{c.nr}, func() {
			b.low(c.flags)
			b.emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, unix.O_ACCMODE|unix.O_CREAT|unix.O_TRUNC|unix.O_APPEND)
			b.ifTrue(unix.BPF_JEQ, unix.O_RDWR, func() { b.ret(trace) })
			b.ifTrue(unix.BPF_JEQ, unix.O_WRONLY, func() { b.ret(trace) })
		})
	}
	return b.end()
}

// numberFilter sees what is done with a descriptor, and with descriptors in
// general if that is set. What programs call most is let go first. That a call
// is of another ABI is noticed when it is reported.
func numberFilter(fd int, general bool) []unix.SockFilter {
	b := &bpf{}
	report := func() { b.ret(trace) }
	is := func(arg int) {
		b.low(arg)
		b.ifTrue(unix.BPF_JEQ, uint32(fd), report)
	}
	b.only([]uintptr{unix.SYS_READ, unix.SYS_READV, unix.SYS_PREADV2, unix.SYS_DUP, unix.SYS_CLOSE}, func() { is(0) })
	b.only(slices.Concat([]uintptr{unix.SYS_DUP3}, dup2), func() { is(0); is(1) })
	b.only([]uintptr{unix.SYS_EPOLL_CTL}, func() { is(2) })
	b.only([]uintptr{unix.SYS_FCNTL}, func() {
		b.low(1)
		for _, cmd := range []uint32{unix.F_DUPFD, unix.F_DUPFD_CLOEXEC, unix.F_SETFL} {
			b.ifTrue(unix.BPF_JEQ, cmd, func() { is(0); b.ret(allow) })
		}
	})
	b.only([]uintptr{unix.SYS_IOCTL}, func() {
		b.low(1)
		b.ifTrue(unix.BPF_JEQ, fionbio, func() { is(0); b.ret(allow) })
		if general {
			b.emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0xff00)
			b.ifTrue(unix.BPF_JEQ, 0xaa00, report)
		}
	})
	if !general {
		return b.end()
	}
	b.only(slices.Concat(pollCalls, []uintptr{unix.SYS_SENDMSG, unix.SYS_SENDMMSG, unix.SYS_RECVMSG, unix.SYS_RECVMMSG, unix.SYS_PIDFD_GETFD,
		unix.SYS_FALLOCATE, unix.SYS_FTRUNCATE, unix.SYS_CLOSE_RANGE, unix.SYS_UNSHARE, unix.SYS_READLINKAT}), report)
	b.only(readlinks, report)
	for _, c := range openCalls {
		b.only([]uintptr{c.nr}, report)
	}
	b.only([]uintptr{unix.SYS_RT_SIGACTION}, func() {
		b.low(0)
		b.ifTrue(unix.BPF_JEQ, uint32(unix.SIGSEGV), report)
	})
	return b.end()
}

// windowFilter sees the calls that change memory in r, and with buffers set
// those that use it.
func windowFilter(r mem.Range, buffers bool) []unix.SockFilter {
	b := &bpf{}
	report := func() { b.ret(trace) }
	if buffers {
		b.uses(r)
	} else {
		b.ours()
	}
	b.only([]uintptr{unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_PKEY_MPROTECT, unix.SYS_MADVISE,
		unix.SYS_MLOCK, unix.SYS_MLOCK2}, func() { b.within(0, 1, r, report) })
	b.only([]uintptr{unix.SYS_MREMAP}, func() {
		b.within(0, 1, r, report)
		b.low(3)
		b.emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, unix.MREMAP_FIXED)
		b.ifTrue(unix.BPF_JEQ, unix.MREMAP_FIXED, func() { b.within(4, 2, r, report) })
	})
	b.only([]uintptr{unix.SYS_MMAP}, func() {
		b.low(3)
		b.emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, unix.MAP_FIXED)
		b.ifTrue(unix.BPF_JEQ, unix.MAP_FIXED, func() { b.within(0, 1, r, report) })
	})
	b.only([]uintptr{unix.SYS_BRK}, func() { b.within(0, -1, r, report) })
	return b.end()
}

// uses sees the calls whose buffers may lie in r. Calls with pointers in the
// same places share their checks.
func (b *bpf) uses(r mem.Range) {
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
		if len(args) == 0 || ownCalls[nr] {
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
			b.ours() // they read and write nothing
		}
		b.only(g.nrs, func() {
			for _, a := range g.args {
				b.within(a.Arg, a.LenArg, r, func() { b.ret(trace) })
			}
		})
	}
	b.traceAll(indirect...)
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
	unix.SYS_MREMAP: true, unix.SYS_MMAP: true, unix.SYS_BRK: true, unix.SYS_MLOCK: true, unix.SYS_MLOCK2: true,
}
