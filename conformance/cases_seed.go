// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"slices"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// seedWrite is a flag in the low bits of the 8-byte records that the patch's
// read(2) gives.
const seedWrite = 1

// seedRange is all that the patch can do with a range.
const seedRange = uapi.UFFDIO_BIT_WAKE

// Records reads n bytes of records.
func (u *UFFD) Records(n int) ([]uint64, Errno) {
	a := u.th.scratch(max(n, 8))
	r := u.th.Call(Read, u.fd, a, n)
	if r.Errno != OK {
		return nil, r.Errno
	}
	var out []uint64
	for b := u.th.get(a, int(r.Value)); len(b) >= 8; b = b[8:] {
		out = append(out, le64(b))
	}
	return out, OK
}

// wantRecords checks what a read of n bytes gives.
func (u *UFFD) wantRecords(n int, want ...uint64) {
	got, errno := u.Records(n)
	if errno != OK || !slices.Equal(got, want) {
		u.th.c.Failf("read of %d bytes: %x and %v, want %x", n, got, errno, want)
	}
}

// seedQuiet checks that nothing is unread.
func (u *UFFD) seedQuiet() {
	_, errno := u.Records(8)
	Is(u.th.c, "read", errno, EAGAIN)
	Is(u.th.c, "poll", u.Poll(), 0)
}

// release lets the threads that wait in r, whose faults were read, go on with
// ordinary pages: the patch has nothing to install pages with.
func (u *UFFD) release(r mem.Range) {
	u.Unregister(r).Err(OK)
	u.Wake(r).Err(OK)
}

// seedCase makes a case of the patch, with anonymous memory.
func seedCase(name string, rows []string, run func(*C, *Proc)) Case {
	return Case{Name: "seed/" + name, Rows: rows, Seed: true, Memory: anon,
		run: func(c *C) { run(c, c.Process()) }}
}

