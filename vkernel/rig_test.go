// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"context"
	"encoding/binary"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

const page = mem.PageSize

// rig is a machine with one process, a descriptor and a page of scratch
// memory for arguments. Tests run in a bubble: what sleeps there is known to,
// and a test that leaves a goroutine behind fails.
type rig struct {
	t       *testing.T
	k       *Kernel
	p       *Process
	th      *Thread // the manager's; tests fault with others
	fd      int
	scratch mem.Addr
}

// inBubble runs fn with a machine of profile p and an open descriptor.
func inBubble(t *testing.T, p *Profile, fn func(r *rig), options ...Option) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, p, options...)
		defer r.p.Kill()
		fn(r)
	})
}

func newRig(t *testing.T, p *Profile, options ...Option) *rig {
	t.Helper()
	r := &rig{t: t, k: New(p, options...)}
	r.p = r.k.NewProcess(ProcessOptions{Privileged: true})
	r.th = r.p.NewThread()
	r.scratch = r.mmap(16 * page)
	var errno syscall.Errno
	r.fd, errno = r.th.Userfaultfd(ONonblock | OCloexec)
	r.must("userfaultfd", errno)
	return r
}

func (r *rig) must(what string, errno syscall.Errno) {
	r.t.Helper()
	r.want(what, errno, 0)
}

func (r *rig) want(what string, got, want syscall.Errno) {
	r.t.Helper()
	if got != want {
		r.t.Fatalf("%s: %s, want %s", what, ErrnoName(got), ErrnoName(want))
	}
}

// mmap maps private anonymous memory.
func (r *rig) mmap(n uint64) mem.Addr {
	r.t.Helper()
	a, errno := r.th.Mmap(0, n, ProtRead|ProtWrite, MapPrivate|MapAnonymous, -1, 0)
	r.must("mmap", errno)
	return a
}

// ioctl stores args, makes the request, and returns the words then.
func (r *rig) ioctl(fd int, request uint32, args ...uint64) ([]uint64, syscall.Errno) {
	r.t.Helper()
	return ioctlBy(r.t, r.th, r.scratch, fd, request, args...)
}

func ioctlBy(t *testing.T, th *Thread, scratch mem.Addr, fd int, request uint32, args ...uint64) ([]uint64, syscall.Errno) {
	t.Helper()
	var b []byte
	for _, v := range args {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	if err := th.Store(context.Background(), scratch, b); err != nil {
		t.Fatalf("argument: %v", err)
	}
	_, errno := th.Ioctl(fd, request, scratch)
	if err := th.Load(context.Background(), scratch, b); err != nil {
		t.Fatalf("argument: %v", err)
	}
	out := make([]uint64, len(args))
	for i := range out {
		out[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return out, errno
}

func (r *rig) api(features uapi.Features) {
	r.t.Helper()
	_, errno := r.ioctl(r.fd, uapi.UFFDIO_API, uapi.UFFD_API, uint64(features), 0)
	r.must("UFFDIO_API", errno)
}

func (r *rig) register(a mem.Addr, n uint64, mode uapi.RegisterMode) {
	r.t.Helper()
	_, errno := r.ioctl(r.fd, uapi.UFFDIO_REGISTER, uint64(a), n, uint64(mode), 0)
	r.must("UFFDIO_REGISTER", errno)
}

// area returns n bytes of registered memory behind a descriptor that has
// shaken hands.
func (r *rig) area(n uint64, mode uapi.RegisterMode, features uapi.Features) mem.Addr {
	r.t.Helper()
	r.api(features)
	a := r.mmap(n)
	r.register(a, n, mode)
	return a
}

// touch is an access that runs in a goroutine of its own.
type touch struct {
	th   *Thread
	done chan struct{}
	data byte
	err  error
}

// load starts a load of one byte by a new thread, and returns when it sleeps
// or has ended.
func (r *rig) load(a mem.Addr) *touch { return r.start(r.p, a, false) }

// store starts a store of 0x5a.
func (r *rig) store(a mem.Addr) *touch { return r.start(r.p, a, true) }

func (r *rig) start(p *Process, a mem.Addr, write bool) *touch {
	c := &touch{th: p.NewThread(), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		b := []byte{0x5a}
		if write {
			c.err = c.th.Store(context.Background(), a, b)
		} else {
			c.err = c.th.Load(context.Background(), a, b)
		}
		c.data = b[0]
	}()
	synctest.Wait()
	return c
}

// ended reports whether the access has.
func (c *touch) ended() bool {
	synctest.Wait()
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// blocked fails the test if the access is not asleep on its page.
func (r *rig) blocked(c *touch) {
	r.t.Helper()
	if c.ended() || c.th.State() != InFault {
		r.t.Fatalf("the access is not asleep: state %v, error %v", c.th.State(), c.err)
	}
}

// got fails the test unless the access has ended with data.
func (r *rig) got(c *touch, data byte) {
	r.t.Helper()
	if !c.ended() {
		r.t.Fatalf("the access sleeps: state %v", c.th.State())
	}
	if c.err != nil || c.data != data {
		r.t.Fatalf("the access gave %#x, %v, want %#x", c.data, c.err, data)
	}
}

// read reads up to max messages.
func (r *rig) read(max int) ([]uapi.Msg, syscall.Errno) {
	r.t.Helper()
	return readBy(r.t, r.th, r.scratch+8*page, r.fd, max)
}

func readBy(t *testing.T, th *Thread, buf mem.Addr, fd, max int) ([]uapi.Msg, syscall.Errno) {
	t.Helper()
	n, errno := th.Read(fd, buf, uint64(max*uapi.MsgSize))
	if errno != 0 {
		return nil, errno
	}
	b := make([]byte, n)
	if err := th.Load(context.Background(), buf, b); err != nil {
		t.Fatal(err)
	}
	var out []uapi.Msg
	for ; len(b) > 0; b = b[uapi.MsgSize:] {
		m, err := uapi.ParseMsg(b[:uapi.MsgSize])
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out, 0
}

// fault reads one message, which must be of a fault.
func (r *rig) fault() (mem.Addr, uapi.FaultFlags) {
	r.t.Helper()
	msgs, errno := r.read(1)
	r.must("read", errno)
	if msgs[0].Event != uapi.UFFD_EVENT_PAGEFAULT {
		r.t.Fatalf("read %v, want a fault", msgs[0].Typed())
	}
	a, flags, _ := msgs[0].Fault()
	return a, flags
}

// nothing fails the test if there is a message to read.
func (r *rig) nothing() {
	r.t.Helper()
	_, errno := r.read(1)
	r.want("read", errno, EAGAIN)
}

// copy installs a page of b by UFFDIO_COPY and returns the result word.
func (r *rig) copy(dst mem.Addr, n uint64, b byte, mode uapi.CopyMode) (int64, syscall.Errno) {
	r.t.Helper()
	src := r.mmap(n)
	data := make([]byte, n)
	for i := range data {
		data[i] = b
	}
	if err := r.th.Store(context.Background(), src, data); err != nil {
		r.t.Fatal(err)
	}
	w, errno := r.ioctl(r.fd, uapi.UFFDIO_COPY, uint64(dst), uint64(src), n, uint64(mode), 77)
	r.must("munmap", r.th.Munmap(src, n))
	return int64(w[4]), errno
}
