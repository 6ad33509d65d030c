// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"context"
	"encoding/binary"
	"errors"
	"syscall"
	"testing"

	"github.com/faultline-go/faultline/uffd/uapi"
)

// seedRead reads n bytes of 8-byte records.
func (r *rig) seedRead(n uint64) ([]uint64, syscall.Errno) {
	r.t.Helper()
	buf := r.scratch + 8*page
	got, errno := r.th.Read(r.fd, buf, n)
	if errno != 0 {
		return nil, errno
	}
	b := make([]byte, got)
	if err := r.th.Load(context.Background(), buf, b); err != nil {
		r.t.Fatal(err)
	}
	var out []uint64
	for ; len(b) > 0; b = b[8:] {
		out = append(out, binary.LittleEndian.Uint64(b))
	}
	return out, 0
}

func (r *rig) seedWake(a, n uint64, want syscall.Errno) {
	r.t.Helper()
	_, errno := r.ioctl(r.fd, uapi.UFFDIO_WAKE, a, n)
	r.want("wake", errno, want)
}

// TestSeedHandshake covers A.2, A.3, A.4, A.13: no gate, one word read, a
// second handshake refused with the argument untouched.
func TestSeedHandshake(t *testing.T) {
	inBubble(t, Seed, func(r *rig) {
		_, errno := r.th.Userfaultfd(1)
		r.want("USER_MODE_ONLY", errno, EINVAL)
		if fl, _ := r.th.Fcntl(r.fd, FGetfl, 0); fl&3 != ORdwr {
			r.t.Errorf("flags %#x", fl)
		}
		_, errno = r.th.Write(r.fd, 0, 8)
		r.want("write", errno, EINVAL)
		a := r.mmap(4 * page)
		r.register(a, page, missing) // before the handshake
		_, errno = r.seedRead(8)
		r.want("read", errno, EINVAL)
		fds := []PollFD{{FD: r.fd, Events: PollIn}}
		if n, _ := r.th.Poll(fds, 0); n != 1 || fds[0].Revents != PollErr {
			r.t.Errorf("poll says %+v", fds)
		}
		w, errno := r.ioctl(r.fd, uapi.UFFDIO_API, 0xab, 5, 6)
		if r.want("wrong version", errno, EINVAL); w[0]|w[1]|w[2] != 0 {
			r.t.Errorf("struct %#x is not zeroed", w)
		}
		w, errno = r.ioctl(r.fd, uapi.UFFDIO_API, uapi.UFFD_API, 0xdead, 0xbeef)
		if r.must("API", errno); w[1] != 1 || w[2] != 0x8000000000000003 {
			r.t.Errorf("answer %#x", w)
		}
		w, errno = r.ioctl(r.fd, uapi.UFFDIO_API, uapi.UFFD_API, 7, 8)
		if r.want("second API", errno, EINVAL); w[1] != 7 || w[2] != 8 {
			r.t.Errorf("struct %#x was touched", w)
		}
		if info, want := r.p.Fdinfo(r.fd), "pending:\t0\ntotal:\t0\nAPI:\taa:1:8000000000000007\n"; info != want {
			r.t.Errorf("fdinfo %q, want %q", info, want)
		}
		_, errno = r.ioctl(r.fd, uapi.UFFDIO_COPY, uint64(a), uint64(a), page, 0, 0)
		r.want("copy", errno, EINVAL)
	})
}

// TestSeedRead covers A.9, A.8 and A.14.6: the latest fault is read first, as
// 8 bytes with flag bits; a wake frees those that were read, and only them.
func TestSeedRead(t *testing.T) {
	inBubble(t, Seed, func(r *rig) {
		a := r.area(4*page, missing, 0)
		r.seedWake(uint64(a), page, ENOENT)
		first, second := r.load(a+1), r.store(a+page)
		r.seedWake(uint64(a), 4*page, ENOENT) // nobody has read them
		r.blocked(first)
		if info := r.p.Fdinfo(r.fd); info[:21] != "pending:\t2\ntotal:\t2\nA" {
			r.t.Errorf("fdinfo %q", info)
		}
		_, errno := r.seedRead(7)
		r.want("read of 7 bytes", errno, EINVAL)
		got, errno := r.seedRead(8)
		if r.must("read", errno); got[0] != uint64(a)+page|1 {
			r.t.Errorf("read %#x first", got[0])
		}
		got, errno = r.seedRead(64)
		if r.must("read", errno); len(got) != 1 || got[0] != uint64(a) {
			r.t.Errorf("then %#x", got)
		}
		_, errno = r.seedRead(8)
		r.want("read", errno, EAGAIN)
		r.seedWake(uint64(a)+2*page, page, ENOENT) // nobody waits there
		r.seedWake(0, page, EINVAL)                // below mmap_min_addr
		// Nothing has come: the access may not wait a second time.
		r.seedWake(uint64(a), 2*page, 0)
		for _, c := range []*touch{first, second} {
			if !c.ended() {
				r.t.Fatal("not woken")
			}
			if sig, ok := errors.AsType[*Signal](c.err); !ok || sig.Signo != SIGBUS {
				r.t.Errorf("the second fault of an access: %v", c.err)
			}
		}
	})
}