var seedOpenCases = []Case{
	seedCase("create", []string{"A.2.2", "A.2.4", "A.2.6", "A.15.20"}, func(c *C, p *Proc) {
		p.Begin(Userfaultfd, 1).Err(EINVAL) // USER_MODE_ONLY is not yet known
		p.Begin(Userfaultfd, 1<<30).Err(EINVAL)
		u := p.NewUFFD(OCloexec | ONonblock)
		Is(c, "F_GETFL", p.Do(Fcntl, u.fd, FGetfl, 0)&(3|ONonblock), ORdwr|ONonblock)
		Is(c, "F_GETFD", p.Do(Fcntl, u.fd, FGetfd, 0), 1)
	}),
	seedCase("create-no-number-free", []string{"A.2.1", "A.2.2", "A.15.18"}, func(c *C, p *Proc) {
		p.Do(SetNofile, 1)
		p.Begin(Userfaultfd, 0).Err(EMFILE)
		p.Begin(Userfaultfd, 1<<30).Err(EMFILE) // before the flags
	}),
	seedCase("create-without-privilege", []string{"A.2.7", "A.15.20"}, func(c *C, p *Proc) {
		c.Must(p.p.DropPrivilege())
		p.Do(Userfaultfd, 0)
	}),
	seedCase("file", []string{"A.2.7"}, func(c *C, p *Proc) {
		u := p.NewUFFD(ONonblock)
		u.API(uapi.UFFD_API, 0).Err(OK)
		p.Begin(Write, u.fd, p.scratch(8), 8).Err(EINVAL)
		p.Begin(Lseek, u.fd, 5, 0).Value(0)
	}),
	seedCase("handshake", []string{"A.0.1", "A.0.2", "A.3.1", "A.3.5", "A.14.8"}, func(c *C, p *Proc) {
		u := p.NewUFFD(0)
		a := u.API(uapi.UFFD_API, 1<<63) // the second word is no input
		a.Is(OK, -0x8000000000000000+3)
		Is(c, "bits", a.Words[1], 1)
		// Again it fails, and leaves the struct alone.
		a = u.API(uapi.UFFD_API, 7)
		a.Refused(EINVAL)
		Is(c, "bits", a.Words[1], 7)
	}),
	seedCase("handshake-reads-eight-bytes", []string{"A.3.2", "A.3.4"}, func(c *C, p *Proc) {
		u := p.NewUFFD(0)
		Is(c, "API of nothing", u.Raw(uapi.UFFDIO_API, 8), EFAULT)
		// The last eight bytes of a mapping can be read; the answer does not
		// fit, and it may be tried again.
		r := p.Map(1)
		a := r.End - 8
		p.Do(Store64, a, uapi.UFFD_API)
		Is(c, "API at the end", u.Raw(uapi.UFFDIO_API, a), EFAULT)
		u.API(uapi.UFFD_API, 0).Err(OK)
	}),
	seedCase("handshake-wrong-version", []string{"A.3.3", "A.14.8"}, func(c *C, p *Proc) {
		u := p.NewUFFD(0)
		wantZeroed(u.API(0xab, 3), EINVAL)
		a := p.readOnly(words(0xab, 0, 0))
		Is(c, "API in memory that cannot be written", u.Raw(uapi.UFFDIO_API, a), EFAULT)
		u.API(uapi.UFFD_API, 0).Err(OK)
	}),
	seedCase("no-gate", []string{"A.4.2", "A.9.1", "A.10.1", "A.15.10"}, func(c *C, p *Proc) {
		u := p.NewUFFD(ONonblock)
		r := p.Map(1)
		u.Register(r.Range, missing).Is(OK, int64(seedRange))
		t := p.NewThread().Load(r.Start).Blocked()
		_, errno := u.Records(8)
		Is(c, "read", errno, EINVAL)
		Is(c, "poll", u.Poll(), PollErr)
		u.API(uapi.UFFD_API, 0).Err(OK)
		u.wantRecords(8, uint64(r.Start))
		u.release(r.Range)
		t.Value(0)
	}),
	seedCase("unknown-command", []string{"A.4.1", "A.15.21"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		for _, request := range []uint64{uapi.UFFDIO_WRITEPROTECT, uapi.UFFDIO_POISON, FionRead, 0xaa00} {
			Is(c, requestName(request), u.Raw(request, p.scratch(64)), EINVAL)
		}
	}),
	seedCase("ranges", []string{"A.5.1", "A.6.5", "A.7.1", "A.8.2"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.Map(2)
		bad := append(badRanges(r), mem.MakeRange(0, mem.PageSize)) // below mmap_min_addr
		for _, b := range bad {
			u.Register(b, missing).Refused(EINVAL)
			u.Unregister(b).Err(EINVAL)
			u.Wake(b).Err(EINVAL)
		}
		for _, request := range []uint64{uapi.UFFDIO_REGISTER, uapi.UFFDIO_UNREGISTER, uapi.UFFDIO_WAKE} {
			Is(c, requestName(request), u.Raw(request, 8), EFAULT)
		}
	}),
}

