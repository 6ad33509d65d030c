// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// TestCreate covers B.3.
func TestCreate(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		p := r.k.NewProcess(ProcessOptions{MaxFiles: 1})
		defer p.Kill()
		th := p.NewThread()
		for _, tc := range []struct {
			flags int
			want  syscall.Errno
		}{{0, EPERM}, {0x10, EPERM}, {uapi.UFFD_USER_MODE_ONLY | 0x10, EINVAL}, {uapi.UFFD_USER_MODE_ONLY, 0}, {uapi.UFFD_USER_MODE_ONLY, EMFILE}} {
			_, errno := th.Userfaultfd(tc.flags)
			r.want("userfaultfd", errno, tc.want)
		}
		_, errno := th.OpenDevice()
		r.want("open", errno, EACCES)
		_, errno = th.Write(0, 0, 1)
		r.want("write", errno, EBADF)
		dev, errno := r.th.OpenDevice()
		r.must("open", errno)
		r.p.SetPrivileged(false)
		fd, errno := r.th.Ioctl(dev, uapi.USERFAULTFD_IOC_NEW, ONonblock)
		if r.must("USERFAULTFD_IOC_NEW", errno); r.p.Fdinfo(fd) == "" {
			r.t.Error("the device made no descriptor")
		}
		_, errno = r.th.Ioctl(dev, uapi.USERFAULTFD_IOC_NEW, 0x10)
		r.want("bad flags", errno, EINVAL)
		_, errno = r.th.Ioctl(dev, uapi.UFFDIO_API, 0)
		r.want("bad request", errno, EINVAL)
	})
}

// TestAPI covers B.4, B.5 and C.1 to C.4.
func TestAPI(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		_, errno := r.ioctl(r.fd, uapi.UFFDIO_WAKE, 0, page)
		r.want("wake", errno, EINVAL)
		_, errno = r.read(1)
		r.want("read", errno, EINVAL)
		fds := []PollFD{{FD: r.fd, Events: PollIn}}
		if n, _ := r.th.Poll(fds, 0); n != 1 || fds[0].Revents != PollErr {
			r.t.Errorf("poll says %+v", fds)
		}
		fork := uint64(uapi.UFFD_FEATURE_EVENT_FORK)
		for _, tc := range []struct {
			api, features uint64
			privileged    bool
			want          syscall.Errno
		}{{0xab, 0, true, EINVAL}, {0xaa, 1 << 31, true, EINVAL}, {0xaa, 1<<63 | fork, false, EPERM}, {0xaa, 0, false, 0}, {0xaa, 0, true, EINVAL}} {
			r.p.SetPrivileged(tc.privileged)
			w, errno := r.ioctl(r.fd, uapi.UFFDIO_API, tc.api, tc.features, 7)
			r.want("API", errno, tc.want)
			want := [3]uint64{}
			if errno == 0 {
				want = [3]uint64{0xaa, 0x1ffff, 0x8000000000000003}
			}
			if [3]uint64(w) != want {
				r.t.Errorf("API(%#x, %#x) answers %#x", tc.api, tc.features, w)
			}
		}
		for _, request := range []uint32{0x541b, uapi.UFFDIO_COPY + 0x20} {
			_, errno = r.ioctl(r.fd, request, 0)
			r.want("unknown request", errno, EINVAL)
		}
		if info, want := r.p.Fdinfo(r.fd), "pending:\t0\ntotal:\t0\nAPI:\taa:80000000:80000000000001ff\n"; info != want {
			r.t.Errorf("fdinfo %q, want %q", info, want)
		}
	})
}

