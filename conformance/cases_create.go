// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"github.com/faultline-go/faultline/uffd/uapi"
)

var createCases = []Case{
	{Name: "create/unknown-flags", Rows: []string{"B.3.2"}, run: func(c *C) {
		p := c.Process()
		p.Begin(Userfaultfd, 2).Err(EINVAL)
		p.Begin(Userfaultfd, 1<<30).Err(EINVAL)
		p.Do(Userfaultfd, OCloexec|ONonblock|uapi.UFFD_USER_MODE_ONLY)
	}},
	{Name: "create/privilege-before-flags", Rows: []string{"B.3.1", "C.5"}, Privileged: true, run: func(c *C) {
		p := c.Process()
		c.Must(p.p.DropPrivilege())
		if r := p.Call(Userfaultfd, 0); r.Errno == OK {
			c.Skipf("vm.unprivileged_userfaultfd is 1")
		}
		p.Begin(Userfaultfd, 0).Err(EPERM)
		p.Begin(Userfaultfd, 2).Err(EPERM)
		p.Begin(Userfaultfd, 2|uapi.UFFD_USER_MODE_ONLY).Err(EINVAL)
		p.Do(Userfaultfd, uapi.UFFD_USER_MODE_ONLY)
	}},
	{Name: "create/no-number-free", Rows: []string{"B.3.3"}, run: func(c *C) {
		p := c.Process()
		p.Do(SetNofile, 0)
		p.Begin(Userfaultfd, 0).Err(EMFILE)
		p.Begin(Userfaultfd, 2).Err(EINVAL)
	}},
	{Name: "create/device", Rows: []string{"B.1.1", "B.3.4", "B.3.5"}, Since: "6.1", Privileged: true, run: func(c *C) {
		p := c.Process()
		for _, mode := range []int{ORdonly, OWronly, ORdwr} {
			dev := p.Do(OpenDevice, mode)
			fd := p.Do(Ioctl, dev, uapi.USERFAULTFD_IOC_NEW, OCloexec|ONonblock)
			u := &UFFD{th: p.Thread, fd: fd}
			u.API(uapi.UFFD_API, 0).Err(OK)
			u.Quiet()
			p.Begin(Ioctl, dev, uapi.USERFAULTFD_IOC_NEW, 2).Err(EINVAL)
			p.Begin(Ioctl, dev, uapi.USERFAULTFD_IOC_NEW+1, 0).Err(EINVAL)
		}
	}},
	{Name: "create/device-without-privilege", Rows: []string{"B.3.6"}, Since: "6.1", Privileged: true, run: func(c *C) {
		p := c.Process()
		dev := p.Do(OpenDevice, ORdonly)
		u := p.UFFD(0)
		c.Must(p.p.DropPrivilege())
		p.Begin(OpenDevice, ORdonly).Err(EACCES)
		// Both the device and the descriptor stay what they were.
		n := &UFFD{th: p.Thread, fd: p.Do(Ioctl, dev, uapi.USERFAULTFD_IOC_NEW, ONonblock)}
		n.API(uapi.UFFD_API, 0).Err(OK)
		r := p.MapAs(Anon, 2, ProtRead|ProtWrite)
		u.Watch(r.Pages(0, 1), missing)
		n.Watch(r.Pages(1, 1), missing)
		u.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
	}},
	{Name: "create/file", Rows: []string{"B.3.7"}, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		a := p.scratch(64)
		p.Begin(Write, u.fd, a, 8).Err(EBADF)
		p.Begin(Pread, u.fd, a, 32, 0).Err(ESPIPE)
		p.Begin(Lseek, u.fd, 5, 0).Value(0)
		// O_LARGEFILE may show, on some architectures.
		Is(c, "F_GETFL", p.Do(Fcntl, u.fd, FGetfl, 0)&(3|ONonblock), ORdonly|ONonblock)
		Is(c, "F_GETFD", p.Do(Fcntl, u.fd, FGetfd, 0), 1)
	}},
	{Name: "create/flags-of-the-file", Rows: []string{"B.3.7"}, run: func(c *C) {
		p := c.Process()
		u := p.NewUFFD(0)
		Is(c, "F_GETFL", p.Do(Fcntl, u.fd, FGetfl, 0)&(3|ONonblock), 0)
		Is(c, "F_GETFD", p.Do(Fcntl, u.fd, FGetfd, 0), 0)
	}},
}