var seedRegisterCases = []Case{
	seedCase("register-modes", []string{"A.6.1", "A.6.2", "A.6.3", "A.6.4", "A.6.12", "A.0.3", "A.15.12"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.Map(1)
		for _, mode := range []uapi.RegisterMode{0, wp, missing | wp, minor, 8, 1 << 63} {
			u.Register(r.Range, mode).Refused(EINVAL)
		}
		u.Register(r.Range, missing).Is(OK, int64(seedRange))
		u.Register(r.Range, missing).Is(OK, int64(seedRange))
		r.WantLayout("0+1 rw-p um")
	}),
	seedCase("register-reads-24-bytes", []string{"A.6.1", "A.6.10", "A.15.9"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r, s := p.Map(1), p.Map(1)
		// The fourth word is never read; where it cannot be written nothing
		// is registered.
		a := s.End - 24
		for i, w := range []uint64{uint64(r.Start), r.Len(), uint64(missing)} {
			p.Do(Store64, a+mem.Addr(8*i), w)
		}
		Is(c, "REGISTER", u.Raw(uapi.UFFDIO_REGISTER, a), EFAULT)
		r.WantLayout("0+1 rw-p")
	}),
	seedCase("register-nothing-there", []string{"A.6.6", "A.6.7", "A.7.2", "A.7.3"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.Map(3)
		p.Do(Munmap, r.At(1), r.Page())
		// A mapping above is another error than none.
		u.Register(r.Pages(1, 1), missing).Refused(EINVAL)
		u.Unregister(r.Pages(1, 1)).Err(EINVAL)
		top := p.highest()
		u.Register(top, missing).Refused(ENOMEM)
		u.Unregister(top).Err(ENOMEM)
		// Holes are allowed, and mappings are split and merged.
		u.Watch(r.Range, missing)
		r.WantLayout("0+1 rw-p um, 2+1 rw-p um")
		u.Unregister(r.Range).Err(OK)
		r.WantLayout("0+1 rw-p, 2+1 rw-p")
	}),
	seedCase("register-unsuitable", []string{"A.6.8", "A.7.4", "A.15.13"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.MapAs(Shmem, 1, ProtRead|ProtWrite)
		u.Register(r.Range, missing).Refused(EINVAL)
		u.Unregister(r.Range).Err(EINVAL)
	}),
	seedCase("register-other-owner", []string{"A.6.9"}, func(c *C, p *Proc) {
		u, other := p.UFFD(0), p.UFFD(0)
		r := p.Map(2)
		other.Watch(r.Pages(1, 1), missing)
		u.Register(r.Range, missing).Refused(EBUSY)
		r.WantLayout("0+1 rw-p, 1+1 rw-p um")
	}),
	seedCase("register-splits-and-merges", []string{"A.6.12"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.Map(3)
		u.Watch(r.Pages(1, 1), missing)
		r.WantLayout("0+1 rw-p, 1+1 rw-p um, 2+1 rw-p")
		u.Watch(r.Range, missing)
		r.WantLayout("0+3 rw-p um")
	}),
	seedCase("unregister-others", []string{"A.7.5", "A.15.14"}, func(c *C, p *Proc) {
		u, other := p.UFFD(0), p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		other.Unregister(r.Pages(0, 1)).Err(OK) // nobody asks who it belongs to
		r.WantLayout("0+1 rw-p, 1+1 rw-p um")
	}),
	seedCase("unregister-wakes-nobody", []string{"A.7.6", "A.15.14"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		t := p.NewThread().Load(r.Start).Blocked()
		u.wantRecords(8, uint64(r.Start))
		u.Unregister(r.Range).Err(OK)
		t.StillBlocked()
		u.Wake(r.Range).Err(OK)
		t.Value(0)
	}),
}