// TestRegisterOrder covers B.7 and C.15 to C.21.
func TestRegisterOrder(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		r.api(0)
		reg := func(a mem.Addr, n uint64, mode uapi.RegisterMode) syscall.Errno {
			_, errno := r.ioctl(r.fd, uapi.UFFDIO_REGISTER, uint64(a), n, uint64(mode), 0)
			return errno
		}
		a := r.mmap(16 * page)
		ro, errno := r.th.MemfdCreate("ro", 0)
		r.must("memfd", errno)
		r.must("ftruncate", r.th.Ftruncate(ro, page))
		ro, errno = r.th.Reopen(ro, ORdonly)
		r.must("reopen", errno)
		readonly, errno := r.th.Mmap(0, page, ProtRead, MapShared, ro, 0)
		r.must("mmap", errno)
		file, errno := r.th.RegularFile("/f", page)
		r.must("file", errno)
		regular, errno := r.th.Mmap(0, page, ProtRead|ProtWrite, MapShared, file, 0)
		r.must("mmap", errno)
		r.must("munmap", r.th.Munmap(a+13*page, page))
		for _, tc := range []struct {
			what string
			a    mem.Addr
			n    uint64
			mode uapi.RegisterMode
			want syscall.Errno
		}{
			{"mode 0", a, page, 0, EINVAL},
			{"mode 8", a, page, 8, EINVAL},
			{"unaligned", a + 1, page, missing, EINVAL},
			{"empty", a, 0, missing, EINVAL},
			{"wraps", a, ^uint64(0) &^ 4095, missing, EINVAL},
			{"hole", 0x10000, page, missing, EINVAL},
			{"minor of anonymous", a, page, minor, EINVAL},
			{"read-only object", readonly, page, missing, EPERM},
			{"regular file", regular, page, missing, EINVAL},
			{"across a hole", a + 12*page, 3 * page, missing, 0},
		} {
			r.want(tc.what, reg(tc.a, tc.n, tc.mode), tc.want)
		}
		// Modes: a subset changes nothing, anything else replaces.
		flags := func(a mem.Addr) vmaFlags { return r.p.as.Load().vmas.find(a).flags & vmUffd }
		for _, tc := range []struct {
			mode uapi.RegisterMode
			want vmaFlags
		}{{missing, vmMissing}, {wp, vmWP}, {missing | wp, vmMissing | vmWP}, {missing, vmMissing | vmWP}} {
			r.must("register", reg(a+4*page, page, tc.mode))
			if got := flags(a + 4*page); got != tc.want {
				r.t.Errorf("after mode %v: %#x, want %#x", tc.mode, got, tc.want)
			}
		}
		if flags(a+5*page) != 0 || flags(a+3*page) != 0 {
			r.t.Error("more than the range was registered")
		}
		before := r.p.as.Load().vmas.count
		for range 2 {
			_, errno = r.ioctl(r.fd, uapi.UFFDIO_UNREGISTER, uint64(a)+4*page, page)
			r.must("unregister", errno)
		}
		if after := r.p.as.Load().vmas.count; after != before-2 {
			r.t.Errorf("%d VMAs, %d before unregister", after, before)
		}
		// C.21: an answer that cannot be written leaves it registered.
		arg := r.mmap(page)
		b := make([]byte, 32)
		for i := range 8 {
			b[i], b[8+i] = byte((uint64(a)+8*page)>>(8*i)), byte(uint64(page)>>(8*i))
		}
		b[16] = byte(missing)
		if err := r.th.Store(context.Background(), arg, b); err != nil {
			r.t.Fatal(err)
		}
		r.must("mprotect", r.th.Mprotect(arg, page, ProtRead))
		_, errno = r.th.Ioctl(r.fd, uapi.UFFDIO_REGISTER, arg)
		r.want("register", errno, EFAULT)
		if flags(a+8*page) != vmMissing {
			r.t.Error("not registered")
		}
	})
}

// TestRead covers B.11, C.7 to C.9.
func TestRead(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(16*page, missing, 0)
		buf := r.scratch + 8*page
		var loads []*touch
		for i := range mem.Addr(5) {
			loads = append(loads, r.load(a+i*page))
		}
		for _, n := range []uint64{0, 31} {
			_, errno := r.th.Read(r.fd, buf, n)
			r.want("short read", errno, EINVAL)
		}
		if n, errno := r.th.Read(r.fd, buf, 63); n != 32 || errno != 0 {
			r.t.Errorf("read of 63 bytes = %d, %s", n, ErrnoName(errno))
		}
		_, errno := r.th.Read(r.fd, 0x10000, 32)
		r.want("read to nowhere", errno, EFAULT)
		if info := r.p.Fdinfo(r.fd)[:20]; info != "pending:\t3\ntotal:\t5\n" {
			r.t.Errorf("fdinfo %q", info)
		}
		// The second message faults, and is lost.
		edge := r.mmap(2 * page)
		r.must("munmap", r.th.Munmap(edge+page, page))
		if n, errno := r.th.Read(r.fd, edge+page-32, 64); n != 32 || errno != 0 {
			r.t.Errorf("read = %d, %s", n, ErrnoName(errno))
		}
		if n, errno := r.th.Readv(r.fd, []Segment{{buf, 9}, {buf + page, 23}}); n != 32 || errno != 0 {
			r.t.Errorf("readv = %d, %s", n, ErrnoName(errno))
		}
		r.nothing()
		r.must("close", r.th.Close(r.fd))
		for _, c := range loads {
			r.got(c, 0)
		}
	})
}