var handshakeCases = []Case{
	{Name: "handshake/answer", Rows: []string{"B.4.8", "B.1.3", "B.1.2"}, run: func(c *C) {
		p := c.Process()
		a := p.NewUFFD(0).API(uapi.UFFD_API, 0)
		a.Is(OK, -0x8000000000000000+3)
		Is(c, "api", a.Words[0], uapi.UFFD_API)
		Is(c, "features", uapi.Features(a.Words[1]), c.has)
		// What was asked for does not change the answer.
		a = p.NewUFFD(0).API(uapi.UFFD_API, uapi.UFFD_FEATURE_THREAD_ID&c.has)
		Is(c, "features", uapi.Features(a.Words[1]), c.has)
	}},
	{Name: "handshake/unreadable", Rows: []string{"B.4.1"}, run: func(c *C) {
		u := c.Process().NewUFFD(0)
		Is(c, "API at 0", u.Raw(uapi.UFFDIO_API, 0), EFAULT)
		u.API(uapi.UFFD_API, 0).Err(OK)
	}},
	{Name: "handshake/wrong-version", Rows: []string{"B.4.2", "B.4.7", "C.2", "D.api"}, run: func(c *C) {
		u := c.Process().NewUFFD(0)
		for _, api := range []uint64{0xab, 0, 0xaa | 1<<63} {
			wantZeroed(u.API(api, 0), EINVAL)
		}
		u.API(uapi.UFFD_API, 0).Err(OK)
	}},
	{Name: "handshake/unknown-feature", Rows: []string{"B.4.4", "B.4.7", "C.2", "D.api"}, run: func(c *C) {
		u := c.Process().NewUFFD(0)
		for _, bit := range []uint{31, 40, 63} {
			wantZeroed(u.API(uapi.UFFD_API, 1<<bit), EINVAL)
		}
		u.API(uapi.UFFD_API, 0).Err(OK)
	}},
	{Name: "handshake/every-feature", Rows: featureRows(), Privileged: true, run: func(c *C) {
		p := c.Process()
		for _, f := range uapi.FeatureTable() {
			if c.has.Has(f.Bit) {
				p.NewUFFD(0).API(uapi.UFFD_API, f.Bit).Err(OK)
			}
		}
		p.NewUFFD(0).API(uapi.UFFD_API, c.has).Err(OK)
	}},
	{Name: "handshake/fork-needs-privilege", Rows: []string{"B.4.3", "B.4.7", "C.3"},
		Features: uapi.UFFD_FEATURE_EVENT_FORK, Privileged: true, run: func(c *C) {
			p := c.Process()
			c.Must(p.p.DropPrivilege())
			u := p.NewUFFD(uapi.UFFD_USER_MODE_ONLY)
			wantZeroed(u.API(uapi.UFFD_API, uapi.UFFD_FEATURE_EVENT_FORK), EPERM)
			wantZeroed(u.API(uapi.UFFD_API, uapi.UFFD_FEATURE_EVENT_FORK|1<<40), EPERM)
			wantZeroed(u.API(uapi.UFFD_API+1, uapi.UFFD_FEATURE_EVENT_FORK), EINVAL)
			u.API(uapi.UFFD_API, 0).Err(OK)
		}},
	{Name: "handshake/unwritable", Rows: []string{"B.4.5"}, run: func(c *C) {
		p := c.Process()
		u := p.NewUFFD(0)
		r := p.MapAs(Anon, 1, ProtRead|ProtWrite)
		p.Do(Store64, r.Start, uapi.UFFD_API)
		p.Do(Mprotect, r.Start, r.Page(), ProtRead)
		Is(c, "API in memory that cannot be written", u.Raw(uapi.UFFDIO_API, r.Start), EFAULT)
		// It is not taken for done.
		u.API(uapi.UFFD_API, 0).Err(OK)
	}},
	{Name: "handshake/twice", Rows: []string{"B.4.6", "B.4.7", "B.4.9", "C.1", "D.api"}, run: func(c *C) {
		u := c.Process().NewUFFD(0)
		u.API(uapi.UFFD_API, 0).Err(OK)
		wantZeroed(u.API(uapi.UFFD_API, 0), EINVAL)
		wantZeroed(u.API(uapi.UFFD_API, uapi.UFFD_FEATURE_THREAD_ID&c.has), EINVAL)
	}},
	{Name: "handshake/gate", Rows: []string{"B.5.1", "C.4"}, run: func(c *C) {
		p := c.Process()
		u := p.NewUFFD(ONonblock)
		r := p.MapAs(Anon, 1, ProtRead|ProtWrite)
		u.Register(r.Range, missing).Refused(EINVAL)
		u.Unregister(r.Range).Err(EINVAL)
		u.Wake(r.Range).Err(EINVAL)
		u.Fill(r.Range, 'a').Refused(EINVAL)
		u.Zero(r.Range, 0).Refused(EINVAL)
		u.Protect(r.Range, 0).Err(EINVAL)
		u.Continue(r.Range, 0).Refused(EINVAL)
		u.Poison(r.Range, 0).Refused(EINVAL)
		u.Move(r.Range, r.Start, 0).Refused(EINVAL)
		_, errno := u.ReadN(uapi.MsgSize)
		Is(c, "read", errno, EINVAL)
		Is(c, "poll", u.Poll(), PollErr)
	}},
	{Name: "handshake/unknown-command", Rows: []string{"B.5.2"}, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		a := p.scratch(64)
		for _, request := range []uint64{0xaa09, 0xc020aa09, FionRead, 0x5401, uapi.UFFDIO_COPY ^ 1<<30} {
			Is(c, requestName(request), u.Raw(request, a), EINVAL)
		}
	}},
	{Name: "handshake/features-are-not-gates", Rows: []string{"B.2.18"}, Memory: anon,
		Features: uapi.UFFD_FEATURE_POISON | uapi.UFFD_FEATURE_MOVE | uapi.UFFD_FEATURE_PAGEFAULT_FLAG_WP, run: func(c *C) {
			p := c.Process()
			u := p.UFFD(0)
			r := p.Map(4)
			u.Watch(r.Range, missing|wp)
			u.Poison(r.Pages(0, 1), 0).Is(OK, int64(r.Page()))
			u.Fill(r.Pages(1, 1), 'm').Is(OK, int64(r.Page()))
			u.Move(r.Pages(2, 1), r.At(1), 0).Is(OK, int64(r.Page()))
			u.Protect(r.Pages(2, 1), uapi.UFFDIO_WRITEPROTECT_MODE_WP).Err(OK)
			t := p.NewThread().Store(r.At(2), 1).Blocked()
			u.WantFault(r.At(2), wpFault)
			u.Protect(r.Pages(2, 1), 0).Err(OK)
			t.Value(0)
		}},
}

// wantZeroed checks a handshake that failed: nothing is left in its struct.
func wantZeroed(a Answer, errno Errno) {
	a.Err(errno)
	if a.Words[0]|a.Words[1]|a.Words[2] != 0 {
		a.c.Failf("%s: left %x in the struct", a.what, a.Words)
	}
}