var seedQueueCases = []Case{
	seedCase("wake-nobody", []string{"A.8.1", "A.8.3", "A.15.7"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.Map(1)
		u.Wake(r.Range).Err(ENOENT)
	}),
	seedCase("wake-unread", []string{"A.8.4", "A.14.6", "A.15.6"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		t := p.NewThread().Load(r.At(0)).Blocked()
		u.Wake(r.Range).Err(ENOENT)
		t.StillBlocked()
		Is(c, "poll", u.Poll(), PollIn) // and stays true
		u.wantRecords(8, uint64(r.At(0)))
		u.Wake(r.Pages(1, 1)).Err(ENOENT)
		u.release(r.Range)
		t.Value(0)
	}),
	seedCase("wake-all", []string{"A.8.5", "A.14.4"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		read := []*Pending{p.NewThread().Load(r.At(0)).Blocked(), p.NewThread().Load(r.At(0) + 8).Blocked()}
		u.wantRecords(16, uint64(r.At(0)), uint64(r.At(0)))
		unread := p.NewThread().Load(r.At(1)).Blocked()
		u.release(r.Range)
		for _, t := range read {
			t.Value(0)
		}
		unread.StillBlocked()
		u.WantQueue(1, 1)
		u.wantRecords(8, uint64(r.At(1)))
		u.Wake(r.Range).Err(OK)
		unread.Value(0)
		u.WantQueue(0, 0)
	}),
	seedCase("refault", []string{"A.11.6", "A.15.16"}, func(c *C, p *Proc) {
		// Woken without a page, the thread may not wait a second time.
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		t := p.NewThread().Load(r.Start).Blocked()
		u.wantRecords(8, uint64(r.Start))
		u.Wake(r.Range).Err(OK)
		if res := t.Done(); res.Signal != SIGBUS {
			c.Failf("woken without a page: %v, want SIGBUS", res)
		}
		u.seedQuiet()
	}),
	seedCase("read-sizes", []string{"A.9.2", "A.9.3", "A.15.8"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.Map(4)
		u.Watch(r.Range, missing)
		for i := range 4 {
			p.NewThread().Store(r.At(i)+0x18, 1).Blocked()
		}
		for _, n := range []int{0, 7} {
			_, errno := u.Records(n)
			Is(c, fmt.Sprintf("read of %d bytes", n), errno, EINVAL)
		}
		u.wantRecords(15, uint64(r.At(3))|seedWrite)
		u.wantRecords(80, uint64(r.At(2))|seedWrite, uint64(r.At(1))|seedWrite, uint64(r.At(0))|seedWrite)
		u.seedQuiet()
	}),
	seedCase("last-in-first-out", []string{"A.9.8", "A.1.1", "A.15.1", "A.15.2", "A.15.3"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.Map(3)
		u.Watch(r.Range, missing)
		p.NewThread().Load(r.At(0)).Blocked()
		p.NewThread().Load(r.At(1)).Blocked()
		u.wantRecords(8, uint64(r.At(1)))
		p.NewThread().Load(r.At(2)).Blocked()
		u.wantRecords(16, uint64(r.At(2)), uint64(r.At(0)))
	}),
	seedCase("read-waits", []string{"A.9.4", "A.9.5", "A.9.6"}, func(c *C, p *Proc) {
		u := p.NewUFFD(0)
		u.API(uapi.UFFD_API, 0).Err(OK)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		reader := p.NewThread()
		a := p.scratch(64)
		c.Must(p.p.Handle(false))
		read := reader.Begin(Read, u.fd, a, 64).Asleep()
		c.Must(reader.t.Signal(SIGUSR1))
		read.Err(EINTR)
		read = reader.Begin(Read, u.fd, a, 64).Asleep()
		p.NewThread().Load(r.Start).Blocked()
		read.Value(8) // only for the first
		Is(c, "poll of a blocking descriptor", u.Poll(), 0)
	}),
	seedCase("read-lost", []string{"A.9.7"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		t := p.NewThread().Load(r.Start).Blocked()
		p.Begin(Read, u.fd, 8, 8).Err(EFAULT)
		u.seedQuiet()
		u.WantQueue(0, 1)
		t.StillBlocked()
		u.release(r.Range)
		t.Value(0)
	}),
	seedCase("two-readers", []string{"A.9.9"}, func(c *C, p *Proc) {
		// Each fault wakes every reader, and one of them gets it.
		u := p.NewUFFD(0)
		u.API(uapi.UFFD_API, 0).Err(OK)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		a, b := p.scratch(8), p.scratch(8)
		reads := []*Pending{p.NewThread().Begin(Read, u.fd, a, 8).Asleep(), p.NewThread().Begin(Read, u.fd, b, 8).Asleep()}
		p.NewThread().Load(r.At(0)).Blocked()
		p.NewThread().Load(r.At(1)).Blocked()
		for _, t := range reads {
			t.Value(8)
		}
		got := []uint64{le64(p.get(a, 8)), le64(p.get(b, 8))}
		slices.Sort(got)
		Is(c, "records", fmt.Sprint(got), fmt.Sprint([]uint64{uint64(r.At(0)), uint64(r.At(1))}))
	}),
	seedCase("poll", []string{"A.10.2", "A.10.3", "A.15.11"}, func(c *C, p *Proc) {
		u := p.NewUFFD(0) // O_NONBLOCK is not required
		u.API(uapi.UFFD_API, 0).Err(OK)
		Is(c, "poll", u.Poll(), 0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		p.NewThread().Load(r.Start).Blocked()
		Is(c, "poll", u.Poll(), PollIn)
		u.wantRecords(8, uint64(r.Start))
		Is(c, "poll", u.Poll(), 0)
	}),
	seedCase("fdinfo", []string{"A.13.1"}, func(c *C, p *Proc) {
		u := p.UFFD(0)
		Is(c, "fdinfo", u.Fdinfo(), "pending:\t0\ntotal:\t0\nAPI:\taa:1:8000000000000007\n")
		r := p.Map(2)
		u.Watch(r.Range, missing)
		p.NewThread().Load(r.At(0)).Blocked()
		p.NewThread().Load(r.At(1)).Blocked()
		u.WantQueue(2, 2)
		u.wantRecords(8, uint64(r.At(1)))
		u.WantQueue(1, 2)
	}),
}

var seedCases = slices.Concat(seedOpenCases, seedRegisterCases, seedQueueCases, seedFaultCases, seedRaceCases)

// highest returns a range above everything that is mapped.
func (p *Proc) highest() mem.Range { return mem.MakeRange(1<<47-2*mem.PageSize, mem.PageSize) }
