// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"context"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

const (
	missing = uapi.UFFDIO_REGISTER_MODE_MISSING
	wp      = uapi.UFFDIO_REGISTER_MODE_WP
	minor   = uapi.UFFDIO_REGISTER_MODE_MINOR
)

// call runs a system call in a goroutine of its own.
type call struct {
	done  chan struct{}
	errno syscall.Errno
}

func start(fn func() syscall.Errno) *call {
	c := &call{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.errno = fn()
	}()
	synctest.Wait()
	return c
}

func (c *call) ended() bool {
	synctest.Wait()
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (r *rig) sleeps(c *call, th *Thread, s State) {
	r.t.Helper()
	if c.ended() || th.State() != s {
		r.t.Fatalf("the call is not in state %v but %v, errno %s", s, th.State(), ErrnoName(c.errno))
	}
}

func (r *rig) ends(c *call, want syscall.Errno) {
	r.t.Helper()
	if !c.ended() {
		r.t.Fatal("the call sleeps on")
	}
	r.want("call", c.errno, want)
}

// event reads one message that must be ev.
func (r *rig) event(ev uapi.Event) {
	r.t.Helper()
	msgs, errno := r.read(1)
	r.must("read", errno)
	if got := msgs[0].Typed(); got != ev {
		r.t.Fatalf("read %v, want %v", got, ev)
	}
}

// TestRemoveEvent covers B.13, H2 and H6: the event comes before the pages
// go, fills give EAGAIN until its thread has gone on, and the page is missing
// then.
func TestRemoveEvent(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(4*page, missing, uapi.UFFD_FEATURE_EVENT_REMOVE)
		_, errno := r.copy(a, page, 1, 0)
		r.must("copy", errno)
		th := r.p.NewThread()
		c := start(func() syscall.Errno { return th.Madvise(a, 2*page, MadvDontNeed) })
		r.sleeps(c, th, InEvent)
		r.got(r.load(a), 1) // still there
		// B.10.1: before the argument is looked at, and the result word says it.
		for _, tc := range []struct {
			request uint32
			words   int
		}{{uapi.UFFDIO_COPY, 5}, {uapi.UFFDIO_ZEROPAGE, 4}, {uapi.UFFDIO_CONTINUE, 4}, {uapi.UFFDIO_POISON, 4}, {uapi.UFFDIO_MOVE, 5}} {
			w, errno := r.ioctl(r.fd, tc.request, make([]uint64, tc.words)...)
			r.want("fill", errno, EAGAIN)
			if w[tc.words-1] != negated(EAGAIN) {
				r.t.Errorf("request %#x: result %d", tc.request, int64(w[tc.words-1]))
			}
		}
		_, errno = r.ioctl(r.fd, uapi.UFFDIO_WRITEPROTECT, 0, 0, 0)
		r.want("writeprotect", errno, EAGAIN)
		r.register(a, 4*page, missing)
		_, errno = r.ioctl(r.fd, uapi.UFFDIO_WAKE, uint64(a), page)
		r.must("wake", errno)
		r.event(uapi.Remove{Range: mem.MakeRange(a, 2*page)})
		r.ends(c, 0)
		load := r.load(a)
		r.blocked(load)
		_, errno = r.copy(a, page, 2, 0)
		r.must("copy", errno)
		r.got(load, 2)
	})
}

// TestEventOrder covers B.11 and H5: a fault that came after an event is read
// before it.
func TestEventOrder(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(4*page, missing, uapi.UFFD_FEATURE_EVENT_REMOVE)
		th := r.p.NewThread()
		c := start(func() syscall.Errno { return th.Madvise(a, page, MadvDontNeed) })
		load := r.load(a + page)
		msgs, errno := r.read(8)
		r.must("read", errno)
		if len(msgs) != 2 || msgs[0].Event != uapi.UFFD_EVENT_PAGEFAULT || msgs[1].Event != uapi.UFFD_EVENT_REMOVE {
			r.t.Fatalf("read %v", msgs)
		}
		r.ends(c, 0)
		_, errno = r.copy(a+page, page, 3, 0)
		r.must("copy", errno)
		r.got(load, 3)
	})
}

// TestUnmapEvent covers B.13: one event a descriptor with the whole range,
// after the memory has gone.
func TestUnmapEvent(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		r.api(uapi.UFFD_FEATURE_EVENT_UNMAP)
		a := r.mmap(8 * page)
		r.register(a, page, missing)
		r.register(a+3*page, page, missing)
		th := r.p.NewThread()
		c := start(func() syscall.Errno { return th.Munmap(a, 6*page) })
		r.sleeps(c, th, InEvent)
		if err := r.th.Load(context.Background(), a+5*page, make([]byte, 1)); err == nil {
			r.t.Error("the memory is still there")
		}
		r.event(uapi.Unmap{Range: mem.MakeRange(a, 6*page)})
		r.ends(c, 0)
		r.nothing()
	})
}

