// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"strings"

	"github.com/faultline-go/faultline/uffd/uapi"
)

// waiting registers n pages and has a thread wait at each, in order.
func (p *Proc) waiting(u *UFFD, n int) (*Region, []*Pending) {
	r := p.Map(n)
	u.Watch(r.Range, missing)
	var ts []*Pending
	for i := range n {
		ts = append(ts, p.NewThread().Load(r.At(i)).Blocked())
	}
	return r, ts
}

var readCases = []Case{
	{Name: "read/sizes", Rows: []string{"B.11.2", "C.7"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		_, _ = p.waiting(u, 6)
		for _, n := range []int{0, 1, 31} {
			_, errno := u.ReadN(n)
			Is(c, fmt.Sprintf("read of %d bytes", n), errno, EINVAL)
		}
		msgs, _ := u.ReadN(63)
		Is(c, "messages in 63 bytes", len(msgs), 1)
		msgs, _ = u.ReadN(64)
		Is(c, "messages in 64 bytes", len(msgs), 2)
		msgs, _ = u.ReadN(320)
		Is(c, "messages in 320 bytes", len(msgs), 3)
		u.Quiet()
	}},
	{Name: "read/first-in-first-out", Rows: []string{"B.11.3", "B.1.4", "C.9"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r, _ := p.waiting(u, 8)
		for i := range 8 {
			u.WantFault(r.At(i), readFault)
		}
	}},
	{Name: "read/faults-before-events", Rows: []string{"B.11.3", "C.9"}, Memory: small, Features: uapi.UFFD_FEATURE_EVENT_REMOVE, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(uapi.UFFD_FEATURE_EVENT_REMOVE)
		r := p.Map(4)
		u.Watch(r.Range, missing)
		drops := []*Pending{
			p.NewThread().Begin(Madvise, r.At(0), r.Page(), MadvDontneed).InEvent(),
			p.NewThread().Begin(Madvise, r.At(1), r.Page(), MadvDontneed).InEvent(),
		}
		u.WantQueue(0, 0)
		t := p.NewThread().Load(r.At(2)).Blocked()
		u.WantQueue(1, 1)
		u.WantFault(r.At(2), readFault)
		u.WantRange(uapi.UFFD_EVENT_REMOVE, r.Pages(0, 1))
		u.WantRange(uapi.UFFD_EVENT_REMOVE, r.Pages(1, 1))
		for _, d := range drops {
			d.Value(0)
		}
		u.Fill(r.Pages(2, 1), 'a').Is(OK, int64(r.Page()))
		t.Value('a')
	}},
	{Name: "read/bad-buffer", Rows: []string{"B.11.5", "C.8"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r, ts := p.waiting(u, 4)
		p.Begin(Read, u.fd, 8, uapi.MsgSize).Err(EFAULT)
		u.WantQueue(3, 4) // it is lost, and its thread waits on
		ts[0].StillBlocked()
		// The second of two is lost.
		buf := p.MapAs(Anon, 2, ProtRead|ProtWrite)
		p.Do(Mprotect, buf.At(1), buf.Page(), ProtNone)
		p.Begin(Read, u.fd, buf.At(1)-uapi.MsgSize, 2*uapi.MsgSize).Value(uapi.MsgSize)
		u.WantQueue(1, 4)
		u.WantFault(r.At(3), readFault)
		u.Quiet()
		u.Fill(r.Pages(0, 4), 'a').Is(OK, int64(r.Len()))
		for _, t := range ts {
			t.Value('a')
		}
	}},
	{Name: "read/vectors", Rows: []string{"B.11.6"}, Memory: small, Since: "6.12", run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r, _ := p.waiting(u, 2)
		a, b := p.scratch(64), p.scratch(64)
		// One message over two buffers.
		iov := p.put(words(uint64(a), 10, uint64(b), 22))
		p.Begin(Readv, u.fd, iov, 2).Value(32)
		m, err := uapi.ParseMsg(append(p.get(a, 10), p.get(b, 22)...))
		c.Must(err)
		addr, _, _ := m.Fault()
		Is(c, "address", addr, r.At(0))
		p.Begin(Preadv2, u.fd, iov, 2, -1, RwfNowait).Value(32)
		p.Begin(Preadv2, u.fd, iov, 2, -1, RwfNowait).Err(EAGAIN)
	}},
	{Name: "read/no-byte-of-a-vector", Rows: []string{"B.11.6", "B.12.17"}, Since: "6.12", run: func(c *C) {
		// It is nothing to read for whatever file, and so the handshake does
		// not matter; a read(2) of no byte is too small.
		p := c.Process()
		u := p.NewUFFD(ONonblock)
		for range 2 {
			a := p.scratch(32)
			iov := p.put(words(uint64(a), 0, uint64(a), 0))
			p.Begin(Readv, u.fd, iov, 0).Value(0)
			p.Begin(Readv, u.fd, 8, 0).Value(0)
			p.Begin(Readv, u.fd, iov, 1).Value(0)
			p.Begin(Readv, u.fd, iov, 2).Value(0)
			p.Begin(Readv, u.fd, iov, 1025).Err(EINVAL)
			p.Begin(Read, u.fd, a, 0).Err(EINVAL)
			u.API(uapi.UFFD_API, 0) // the second time is refused
		}
		p.Begin(Readv, none, 8, 0).Err(EBADF)
	}},
	{Name: "read/more-than-memory", Rows: []string{"B.11.6", "B.12.17"}, Since: "6.12", run: func(c *C) {
		// Where a buffer ends counts, not only what is stored there.
		const max, top = 0x7fff_f000, 1 << 62
		p := c.Process()
		u := p.UFFD(0)
		a := p.scratch(64)
		for _, n := range []uint64{top, 1<<63 - 1, 1 << 63, ^uint64(0)} {
			p.Begin(Read, u.fd, a, n).Err(EFAULT)
		}
		p.Begin(Read, u.fd, a, max+1).Err(EAGAIN)
		p.Begin(Read, u.fd, uint64(top), 0).Err(EFAULT)
		readv := func(iov ...uint64) *Pending { return p.Begin(Readv, u.fd, p.put(words(iov...)), len(iov)/2) }
		// A vector's length has a sign, which is looked at before any address;
		// a single buffer is shortened before it is looked at where it ends.
		readv(uint64(a), 1<<63).Err(EINVAL)
		readv(top, 8, uint64(a), 1<<63).Err(EINVAL)
		readv(uint64(a), 1<<63-1).Err(EAGAIN)
		readv(uint64(a), top, uint64(a), top).Err(EFAULT)
		readv(uint64(a), 32, top, 0).Err(EFAULT)
		readv(uint64(a), max, uint64(a), max).Err(EAGAIN)
	}},
	{Name: "read/blocking", Rows: []string{"B.11.4", "B.11.12"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.NewUFFD(0)
		u.API(uapi.UFFD_API, 0).Err(OK)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		reader := p.NewThread()
		a := p.scratch(64)
		read := reader.Begin(Read, u.fd, a, 64).Asleep()
		t := p.NewThread().Load(r.Start).Blocked()
		read.Value(32) // one, and does not wait for a second
		u.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
		t.Value('a')
		// The reader has the file: closing the number does not end its wait.
		read = reader.Begin(Read, u.fd, a, 64).Asleep()
		p.Do(Close, u.fd)
		t = p.NewThread().Load(r.At(1))
		read.Value(32)
		t.Value(0) // nobody has it any more
	}},
	{Name: "read/interrupted", Rows: []string{"B.11.4"}, run: func(c *C) {
		p := c.Process()
		u := p.NewUFFD(0)
		u.API(uapi.UFFD_API, 0).Err(OK)
		reader := p.NewThread()
		a := p.scratch(64)
		c.Must(p.p.Handle(false))
		read := reader.Begin(Read, u.fd, a, 64).Asleep()
		c.Must(reader.t.Signal(SIGUSR1))
		read.Err(EINTR)
		c.Must(p.p.Handle(true))
		read = reader.Begin(Read, u.fd, a, 64).Asleep()
		c.Must(reader.t.Signal(SIGUSR1))
		c.Eventually("the handler", func() bool { return reader.t.Handled() == 2 })
		read.Asleep()
	}},
}

