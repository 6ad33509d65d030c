// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"encoding/binary"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/uffd/uapi"
)

func addr(a uintptr) mem.Addr { return mem.Addr(a) }

// jobFor returns what is to be done about a call that a filter reports, nil to
// let it go.
func (p *Provider) jobFor(th *tracee.Thread, c tracee.Call) func(*task, tracee.Call) {
	pr := th.Process()
	switch c.Nr {
	case unix.SYS_READ, unix.SYS_PREAD64, unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_IOCTL:
		if job := p.procJob(pr, c); job != nil {
			return job
		}
	}
	switch c.Nr {
	case unix.SYS_IOCTL:
		if f := p.identify(pr, int(int32(c.Args[0]))); f != nil {
			return func(t *task, c tracee.Call) { t.ioctl(f, c) }
		}
	case unix.SYS_READ, unix.SYS_READV, unix.SYS_PREADV2:
		if c.Nr == unix.SYS_PREADV2 && c.Args[3] != ^uintptr(0) {
			return nil // at a position, which a pipe has no more than our descriptor
		}
		if f := p.identify(pr, int(int32(c.Args[0]))); f != nil {
			return func(t *task, c tracee.Call) { t.read(f, c) }
		}
	case unix.SYS_RECVMSG, unix.SYS_RECVMMSG, unix.SYS_PIDFD_GETFD, unix.SYS_DUP, unix.SYS_DUP3:
		if c.Nr == unix.SYS_DUP3 {
			p.keepReaders()
			p.filters[pr].forget(int(int32(c.Args[1])))
		}
		return (*task).receive
	case unix.SYS_LSEEK:
		if f := p.identify(pr, int(int32(c.Args[0]))); f != nil && !f.device {
			return (*task).lseek
		}
	case unix.SYS_FCNTL:
		if f := p.identify(pr, int(int32(c.Args[0]))); f != nil {
			return func(t *task, c tracee.Call) { t.fcntl(f, c) }
		}
	case unix.SYS_CLOSE:
		p.keepReaders()
		p.filters[pr].forget(int(int32(c.Args[0])))
		return nil
	case unix.SYS_CLOSE_RANGE, unix.SYS_UNSHARE:
		p.keepReaders()
		p.filters[pr].unshare()
		return nil
	case unix.SYS_EPOLL_CTL:
		if f := p.identify(pr, int(int32(c.Args[2]))); f != nil {
			return func(t *task, c tracee.Call) { t.epollCtl(f, c) }
		}
		return nil
	case unix.SYS_SENDMSG, unix.SYS_SENDMMSG:
		return (*task).send
	case unix.SYS_MMAP:
		if f := p.filters[pr]; f != nil && c.Args[3]&unix.MAP_TYPE == unix.MAP_DROPPABLE {
			f.droppable = true
		}
	case unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV:
		return (*task).remote
	case unix.SYS_READLINKAT:
		return func(t *task, c tracee.Call) { t.readlink(c, 1, 2) }
	case unix.SYS_RT_SIGACTION:
		if p.spaces[th.Process().Space()] != nil {
			return func(t *task, c tracee.Call) { t.sigaction(c.Args[1]) }
		}
	}
	for _, o := range openCalls {
		if c.Nr == o.nr {
			return func(t *task, c tracee.Call) { t.open(c, o) }
		}
	}
	for _, nr := range readlinks {
		if c.Nr == nr {
			return func(t *task, c tracee.Call) { t.readlink(c, 0, 1) }
		}
	}
	for _, nr := range dup2 {
		if c.Nr == nr {
			p.keepReaders()
			p.filters[pr].forget(int(int32(c.Args[1])))
			return (*task).receive
		}
	}
	if slices.Contains(epollWaits, c.Nr) {
		if f := p.filters[pr]; f != nil && len(f.epolls[int(int32(c.Args[0]))]) != 0 {
			return (*task).epollWait
		}
	}
	for _, nr := range pollCalls {
		if c.Nr == nr {
			return (*task).poll
		}
	}
	if c.Nr == unix.SYS_FALLOCATE || c.Nr == unix.SYS_FTRUNCATE {
		return (*task).resize
	}
	sp := p.spaces[th.Process().Space()]
	if sp == nil || len(sp.guarded) == 0 {
		return nil
	}
	if slices.Contains(forkCalls, c.Nr) {
		return (*task).fork
	}
	if job := memoryCalls[c.Nr]; job != nil {
		return func(t *task, c tracee.Call) { t.change(func() { job(t, c) }) }
	}
	return (*task).use
}