// TestRemapEvent covers B.13: the new place is registered with the feature.
func TestRemapEvent(t *testing.T) {
	for _, feature := range []uapi.Features{0, uapi.UFFD_FEATURE_EVENT_REMAP, uapi.UFFD_FEATURE_EVENT_UNMAP} {
		inBubble(t, Linux618, func(r *rig) {
			a := r.area(4*page, missing, feature)
			_, errno := r.copy(a, page, 7, 0)
			r.must("copy", errno)
			to := r.mmap(16 * page)
			th := r.p.NewThread()
			c := start(func() syscall.Errno {
				_, errno := th.Mremap(a, 4*page, 4*page, MremapMayMove|MremapFixed, to)
				return errno
			})
			if feature == 0 {
				r.ends(c, 0)
			} else {
				r.sleeps(c, th, InEvent)
				r.got(r.load(to), 7) // moved already
			}
			switch feature {
			case uapi.UFFD_FEATURE_EVENT_REMAP:
				r.event(uapi.Remap{From: a, To: to, Len: 4 * page})
				r.ends(c, 0)
				load := r.load(to + page)
				r.blocked(load)
				_, errno := r.copy(to+page, page, 8, 0)
				r.must("copy", errno)
				r.got(load, 8)
				return
			case uapi.UFFD_FEATURE_EVENT_UNMAP:
				r.event(uapi.Unmap{Range: mem.MakeRange(a, 4*page)})
				r.ends(c, 0)
			}
			r.got(r.load(to+page), 0)
		})
	}
}

// TestForkEvent covers B.13, C.25 and H14: fork sleeps until the event is
// read, which installs the child's descriptor in the reader.
func TestForkEvent(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(4*page, missing, uapi.UFFD_FEATURE_EVENT_FORK)
		_, errno := r.copy(a, page, 1, 0)
		r.must("copy", errno)
		th := r.p.NewThread()
		var child *Process
		c := start(func() (errno syscall.Errno) {
			child, errno = th.Fork()
			return errno
		})
		r.sleeps(c, th, InEvent)
		_, errno = r.copy(a+page, page, 2, 0)
		r.want("copy", errno, EAGAIN)
		msgs, errno := r.read(1)
		r.must("read", errno)
		r.ends(c, 0)
		fd := int(msgs[0].ForkFD())
		if fl, _ := r.th.Fcntl(fd, FGetfl, 0); fl&ONonblock == 0 {
			r.t.Error("the child's descriptor has lost O_NONBLOCK")
		}
		_, errno = r.ioctl(fd, uapi.UFFDIO_API, uapi.UFFD_API, 0, 0)
		r.want("API", errno, EINVAL)
		load := r.start(child, a+page, false)
		r.blocked(load)
		r.nothing()
		if got, _ := readBy(r.t, r.th, r.scratch+8*page, fd, 1); len(got) != 1 {
			r.t.Fatal("the child's fault is not in its descriptor")
		}
		d, err := r.p.Descriptor(fd)
		if err != nil {
			r.t.Fatal(err)
		}
		if n, errno := d.Copy(a+page, make([]byte, page), 0); n != page || errno != 0 {
			r.t.Errorf("copy = %d, %v", n, errno)
		}
		r.got(load, 0)
		r.got(r.start(child, a, false), 1)
		if err := d.Close(); err != nil {
			r.t.Error(err)
		}
		child.Kill()
	})
}

// TestForkEventUnread covers C.26 and C.27: without room for the descriptor
// the event stays, and closing the last file releases the fork with a child
// whose memory is nobody's.
func TestForkEventUnread(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		// The file is a manager's alone, or the child would keep it open.
		m := r.k.NewProcess(ProcessOptions{Privileged: true, MaxFiles: 1})
		defer m.Kill()
		a := r.area(4*page, missing, uapi.UFFD_FEATURE_EVENT_FORK)
		fd, errno := r.th.PassFD(r.fd, m)
		r.must("pass", errno)
		r.must("close", r.th.Close(r.fd))
		th := r.p.NewThread()
		var child *Process
		c := start(func() (errno syscall.Errno) {
			child, errno = th.Fork()
			return errno
		})
		r.sleeps(c, th, InEvent)
		mth := m.NewThread()
		buf, errno := mth.Mmap(0, page, ProtRead|ProtWrite, MapPrivate|MapAnonymous, -1, 0)
		r.must("mmap", errno)
		for range 2 {
			_, errno = mth.Read(fd, buf, 32)
			r.want("read", errno, EMFILE)
		}
		r.must("close", mth.Close(fd))
		r.ends(c, 0)
		r.got(r.start(child, a, false), 0)
		child.Kill()
	})
}

// TestForkInherited covers C.26: the child's own copy keeps the file open, and
// the fork hangs until it is killed.
func TestForkInherited(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		r.area(4*page, missing, uapi.UFFD_FEATURE_EVENT_FORK)
		th := r.p.NewThread()
		var child *Process
		c := start(func() syscall.Errno {
			_, errno := th.ForkWith(func(p *Process) { child = p })
			return errno
		})
		r.must("close", r.th.Close(r.fd))
		r.sleeps(c, th, InEvent)
		child.Kill() // and with it the last file
		r.ends(c, 0)
	})
}