var pollCases = []Case{
	{Name: "poll/readable", Rows: []string{"B.11.8"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		Is(c, "poll", u.Poll(), 0)
		r, ts := p.waiting(u, 1)
		Is(c, "poll", u.Poll(), PollIn)
		u.WantFault(r.At(0), readFault)
		Is(c, "poll", u.Poll(), 0)
		u.Fill(r.Range, 'a').Is(OK, int64(r.Page()))
		ts[0].Value('a')
	}},
	{Name: "poll/waits", Rows: []string{"B.11.8"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		a := p.put(words(u.fd | PollIn<<32))
		poll := p.NewThread().Begin(Poll, a, 1, -1).Asleep()
		p.NewThread().Load(r.Start).Blocked()
		poll.Value(1)
		Is(c, "revents", int(le64(p.get(a, 8))>>48), PollIn)
	}},
	{Name: "poll/blocking-descriptor", Rows: []string{"B.11.7", "C.4", "C.6"}, run: func(c *C) {
		p := c.Process()
		u := p.NewUFFD(0)
		Is(c, "poll before the handshake", u.Poll(), PollErr)
		u.API(uapi.UFFD_API, 0).Err(OK)
		Is(c, "poll", u.Poll(), PollErr)
		sets := p.put(words(1<<u.fd, 1<<u.fd))
		p.Begin(Select, u.fd+1, sets, sets+8, 0).Value(2)
		p.Do(Fcntl, u.fd, FSetfl, ONonblock)
		Is(c, "poll after O_NONBLOCK", u.Poll(), 0)
	}},
	{Name: "poll/edges", Rows: []string{"B.11.9"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		ep := p.Do(EpollCreate, 0)
		p.watchEdges(ep, u)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		Is(c, "edges before", p.edges(ep), 0)
		p.NewThread().Load(r.At(0)).Blocked()
		Is(c, "events of an edge", p.edges(ep), PollIn)
		Is(c, "edges again", p.edges(ep), 0)
		p.NewThread().Load(r.At(1)).Blocked() // while the first is unread
		Is(c, "events of an edge", p.edges(ep), PollIn)
	}},
	{Name: "poll/edges-before-handshake", Rows: []string{"B.11.9"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.NewUFFD(ONonblock)
		ep := p.Do(EpollCreate, 0)
		p.watchEdges(ep, u)
		Is(c, "events at first", p.edges(ep)&PollErr, PollErr)
		Is(c, "events then", p.edges(ep), 0)
		u.API(uapi.UFFD_API, 0).Err(OK)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		p.NewThread().Load(r.At(0)).Blocked()
		Is(c, "events of an edge", p.edges(ep), PollIn)
	}},
	{Name: "poll/edges-of-events", Rows: []string{"B.11.9"}, Memory: anon, Features: unmapEvent, Since: "6.12", run: func(c *C) {
		// Each event that is read makes an edge of those that are left.
		p := c.Process()
		u := p.UFFD(unmapEvent)
		ep := p.Do(EpollCreate, 0)
		p.watchEdges(ep, u)
		r := p.Map(3)
		u.Watch(r.Range, missing)
		var unmaps []*Pending
		for i := range 3 {
			unmaps = append(unmaps, p.NewThread().Begin(Munmap, r.At(i), r.Page()).InEvent())
			Is(c, "events of an edge", p.edges(ep), PollIn)
		}
		for i := range 3 {
			Is(c, "edges before the read", p.edges(ep), 0)
			u.WantRange(uapi.UFFD_EVENT_UNMAP, r.Pages(i, 1))
			unmaps[i].Value(0)
			for _, u := range unmaps[i+1:] {
				u.InEvent() // again: each makes the edge before it sleeps on
			}
			want := PollIn
			if i == 2 {
				want = 0
			}
			Is(c, "edges after the read", p.edges(ep), want)
		}
	}},
	{Name: "poll/epoll-forgets", Rows: []string{"B.11.9"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		ep, level := p.Do(EpollCreate, 0), p.Do(EpollCreate, 0)
		p.watchEdges(ep, u)
		p.Do(EpollCtl, level, EpollCtlAdd, u.fd, p.put(words(PollIn, 0)))
		_, waits := p.waiting(u, 1)
		Is(c, "events at first", p.edges(level), PollIn)
		// Another number for it is as good,
		dup := p.Do(Dup, u.fd)
		u.Close()
		Is(c, "events while there is a duplicate", p.edges(level), PollIn)
		// and without any it is watched no more.
		p.Do(Close, dup)
		waits[0].Value(0)
		Is(c, "events afterwards", p.edges(level), 0)
		Is(c, "edges afterwards", p.edges(ep), 0)
		// So is one that would go on to have something to tell.
		v := p.NewUFFD(ONonblock)
		p.Do(EpollCtl, level, EpollCtlAdd, v.fd, p.put(words(PollIn, 0)))
		Is(c, "events before the handshake", p.edges(level)&PollErr, PollErr)
		dup = p.Do(Dup, v.fd)
		v.Close()
		Is(c, "events of a duplicate", p.edges(level)&PollErr, PollErr)
		p.Do(Close, dup)
		Is(c, "events of a closed one", p.edges(level), 0)
		// One that blocks is in error for good.
		w := p.NewUFFD(0)
		p.Do(EpollCtl, level, EpollCtlAdd, w.fd, p.put(words(PollIn, 0)))
		dup = p.Do(Dup, w.fd)
		w.Close()
		Is(c, "events of a duplicate that blocks", p.edges(level), PollErr)
		p.Do(Close, dup)
		Is(c, "events of a closed one that blocked", p.edges(level), 0)
	}},
	{Name: "fdinfo/text", Rows: []string{"B.11.10"}, Memory: small, Features: uapi.UFFD_FEATURE_WP_ASYNC | uapi.UFFD_FEATURE_MOVE, run: func(c *C) {
		p := c.Process()
		Is(c, "fdinfo", p.NewUFFD(0).Fdinfo(), "pending:\t0\ntotal:\t0\nAPI:\taa:0:80000000000001ff\n")
		u := p.UFFD(uapi.UFFD_FEATURE_THREAD_ID | uapi.UFFD_FEATURE_PAGEFAULT_FLAG_WP)
		Is(c, "fdinfo", u.Fdinfo(), "pending:\t0\ntotal:\t0\nAPI:\taa:80000101:80000000000001ff\n")
		w := p.UFFD(uapi.UFFD_FEATURE_WP_ASYNC)
		if !strings.Contains(w.Fdinfo(), "API:\taa:8000a000:") {
			c.Failf("fdinfo of WP_ASYNC: %q", w.Fdinfo())
		}
		r, _ := p.waiting(u, 2)
		u.WantQueue(2, 2)
		u.Next()
		u.WantQueue(1, 2)
		u.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
		u.Fill(r.Pages(1, 1), 'a').Is(OK, int64(r.Page()))
		c.Eventually("an empty queue", func() bool { return strings.HasPrefix(u.Fdinfo(), "pending:\t0\ntotal:\t0\n") })
	}},
}

// watchEdges adds u to an epoll, edge-triggered.
func (p *Proc) watchEdges(ep uint64, u *UFFD) {
	// The struct is packed on amd64 only; this works for both layouts.
	ev := p.put(words(PollIn|EpollET, 0))
	p.Do(EpollCtl, ep, EpollCtlAdd, u.fd, ev)
}

// edges returns the events that an epoll has to tell, zero if none.
func (p *Proc) edges(ep uint64) int {
	ev := p.scratch(32)
	if p.Do(EpollWait, ep, ev, 1, 0) == 0 {
		return 0
	}
	return int(uint32(le64(p.get(ev, 8))))
}
