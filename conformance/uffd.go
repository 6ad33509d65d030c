// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"strings"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// Modes and features under short names: cases are full of them.
const (
	missing = uapi.UFFDIO_REGISTER_MODE_MISSING
	wp      = uapi.UFFDIO_REGISTER_MODE_WP
	minor   = uapi.UFFDIO_REGISTER_MODE_MINOR
)

// UFFD is a descriptor, and the thread that uses it.
type UFFD struct {
	th *Thread
	fd uint64
}

// NewUFFD opens a descriptor that does not block, without a handshake. A
// process without privilege gets it by way of [UFFD_USER_MODE_ONLY].
func (t *Thread) NewUFFD(flags int) *UFFD {
	return &UFFD{th: t, fd: t.Do(Userfaultfd, flags)}
}

// UFFD opens a descriptor that does not block and makes the handshake.
func (t *Thread) UFFD(features uapi.Features) *UFFD {
	u := t.NewUFFD(ONonblock | OCloexec)
	if r := u.API(uapi.UFFD_API, features); r.Errno != OK {
		t.c.Failf("UFFDIO_API for %v: %v", features, r.Errno)
	}
	return u
}

// On returns the descriptor as used by another thread of the process.
func (u *UFFD) On(th *Thread) *UFFD { return &UFFD{th: th, fd: u.fd} }

// untouched is what output words hold before a call.
const untouched = 0x5a5a_5a5a_5a5a

// Answer is how an ioctl ended.
type Answer struct {
	c     *C
	what  string
	Errno Errno
	Words []uint64 // the struct
}

// Word returns the last word of the struct, which most ioctls put their
// result in.
func (a Answer) Word() int64 { return int64(a.Words[len(a.Words)-1]) }

// Is checks the errno and the result word.
func (a Answer) Is(errno Errno, word int64) {
	if a.Errno != errno || a.Word() != word {
		a.c.Failf("%s: got %v and result %d, want %v and %d", a.what, a.Errno, a.Word(), errno, word)
	}
}

// Failed checks for an errno that is also, negated, the result word.
func (a Answer) Failed(errno Errno) { a.Is(errno, -int64(errno)) }

// Refused checks for an errno, with the result word untouched.
func (a Answer) Refused(errno Errno) { a.Is(errno, untouched) }

// Err checks the errno of an ioctl without a result word.
func (a Answer) Err(errno Errno) {
	if a.Errno != errno {
		a.c.Failf("%s: got %v, want %v", a.what, a.Errno, errno)
	}
}

// Raw makes an ioctl with a struct at a.
func (u *UFFD) Raw(request uint64, a any) Errno {
	return u.th.Call(Ioctl, u.fd, request, a).Errno
}

// BeginIoctl starts an ioctl with a struct of words.
func (u *UFFD) BeginIoctl(request uint64, arg ...uint64) (*Pending, func() Answer) {
	a := u.th.put(words(arg...))
	p := u.th.Begin(Ioctl, u.fd, request, a)
	p.what = fmt.Sprintf("%s%x", requestName(request), arg)
	return p, func() Answer {
		r := p.Done()
		b := u.th.get(a, 8*len(arg))
		ans := Answer{c: u.th.c, what: p.what, Errno: r.Errno}
		for ; len(b) > 0; b = b[8:] {
			ans.Words = append(ans.Words, le64(b))
		}
		return ans
	}
}

// Ioctl makes an ioctl with a struct of words.
func (u *UFFD) Ioctl(request uint64, arg ...uint64) Answer {
	_, finish := u.BeginIoctl(request, arg...)
	return finish()
}

func requestName(request uint64) string {
	if s, ok := uapi.RequestName(uint32(request)); ok {
		return strings.TrimPrefix(s, "UFFDIO_")
	}
	return fmt.Sprintf("request %#x", request)
}

// API makes the handshake.
func (u *UFFD) API(api uint64, f uapi.Features) Answer {
	return u.Ioctl(uapi.UFFDIO_API, api, uint64(f), untouched)
}