// TestPoll covers B.11 and C.6: blocking reads, poll, epoll's edges, signals.
func TestPoll(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(8*page, missing, 0)
		ep, errno := r.th.EpollCreate()
		r.must("epoll", errno)
		r.must("epoll", r.th.EpollAdd(ep, r.fd, true))
		r.want("epoll", r.th.EpollAdd(ep, r.fd, true), EEXIST)
		edges := func(want int) {
			r.t.Helper()
			if got, _ := r.th.EpollWait(ep, 0); len(got) != want {
				r.t.Errorf("epoll: %v, want %d", got, want)
			}
		}
		edges(0)
		r.load(a)
		edges(1)
		edges(0)
		r.load(a + page) // a new edge though the first is unread
		edges(1)
		r.read(8)
		th := r.p.NewThread()
		fds := []PollFD{{FD: r.fd, Events: PollIn}, {FD: 99}}
		if n, _ := r.th.Poll(fds, 0); n != 1 || fds[1].Revents != PollNval {
			r.t.Errorf("poll says %+v", fds)
		}
		c := start(func() syscall.Errno {
			n, errno := th.Poll(fds[:1], -1)
			if n != 1 && errno == 0 {
				r.t.Errorf("poll = %d", n)
			}
			return errno
		})
		r.sleeps(c, th, InPoll)
		r.load(a + 2*page)
		r.ends(c, 0)
		r.read(8)
		begin := time.Now()
		if n, errno := th.Poll(fds[:1], time.Second); n != 0 || errno != 0 || time.Since(begin) != time.Second {
			r.t.Errorf("poll = %d, %s after %v", n, ErrnoName(errno), time.Since(begin))
		}
		_, errno = r.th.Fcntl(r.fd, FSetfl, 0)
		r.must("fcntl", errno)
		if n, _ := r.th.Poll(fds[:1], 0); n != 1 || fds[0].Revents != PollErr {
			r.t.Errorf("poll of a blocking descriptor says %+v", fds)
		}
		read := func() syscall.Errno { _, errno := th.Read(r.fd, r.scratch+8*page, 32); return errno }
		c = start(read)
		r.sleeps(c, th, InRead)
		th.Signal(10)
		r.ends(c, EINTR)
		c = start(read)
		r.must("close", r.th.Close(r.fd)) // the reader holds the file
		r.sleeps(c, th, InRead)
		r.load(a + 3*page)
		r.ends(c, 0)
	})
}

// TestPassed covers C.29 and contract of several users: another process reads
// and fills, and moves nothing.
func TestPassed(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := r.area(page, missing, 0)
		m := r.k.NewProcess(ProcessOptions{})
		defer m.Kill()
		fd, errno := r.th.PassFD(r.fd, m)
		r.must("pass", errno)
		th := m.NewThread()
		s, errno := th.Mmap(0, 16*page, ProtRead|ProtWrite, MapPrivate|MapAnonymous, -1, 0)
		r.must("mmap", errno)
		if err := th.Store(context.Background(), s+page, []byte{0x77}); err != nil {
			r.t.Fatal(err)
		}
		load := r.load(a)
		if got, errno := readBy(r.t, th, s, fd, 4); len(got) != 1 {
			r.t.Fatalf("read %v, %s", got, ErrnoName(errno))
		}
		w, errno := ioctlBy(r.t, th, s, fd, uapi.UFFDIO_COPY, uint64(a), uint64(s)+page, page, 0, 0)
		if r.must("copy", errno); w[4] != page {
			r.t.Errorf("copy = %d", w[4])
		}
		r.got(load, 0x77)
	})
}

// TestAccessEndsWithItsContext: in either mode a context takes the access out of the
// queue, also on the profile whose waits no signal ends (A.11). What lies before the missing page
// was transferred, and who does not end is served as ever.
func TestAccessEndsWithItsContext(t *testing.T) {
	const before = 16
	copied := func(n int, err error) error {
		if n != before {
			t.Errorf("%d bytes were transferred", n)
		}
		return err
	}
	accesses := map[string]func(ctx context.Context, th *Thread, a mem.Addr, b []byte) error{
		"load":  func(ctx context.Context, th *Thread, a mem.Addr, b []byte) error { return th.Load(ctx, a, b) },
		"store": func(ctx context.Context, th *Thread, a mem.Addr, b []byte) error { return th.Store(ctx, a, b) },
		"swap": func(ctx context.Context, th *Thread, a mem.Addr, _ []byte) error {
			_, err := th.CompareAndSwap(ctx, a+before, 0, 1)
			return err
		},
		"copy in": func(ctx context.Context, th *Thread, a mem.Addr, b []byte) error {
			return copied(th.CopyIn(ctx, a, b))
		},
		"copy out": func(ctx context.Context, th *Thread, a mem.Addr, b []byte) error {
			return copied(th.CopyOut(ctx, a, b))
		},
	}
	for _, profile := range []*Profile{Seed, Linux618} {
		for name, access := range accesses {
			inBubble(t, profile, func(r *rig) {
				r.api(0)
				a := r.mmap(2 * page)
				r.got(r.store(a), 0x5a)
				r.register(a, 2*page, missing)
				other := r.load(a + page)
				ctx, cancel := context.WithCancel(context.Background())
				th, done := r.p.NewThread(), make(chan error, 1)
				go func() { done <- access(ctx, th, a+page-before, make([]byte, 2*before)) }()
				synctest.Wait()
				if th.State() != InFault {
					t.Fatalf("%s, %s: state %v", profile.Name(), name, th.State())
				}
				cancel()
				if err := <-done; err != context.Canceled {
					t.Errorf("%s, %s: %v", profile.Name(), name, err)
				}
				r.blocked(other)
				if info := r.p.Fdinfo(r.fd); !strings.Contains(info, "pending:\t1\ntotal:\t1\n") {
					t.Errorf("%s, %s: the access is still counted: %q", profile.Name(), name, info)
				}
				_, errno := r.ioctl(r.fd, uapi.UFFDIO_UNREGISTER, uint64(a), 2*page)
				r.must("unregister", errno)
			})
		}
	}
}