// TestForkWithout covers C.24: without the feature the child's memory is
// nobody's, and its copy of the descriptor drives the parent.
func TestForkWithout(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(4*page, missing|wp, 0)
		_, errno := r.copy(a, page, 1, uapi.UFFDIO_COPY_MODE_WP)
		r.must("copy", errno)
		child, errno := r.th.Fork()
		r.must("fork", errno)
		defer child.Kill()
		if st := child.PageState(a); !st.Present || st.WP {
			r.t.Errorf("the child's page: %+v", st)
		}
		r.got(r.start(child, a+page, false), 0)
		cth := child.NewThread()
		w, errno := ioctlBy(r.t, cth, r.scratch, r.fd, uapi.UFFDIO_COPY, uint64(a+2*page), uint64(r.scratch), page, 0, 0)
		r.must("copy", errno)
		if w[4] != page || !r.p.PageState(a+2*page).Present {
			r.t.Errorf("copy of the child = %d, parent %+v", w[4], r.p.PageState(a+2*page))
		}
		w, errno = ioctlBy(r.t, cth, r.scratch, r.fd, uapi.UFFDIO_MOVE, uint64(a+3*page), uint64(r.scratch), page, 0, 77)
		if r.want("move", errno, EINVAL); w[4] != 77 {
			r.t.Errorf("move's result = %d", int64(w[4]))
		}
		// EBUSY stays until the page is written once, even without the child.
		child.Kill()
		r.got(r.store(a+2*page), 0x5a)
	})
}

// TestDeadSpace covers C.29 and C.30: a descriptor outlives its memory.
func TestDeadSpace(t *testing.T) {
	for _, exec := range []bool{false, true} {
		inBubble(t, Linux618, func(r *rig) {
			a := r.area(4*page, missing, 0)
			m := r.k.NewProcess(ProcessOptions{})
			defer m.Kill()
			fd, errno := r.th.PassFD(r.fd, m)
			r.must("pass", errno)
			var load *touch
			if exec {
				r.must("exec", r.th.Exec())
			} else {
				load = r.load(a)
				r.p.Kill()
				if !load.ended() || load.err != ErrKilled {
					r.t.Errorf("the killed access: %v", load.err)
				}
			}
			th := m.NewThread()
			s, errno := th.Mmap(0, 16*page, ProtRead|ProtWrite, MapPrivate|MapAnonymous, -1, 0)
			r.must("mmap", errno)
			w, errno := ioctlBy(r.t, th, s, fd, uapi.UFFDIO_COPY, uint64(a), uint64(s), page, 0, 77)
			if r.want("copy", errno, ESRCH); w[4] != 77 {
				r.t.Errorf("result word = %d", w[4])
			}
			_, errno = ioctlBy(r.t, th, s, fd, uapi.UFFDIO_WRITEPROTECT, uint64(a), page, 0)
			r.want("writeprotect", errno, ESRCH)
			_, errno = ioctlBy(r.t, th, s, fd, uapi.UFFDIO_REGISTER, uint64(a), page, uint64(missing), 0)
			r.want("register", errno, ENOMEM)
			_, errno = ioctlBy(r.t, th, s, fd, uapi.UFFDIO_UNREGISTER, uint64(a), page)
			r.want("unregister", errno, ENOMEM)
			_, errno = ioctlBy(r.t, th, s, fd, uapi.UFFDIO_WAKE, uint64(a), page)
			r.must("wake", errno)
			_, errno = ioctlBy(r.t, th, s, fd, uapi.UFFDIO_MOVE, uint64(a), uint64(s), page, 0, 0)
			r.want("move", errno, EINVAL)
			_, errno = readBy(r.t, th, s, fd, 1)
			r.want("read", errno, EAGAIN)
			if info := m.Fdinfo(fd); info[:21] != "pending:\t0\ntotal:\t0\nA" {
				r.t.Errorf("fdinfo %q", info)
			}
		})
	}
}

// TestAdviceAboutPartOfHugePage: advice about less than a huge page drops
// nothing, and so is no event either; its caller must not wait for one.
func TestAdviceAboutPartOfHugePage(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		r.api(uapi.UFFD_FEATURE_EVENT_REMOVE)
		a, errno := r.th.Mmap(0, 2*HugePageSize, ProtRead|ProtWrite, MapPrivate|MapAnonymous|MapHugetlb, -1, 0)
		r.must("mmap", errno)
		r.register(a, 2*HugePageSize, missing)
		for _, at := range []mem.Addr{a, a + HugePageSize} {
			c := start(func() syscall.Errno { return r.p.NewThread().Madvise(at, page, MadvDontNeed) })
			synctest.Wait()
			r.nothing()
			r.ends(c, 0)
		}
	}, WithHugePages(2))
}
