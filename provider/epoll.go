// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/bpf"
	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/tracee"
)

// item is what the kernel knows an interest by: the number says nothing once it is
// closed, and the file may have others.
type item struct {
	file *file
	fd   int
}

// interest is a descriptor of ours in an epoll(7), which the kernel knows as a pipe: that
// is never in the state of error in which a descriptor is that blocks.
type interest struct {
	events uint32
	data   [8]byte
	told   bool // of the error, where that is told once
}

// epollCtl has the kernel watch the pipe, and notes for what.
func (t *task) epollCtl(f *file, c tracee.Call) {
	f.edged = true
	f.waited()
	epoll, fd, op := int(int32(c.Args[0])), int(int32(c.Args[2])), int(int32(c.Args[1]))
	ev := make([]byte, epollEventSize)
	t.sp.Load(addr(c.Args[3]), ev)
	if !t.run() {
		return
	}
	k := t.p.filters[t.th.Process()]
	switch {
	case t.call.Errno != 0:
	case op == unix.EPOLL_CTL_DEL:
		delete(k.epolls[epoll], item{f, fd})
	default:
		t.watchWaits(k, epoll)
		k.epolls[epoll][item{f, fd}] = &interest{events: binary.LittleEndian.Uint32(ev), data: [8]byte(ev[epollEventSize-8:])}
	}
	t.resume(0)
}

// watchWaits sees who waits for an epoll from now on.
func (t *task) watchWaits(k *filters, epoll int) {
	if k.epolls[epoll] != nil {
		return
	}
	p := &program{}
	p.only(epollWaits, func() {
		p.Load(bpf.OffArg(0))
		p.RetIf(uint32(epoll), trace)
	})
	t.session("install a filter", func(s *inject.Session) error { return s.Install(p.end()) })
	if k.epolls == nil {
		k.epolls = make(map[int]map[item]*interest)
	}
	k.epolls[epoll] = make(map[item]*interest)
}

// epollWait tells of errors, without waiting, or has the kernel wait where there are
// none.
func (t *task) epollWait(c tracee.Call) {
	var bad []*interest
	most := int(int32(c.Args[2]))
	k := t.p.filters[t.th.Process()]
	items := k.epolls[int(int32(c.Args[0]))]
	for it, e := range items {
		switch {
		case it.file.closed || it.file.abandoned():
			delete(items, it) // the kernel forgets it with the last descriptor
		case e.told && e.events&(unix.EPOLLET|unix.EPOLLONESHOT) != 0:
		case len(bad) < most && t.sp.v.Blocking(t.sp.handle(it.file)):
			bad = append(bad, e)
		}
	}
	if len(bad) == 0 {
		t.use(c)
		return
	}
	ready := 0
	if most > len(bad) {
		if !t.instead(unix.SYS_EPOLL_PWAIT, c.Args[0], c.Args[1], uintptr(most-len(bad)), 0) {
			return
		}
		if t.call.Errno != 0 {
			t.restore(c, negated(t.call.Errno))
			return
		}
		ready = int(t.call.Ret)
	}
	for _, e := range bad {
		ev := make([]byte, epollEventSize)
		binary.LittleEndian.PutUint32(ev, unix.EPOLLERR)
		copy(ev[epollEventSize-8:], e.data[:])
		if t.sp.Store(addr(c.Args[1])+addr(uintptr(ready*epollEventSize)), ev) < len(ev) {
			break
		}
		e.told = true
		ready++
	}
	if most > len(bad) {
		t.restore(c, int64(ready))
		return
	}
	t.skip(int64(ready))
}
