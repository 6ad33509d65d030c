// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// mincore returns what mincore(2) says of the pages of 4 KiB at the starts of
// the first n pages of r: 1 is there, and 0 not.
func (r *Region) mincore(n int) (there []byte) {
	vec := r.proc.scratch(n * int(r.Page()/mem.PageSize))
	r.proc.Do(Mincore, r.Start, uint64(n)*r.Page(), vec)
	for i := range n {
		there = append(there, r.proc.get(vec+mem.Addr(uint64(i)*r.Page()/mem.PageSize), 1)[0]&1)
	}
	return there
}

var fileCases = []Case{
	{Name: "mincore/asks-nobody", Rows: []string{"B.12.6"}, Memory: all, Features: uapi.UFFD_FEATURE_POISON | wpAny, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(4)
		u.Watch(r.Range, missing|wp)
		Is(c, "pages there before", fmt.Sprint(r.mincore(4)), "[0 0 0 0]")
		u.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
		u.Poison(r.Pages(1, 1), 0).Is(OK, int64(r.Page()))
		u.Protect(r.Pages(2, 1), protect).Err(OK)
		Is(c, "page, poison, marker, nothing", fmt.Sprint(r.mincore(4)), "[1 0 0 0]")
		// What only the file has counts where pages are small.
		if c.Memory.File() {
			p.Puts(r.Alias().At(3), 'f')
			want := "[1 0 0 1]"
			if c.Memory.Huge() { // once there is a page table
				want = "[1 0 0 0]"
			}
			Is(c, "with a page of the file", fmt.Sprint(r.mincore(4)), want)
		}
		u.Quiet()
	}},
	{Name: "mincore/refused", Rows: []string{"B.12.6"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(3)
		u.Watch(r.Range, missing)
		vec := p.put([]byte{7, 7, 7, 7})
		p.Begin(Mincore, r.Start+1, r.Page(), vec).Err(EINVAL)
		p.Begin(Mincore, r.Start, uint64(1)<<63, vec).Err(ENOMEM)
		p.Begin(Mincore, r.Start, r.Page(), 8).Err(EFAULT)
		// What comes before a hole is told.
		p.Begin(Mincore, r.At(2), 2*r.Page(), vec).Err(ENOMEM)
		Is(c, "vector", fmt.Sprint(p.get(vec, 4)), "[0 7 7 7]")
		// A last part of a page counts, and nothing is nothing.
		p.Do(Mincore, r.Start, r.Page()+1, vec)
		p.Do(Mincore, r.Start, 0, 8)
		Is(c, "vector", fmt.Sprint(p.get(vec, 4)), "[0 0 7 7]")
		u.Quiet()
		// The vector is memory like other memory.
		t := p.NewThread().Begin(Mincore, r.Start, r.Page(), r.At(1)).Blocked()
		u.WantFault(r.At(1), writeFault)
		u.Fill(r.Pages(1, 1), 'v').Is(OK, int64(r.Page()))
		t.Value(0)
		p.Sees(r.At(1), 0)
	}},
	{Name: "read/no-positions", Rows: []string{"B.3.7", "B.11.6"}, Memory: small, Since: "6.12", run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r, _ := p.waiting(u, 1)
		a := p.scratch(64)
		iov := p.put(words(uint64(a), 64))
		for _, whence := range []int{SeekSet, SeekCur, SeekEnd, SeekData, SeekHole} {
			p.Begin(Lseek, u.fd, 32, whence).Value(0)
		}
		p.Begin(Lseek, u.fd, 0, 5).Err(EINVAL)
		p.Begin(Pread, u.fd, a, 64, 0).Err(ESPIPE)
		p.Begin(Pread, u.fd, a, 64, -1).Err(EINVAL)
		p.Begin(Preadv2, u.fd, iov, 1, 0, 0).Err(ESPIPE)
		p.Begin(Preadv2, u.fd, iov, 1, -2, 0).Err(EINVAL)
		p.Begin(Pwrite, u.fd, a, 8, 0).Err(ESPIPE)
		// None of them has taken the message, nor do flags but one matter.
		u.WantQueue(1, 1)
		p.Begin(Preadv2, u.fd, iov, 1, -1, 1<<20).Err(EOPNOTSUPP)
		p.Begin(Preadv2, u.fd, iov, 1, -1, RwfHipri).Value(uapi.MsgSize)
		m, err := uapi.ParseMsg(p.get(a, uapi.MsgSize))
		c.Must(err)
		addr, _, _ := m.Fault()
		Is(c, "address", addr, r.At(0))
	}},
	{Name: "read/vectors-in-part", Rows: []string{"B.11.6", "B.11.5", "B.11.2", "C.8"}, Memory: small, Since: "6.12", run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		_, _ = p.waiting(u, 6)
		a := p.scratch(128)
		read := func(iov ...uint64) *Pending {
			return p.Begin(Preadv2, u.fd, p.put(words(iov...)), len(iov)/2, -1, RwfNowait)
		}
		// The sum of the buffers counts, empty ones and all.
		read(uint64(a), 16, 8, 0, uint64(a)+16, 15).Err(EINVAL)
		read(uint64(a), 16, 8, 0, uint64(a)+16, 47).Value(uapi.MsgSize)
		u.WantQueue(5, 6)
		// A buffer that cannot be written ends the read before the message
		// that needs it, which is lost: the first is an error,
		read(uint64(a), 16, 8, 16).Err(EFAULT)
		u.WantQueue(4, 6)
		// and a later one a short count.
		read(uint64(a), uapi.MsgSize+16, 8, 64).Value(uapi.MsgSize)
		u.WantQueue(2, 6)
		// Only as many are there.
		read(uint64(a), 128).Value(2 * uapi.MsgSize)
		read(uint64(a), 128).Err(EAGAIN)
	}},
	{Name: "read/nowait", Rows: []string{"B.11.6", "B.11.4"}, Memory: small, Since: "6.12", run: func(c *C) {
		// A descriptor that blocks does not for one call.
		p := c.Process()
		u := p.NewUFFD(0)
		u.API(uapi.UFFD_API, 0).Err(OK)
		iov := p.put(words(uint64(p.scratch(64)), 64))
		p.Begin(Preadv2, u.fd, iov, 1, -1, RwfNowait).Err(EAGAIN)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		p.NewThread().Load(r.At(0)).Blocked()
		p.Begin(Preadv2, u.fd, iov, 1, -1, RwfNowait).Value(uapi.MsgSize)
		p.Begin(Preadv2, u.fd, iov, 1, -1, RwfNowait).Err(EAGAIN)
		p.NewThread().Begin(Preadv2, u.fd, iov, 1, -1, 0).Asleep()
	}},
	{Name: "self-mem/read", Rows: []string{"B.12.3", "C.36"}, Memory: small, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(3)
		u.Watch(r.Range, missing)
		u.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
		fd, buf := p.Do(OpenSelfMem, ORdonly), p.pageScratch(2*mem.PageSize)
		// What comes before the missing page is read,
		p.Begin(Pread, fd, buf, 2*mem.PageSize, r.Start+0x800).Value(0x800)
		Is(c, "bytes", string(p.get(buf+0x7fe, 2)), "aa")
		p.Begin(Pread, fd, buf, 8, r.At(1)).Err(EIO)
		// by way of a position too,
		p.Begin(Lseek, fd, r.At(1)-8, SeekSet).Value(r.At(1) - 8)
		p.Begin(Read, fd, buf, 16).Value(8)
		p.Begin(Lseek, fd, 0, SeekCur).Value(r.At(1))
		p.Begin(Read, fd, buf, 16).Err(EIO)
		p.Begin(Lseek, fd, 0, SeekEnd).Err(EINVAL)
		// and whatever the protection.
		p.Do(Mprotect, r.Start, r.Page(), ProtNone)
		p.Begin(Pread, fd, buf, 8, r.Start).Value(8)
		p.Load(r.Start).Segv(SegvAccErr)
		p.Begin(Pread, fd, buf, 8, r.End+mem.PageSize).Err(EIO)
		p.Begin(Pwrite, fd, buf, 8, r.Start).Err(EBADF)
		u.Quiet()
	}},
	{Name: "self-mem/read-to-missing", Rows: []string{"B.12.6", "B.12.3"}, Memory: small, run: func(c *C) {
		// The buffer is the caller's own, and worth a wait.
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		u.Fill(r.Pages(0, 1), 'a').Is(OK, int64(r.Page()))
		fd := p.Do(OpenSelfMem, ORdonly)
		t := p.NewThread().Begin(Pread, fd, r.At(1), 8, r.At(0)).Blocked()
		u.WantFault(r.At(1), writeFault)
		u.Zero(r.Pages(1, 1), 0).Is(OK, int64(r.Page()))
		t.Value(8)
		p.Sees(r.At(1)+7, 'a')
		p.Begin(Pread, fd, 8, 8, r.At(0)).Err(EFAULT)
	}},
	{Name: "self-mem/write", Rows: []string{"B.12.3", "C.36"}, Memory: small, Features: wpAny, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(4)
		u.Watch(r.Range, missing|wp)
		u.Fill(r.Pages(0, 3), 'a').Is(OK, 3*int64(r.Page()))
		u.Protect(r.Pages(1, 1), protect).Err(OK)
		fd, buf := p.Do(OpenSelfMem, ORdwr), p.put([]byte("bbbbbbbb"))
		p.Begin(Pwrite, fd, buf, 8, r.At(0)).Value(8)
		p.Begin(Pwrite, fd, buf, 8, r.At(1)-4).Value(4) // the rest is protected
		p.Begin(Pwrite, fd, buf, 8, r.At(1)).Err(EIO)
		p.Begin(Pwrite, fd, buf, 8, r.At(3)).Err(EIO)
		u.Quiet()
		p.Sees(r.At(0)+7, 'b')
		p.Sees(r.At(1)-1, 'b')
		p.Sees(r.At(1), 'a')
		// Memory that may not be written can be, if it is private.
		p.Do(Mprotect, r.At(2), r.Page(), ProtRead)
		if c.Memory.Shared() {
			p.Begin(Pwrite, fd, buf, 8, r.At(2)).Err(EIO)
			return
		}
		p.Begin(Pwrite, fd, buf, 8, r.At(2)).Value(8)
		p.Sees(r.At(2), 'b')
		p.Store(r.At(2), 'c').Segv(SegvAccErr)
	}},
}