// TestSeedRegister covers A.6 and A.7.
func TestSeedRegister(t *testing.T) {
	inBubble(t, Seed, func(r *rig) {
		r.api(0)
		a := r.mmap(4 * page)
		_, shared := r.memfd(page, 0, MapShared)
		reg := func(a, n, mode uint64) syscall.Errno {
			w, errno := r.ioctl(r.fd, uapi.UFFDIO_REGISTER, a, n, mode, 0)
			if errno == 0 && w[3] != 4 {
				r.t.Errorf("answer %#x", w[3])
			}
			return errno
		}
		r.want("mode 0", reg(uint64(a), page, 0), EINVAL)
		r.want("mode WP", reg(uint64(a), page, 2), EINVAL)
		r.want("mode MISSING|WP", reg(uint64(a), page, 3), EINVAL)
		r.want("shared memory", reg(uint64(shared), page, 1), EINVAL)
		r.want("above all memory", reg(mmapTop, page, 1), ENOMEM)
		r.want("a hole", reg(0x10000, page, 1), EINVAL)
		r.must("register", reg(uint64(a)+page, page, 1))
		other, errno := r.th.Userfaultfd(ONonblock)
		r.must("userfaultfd", errno)
		mine := r.fd
		r.fd = other
		r.want("another's", reg(uint64(a), 4*page, 1), EBUSY)
		load := r.load(a + page)
		r.blocked(load)
		// A.7: no test of ownership, and nobody is woken.
		_, errno = r.ioctl(other, uapi.UFFDIO_UNREGISTER, uint64(a), 4*page)
		r.must("unregister", errno)
		r.blocked(load)
		r.fd = mine
		_, errno = r.seedRead(8)
		r.must("read", errno)
		r.seedWake(uint64(a), 4*page, 0)
		r.got(load, 0)
		// A.6.10: the answer cannot be written, and nothing is registered.
		ro := r.mmap(page)
		b := binary.LittleEndian.AppendUint64(nil, uint64(a))
		b = binary.LittleEndian.AppendUint64(b, 4*page)
		b = binary.LittleEndian.AppendUint64(b, 1)
		if err := r.th.Store(context.Background(), ro, b); err != nil {
			r.t.Fatal(err)
		}
		r.must("mprotect", r.th.Mprotect(ro, page, ProtRead))
		_, errno = r.th.Ioctl(r.fd, uapi.UFFDIO_REGISTER, ro)
		r.want("register", errno, EFAULT)
		r.got(r.load(a+2*page), 0)
	})
}

// TestSeedSignals covers A.11: ordinary signals wait, a fatal one does not.
func TestSeedSignals(t *testing.T) {
	inBubble(t, Seed, func(r *rig) {
		a := r.area(page, missing, 0)
		load := r.load(a)
		load.th.Signal(10)
		r.blocked(load)
		if load.th.Handled() != 0 {
			r.t.Error("the handler ran")
		}
		r.p.Kill()
		if !load.ended() || load.err != ErrKilled {
			r.t.Errorf("killed: %v", load.err)
		}
	})
}

// TestSeedClose covers A.12: everybody goes on, read or not.
func TestSeedClose(t *testing.T) {
	inBubble(t, Seed, func(r *rig) {
		a := r.area(2*page, missing, 0)
		read, unread := r.load(a), r.load(a+page)
		if _, errno := r.seedRead(8); errno != 0 {
			r.t.Fatal(errno)
		}
		r.must("close", r.th.Close(r.fd))
		r.got(read, 0)
		r.got(unread, 0)
	})
}