// ioctl makes a request of a descriptor.
func (t *task) ioctl(f *file, c tracee.Call) {
	req, arg := uint32(c.Args[1]), addr(c.Args[2])
	switch req {
	case fionbio:
		t.setNonblock(f, c)
		return
	case fioclex, fionclex, fioqsize, figetbsz:
		t.resume(0) // the same for every file
		return
	}
	if f.device {
		if req != uapi.USERFAULTFD_IOC_NEW {
			t.skip(negated(unix.EINVAL))
			return
		}
		t.skip(t.create(int(int32(c.Args[2]))))
		return
	}
	if req == uapi.UFFDIO_REGISTER {
		t.p.reap() // another descriptor may have had the memory
	}
	h := t.sp.handle(f)
	if h < 0 {
		t.skip(negated(unix.EMFILE))
		return
	}
	if !t.prepare(f, req, arg) {
		return
	}
	t.sp.cur = t
	var errno syscall.Errno
	t.as(waitCall, func() { _, errno = t.v.Ioctl(h, req, arg) })
	t.sp.cache = nil
	if t.gone {
		return
	}
	t.changed(f, req)
	if !t.gone {
		t.skip(negated(errno))
	}
}

// word returns a word of the argument as it was before the call.
func (t *task) word(i int) uint64 { return binary.LittleEndian.Uint64(t.args[8*i:]) }

// span returns the range that begins with word i and has the length of word n,
// none where a request for it is refused for its form.
func (t *task) span(i, n int) mem.Range {
	start, size := t.word(i), t.word(n)
	if start > 1<<56 || size > 1<<56 || !mem.Addr(start|size).Aligned() {
		return mem.Range{}
	}
	return mem.MakeRange(mem.Addr(start), size)
}

// prepare brings the mirror up to date for what a request is about to look at.
// It reports whether the thread is still there.
func (t *task) prepare(f *file, req uint32, arg mem.Addr) bool {
	clear(t.args[:])
	n := int(req >> 16 & 0x3fff)
	if n > len(t.args) {
		return true
	}
	if err := f.owner.open(); err != nil {
		if f.owner.ts.Pid() == 0 {
			return true // the process is gone, and the mirror knows
		}
		t.p.fatal("look into the program", err)
		return false
	}
	if t.sp.v.Watches(arg) {
		// It is read first.
		if t.bring(arg, false); t.gone {
			return false
		}
		if t.bring(arg, true); t.gone {
			return false
		}
	}
	t.sp.cacheAt, t.sp.cache = arg, t.args[:t.sp.Load(arg, t.args[:n])]
	switch req {
	case uapi.UFFDIO_REGISTER, uapi.UFFDIO_UNREGISTER:
		f.owner.reflect(t.span(0, 1))
	case uapi.UFFDIO_MOVE:
		t.sp.reflect(t.span(1, 2))
		t.sp.complete(t.span(0, 2))
	case uapi.UFFDIO_WRITEPROTECT:
		f.owner.complete(t.span(0, 1))
	}
	return true
}

// complete makes the mirror know of memory in r that is not registered, where a
// request tells that from none.
func (sp *space) complete(r mem.Range) {
	if !slices.ContainsFunc(sp.guarded, func(g mem.Range) bool { return g.Covers(r) }) {
		sp.reflect(r)
	}
}

// changed carries out in the process what a request has decided.
func (t *task) changed(f *file, req uint32) {
	sp := f.owner
	switch req {
	case uapi.UFFDIO_REGISTER:
		// Even one that has failed in the middle.
		t.registered(sp, t.span(0, 1))
	case uapi.UFFDIO_UNREGISTER:
		sp.follow()
	case uapi.UFFDIO_COPY:
		sp.apply(t.span(0, 2))
	case uapi.UFFDIO_MOVE:
		sp.apply(t.span(0, 2))
		for _, r := range t.sp.moved {
			t.sp.returned(r)
		}
		t.sp.moved = t.sp.moved[:0]
	case uapi.UFFDIO_ZEROPAGE, uapi.UFFDIO_CONTINUE, uapi.UFFDIO_POISON, uapi.UFFDIO_WRITEPROTECT:
		sp.apply(t.span(0, 1))
	}
}

func (t *task) registered(sp *space, r mem.Range) {
	sp.follow()
	if !sp.relax(r) || !sp.mirrorShared(r) {
		return
	}
	for _, g := range sp.guarded {
		if part := g.Intersect(r); !part.Empty() {
			t.guard(sp, part)
		}
	}
	sp.apply(r)
}

// returned gives the source of a move its permissions back.
func (sp *space) returned(r mem.Range) {
	sp.ops = sp.ops[:0]
	sp.v.Protection(r, sp.want)
	for _, part := range mem.Subtract([]mem.Range{r}, sp.guarded) {
		sp.prot.forget(part)
	}
	if len(sp.ops) != 0 {
		sp.do("give permissions back", sp.ops)
	}
}
