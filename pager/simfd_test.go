// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"syscall"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

var _ Descriptor = (*sim)(nil)

// tell queues messages before all others.
func (k *sim) tell(msgs ...uapi.Msg) {
	k.mu.Lock()
	k.extra = append(k.extra, msgs...)
	k.mu.Unlock()
	k.fd.Interrupt()
}

// faultMsg is the message of a fault, for one that comes late.
func faultMsg(pg mem.Page, tid uint32) uapi.Msg {
	return uapi.Msg{Event: uapi.UFFD_EVENT_PAGEFAULT, Word: [3]uint64{0, uint64(pg.Addr()), uint64(tid)}}
}

func (k *sim) Read(msgs []uapi.Msg) (n int, errno syscall.Errno) {
	k.mu.Lock()
	n = copy(msgs, k.extra)
	k.extra = k.extra[n:]
	k.mu.Unlock()
	if n == len(msgs) {
		return n, 0
	}
	got, errno := k.fd.Read(msgs[n:])
	for i := range msgs[n : n+got] {
		if m := &msgs[n+i]; m.Event == uapi.UFFD_EVENT_FORK {
			// Events of forks come in the order of the forks.
			k.mu.Lock()
			c := k.heirs[0]
			k.heirs = k.heirs[1:]
			k.mu.Unlock()
			c.take(int(m.ForkFD()))
		}
	}
	if n > 0 {
		errno = 0
	}
	return n + got, errno
}

func (k *sim) Pending() bool {
	k.mu.Lock()
	told := len(k.extra) > 0
	k.mu.Unlock()
	return told || k.fd.Pending()
}

func (k *sim) Wait(timeout time.Duration) (bool, syscall.Errno) {
	if k.Pending() {
		return true, 0
	}
	return k.fd.Wait(timeout)
}

func (k *sim) Interrupt() { k.fd.Interrupt() }

func (k *sim) isStuck() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stuck
}

func (k *sim) Changing() bool {
	k.mu.Lock()
	on := k.stuck || k.changing
	k.mu.Unlock()
	return on || k.fd.Changing()
}

func (k *sim) Copy(dst mem.Addr, src []byte, mode uapi.CopyMode) (done int, errno syscall.Errno) {
	k.at("copy")
	k.mu.Lock()
	k.tried++
	stuck, hook, most := k.stuck, k.onCopy, k.short*mem.PageSize
	k.mu.Unlock()
	if stuck {
		return 0, syscall.EAGAIN
	}
	if hook != nil {
		hook(dst)
	}
	cut := most > 0 && len(src) > most
	if cut {
		src = src[:most]
	}
	if done, errno = k.fd.Copy(dst, src, mode); cut && errno == 0 {
		errno = syscall.EAGAIN
	}
	k.count()
	return done, errno
}

func (k *sim) Wake(r mem.Range) syscall.Errno {
	k.mu.Lock()
	k.wakes = append(k.wakes, r)
	k.mu.Unlock()
	return k.fd.Wake(r)
}

// woken reports whether Wake was called for pg.
func (k *sim) woken(pg mem.Page) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range k.wakes {
		if r.Contains(pg.Addr()) {
			return true
		}
	}
	return false
}

func (k *sim) Poison(r mem.Range, mode uapi.PoisonMode) (int, syscall.Errno) {
	if k.isStuck() {
		return 0, syscall.EAGAIN
	}
	return k.fd.Poison(r, mode)
}

func (k *sim) Close() error { return k.fd.Close() }