// size is the length of r even where it wraps, which cases try.
func size(r mem.Range) uint64 { return uint64(r.End - r.Start) }

// Register registers a range.
func (u *UFFD) Register(r mem.Range, mode uapi.RegisterMode) Answer {
	return u.Ioctl(uapi.UFFDIO_REGISTER, uint64(r.Start), size(r), uint64(mode), untouched)
}

// Watch registers a range, which must work.
func (u *UFFD) Watch(r mem.Range, mode uapi.RegisterMode) { u.Register(r, mode).Err(OK) }

// Unregister makes UFFDIO_UNREGISTER.
func (u *UFFD) Unregister(r mem.Range) Answer {
	return u.Ioctl(uapi.UFFDIO_UNREGISTER, uint64(r.Start), size(r))
}

// Wake makes UFFDIO_WAKE.
func (u *UFFD) Wake(r mem.Range) Answer {
	return u.Ioctl(uapi.UFFDIO_WAKE, uint64(r.Start), size(r))
}

// Fill copies pages of byte v to a range.
func (u *UFFD) Fill(r mem.Range, v byte) Answer { return u.Copy(r, u.th.fill(v, r.Len()), 0) }

// Copy makes UFFDIO_COPY.
func (u *UFFD) Copy(r mem.Range, src mem.Addr, mode uapi.CopyMode) Answer {
	return u.Ioctl(uapi.UFFDIO_COPY, uint64(r.Start), uint64(src), size(r), uint64(mode), untouched)
}

// Zero makes UFFDIO_ZEROPAGE.
func (u *UFFD) Zero(r mem.Range, mode uapi.ZeropageMode) Answer {
	return u.Ioctl(uapi.UFFDIO_ZEROPAGE, uint64(r.Start), size(r), uint64(mode), untouched)
}

// Continue makes UFFDIO_CONTINUE.
func (u *UFFD) Continue(r mem.Range, mode uapi.ContinueMode) Answer {
	return u.Ioctl(uapi.UFFDIO_CONTINUE, uint64(r.Start), size(r), uint64(mode), untouched)
}

// Poison makes UFFDIO_POISON.
func (u *UFFD) Poison(r mem.Range, mode uapi.PoisonMode) Answer {
	return u.Ioctl(uapi.UFFDIO_POISON, uint64(r.Start), size(r), uint64(mode), untouched)
}

// Move makes UFFDIO_MOVE.
func (u *UFFD) Move(dst mem.Range, src mem.Addr, mode uapi.MoveMode) Answer {
	return u.Ioctl(uapi.UFFDIO_MOVE, uint64(dst.Start), uint64(src), size(dst), uint64(mode), untouched)
}

// Protect makes UFFDIO_WRITEPROTECT.
func (u *UFFD) Protect(r mem.Range, mode uapi.WriteProtectMode) Answer {
	return u.Ioctl(uapi.UFFDIO_WRITEPROTECT, uint64(r.Start), size(r), uint64(mode))
}

// Close closes the descriptor.
func (u *UFFD) Close() { u.th.Do(Close, u.fd) }

// Poll returns what poll(2) says of the descriptor now.
func (u *UFFD) Poll() int {
	a := u.th.put(words(u.fd | 1<<32)) // struct pollfd: fd, events, revents
	u.th.Do(Poll, a, 1, 0)
	return int(le64(u.th.get(a, 8)) >> 48)
}

// Fdinfo returns the lines of the descriptor's fdinfo that are its own.
func (u *UFFD) Fdinfo() string {
	text, err := u.th.proc.p.Fdinfo(int(u.fd))
	u.th.c.Must(err)
	if i := strings.Index(text, "pending:"); i > 0 {
		text = text[i:]
	}
	return text
}

// WantQueue checks how many faults are unread, and how many there are.
func (u *UFFD) WantQueue(pending, total int) {
	want := fmt.Sprintf("pending:\t%d\ntotal:\t%d\n", pending, total)
	if got := u.Fdinfo(); !strings.HasPrefix(got, want) {
		u.th.c.Failf("fdinfo: got %q, want %q", got, want)
	}
}
