// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// uffd is the object behind a descriptor. It outlives its file for as long
// as a thread is on its way through it.
type uffd struct {
	k     *Kernel
	as    *space // whose faults it takes, for ever
	flags int    // of creation: O_CLOEXEC, O_NONBLOCK, UFFD_USER_MODE_ONLY

	// state has the features with the bit initialized, zero before the
	// handshake.
	state    atomic.Uint64
	released atomic.Bool // set once, before everybody is woken

	// changing counts events of the address space whose threads have not
	// gone on. It is raised with the lock of the address space held for
	// writing, so that no fill is under way then.
	changing atomic.Int32

	// readers are told with no lock held, perhaps once more after they are
	// off the list.
	readers atomic.Pointer[[]*reader] // replaced under mu
	// eventful is whether there are events, for who looks without the lock;
	// changed under mu.
	eventful atomic.Bool
	mu       sync.Mutex
	events   []*event // unread, in order; protected by mu

	_      [cacheLine]byte // the above is read for each fault, and this written
	faults faultQueue
}

// initialized is the bit of uffd.state that the handshake sets, as fdinfo
// shows it.
const initialized = 1 << 31

// reader is somebody who waits until there is something to read.
type reader struct {
	poke func()
}

func (k *Kernel) newUffd(as *space, flags int) *uffd {
	u := &uffd{k: k, as: as, flags: flags}
	u.faults.lifo = k.profile.lifo
	u.readers.Store(new([]*reader))
	return u
}

func (u *uffd) ready() bool { return u.state.Load()&initialized != 0 }

// has reports whether the descriptor was asked for a feature.
func (u *uffd) has(f uapi.Features) bool { return uapi.Features(u.state.Load())&f == f }

// wakeReaders tells those who wait for something to read. Who puts itself on
// the list looks for something to read after that, and so misses nothing that
// was queued before the list is looked at here.
func (u *uffd) wakeReaders() {
	for _, r := range *u.readers.Load() {
		r.poke()
	}
}

func (u *uffd) addReader(r *reader) {
	u.mu.Lock()
	defer u.mu.Unlock()
	readers := append(slices.Clone(*u.readers.Load()), r)
	u.readers.Store(&readers)
}

func (u *uffd) dropReader(r *reader) {
	u.mu.Lock()
	defer u.mu.Unlock()
	readers := slices.DeleteFunc(slices.Clone(*u.readers.Load()), func(x *reader) bool { return x == r })
	u.readers.Store(&readers)
}

// setEvents replaces the unread events. Preconditions: u.mu is held.
func (u *uffd) setEvents(events []*event) {
	u.events = events
	u.eventful.Store(len(events) > 0)
}

// pending reports whether a read would find something.
func (u *uffd) pending() bool { return u.faults.pending() || u.eventful.Load() }

// release is the end of the last file: the memory is nobody's again, and who
// waits goes on.
func (u *uffd) release() {
	u.released.Store(true)
	u.k.reach(PhaseReleased, nil, 0)
	u.as.mu.Lock()
	u.disownLocked()
	u.as.mu.Unlock()
	u.faults.wakeAll()
	u.mu.Lock()
	for _, e := range u.events {
		e.th.poke()
	}
	u.mu.Unlock()
	u.wakeReaders()
}

// disownLocked takes the descriptor off every VMA. Preconditions: the lock of
// the address space is held for writing.
func (u *uffd) disownLocked() {
	as := u.as
	for v := as.vmas.find(0); v != nil; v = as.vmas.next(v) {
		if v.uffd != u {
			continue
		}
		as.unprotect(v, v.rng())
		// The whole of a VMA is changed, which needs no split.
		v, _ = as.change(v, v.rng(), v.flags&^vmUffd, nil)
	}
}

// Userfaultfd makes a descriptor for the memory of the thread's process.
func (th *Thread) Userfaultfd(flags int) (int, syscall.Errno) {
	th.enter()
	defer th.leave()
	return th.p.k.profile.create(th, flags)
}

// OpenDevice opens /dev/userfaultfd, whose ioctl USERFAULTFD_IOC_NEW makes
// descriptors without a test of privilege. Opening it takes privilege.
func (th *Thread) OpenDevice() (int, syscall.Errno) {
	p := th.p
	if !p.k.profile.device {
		return -1, ENOENT
	}
	if !p.options.Privileged {
		return -1, EACCES
	}
	f := newFile(ORdwr)
	f.dev = true
	return th.own(f, true)
}

const newFlags = OCloexec | ONonblock | uapi.UFFD_USER_MODE_ONLY

// createLinux618 is userfaultfd(2). Privilege comes before the flags.
func createLinux618(th *Thread, flags int) (int, syscall.Errno) {
	p := th.p
	if flags&uapi.UFFD_USER_MODE_ONLY == 0 && !p.options.Privileged && !p.k.unprivileged {
		return -1, EPERM
	}
	return th.newDescriptor(flags)
}

func (th *Thread) newDescriptor(flags int) (int, syscall.Errno) {
	if flags&^newFlags != 0 {
		return -1, EINVAL
	}
	u := th.p.k.newUffd(th.p.as.Load(), flags)
	return th.p.installUffd(u, true)
}

// installUffd gives u a file in the table of p. Linux lets only one that the
// system call or the device has made be asked not to wait, by the flags of a
// read, and none that came with a fork.
func (p *Process) installUffd(u *uffd, nowait bool) (int, syscall.Errno) {
	f := newFile(p.k.profile.openMode | u.flags&ONonblock)
	f.uffd, f.nowait = u, nowait
	// The number comes last: nobody meets a file that is not whole.
	p.k.reach(PhaseInstall, nil, 0)
	fd, errno := p.install(f, u.flags&OCloexec != 0)
	if errno != 0 {
		f.uffd = nil // nothing was registered: nothing to release
		f.put()
	}
	return fd, errno
}

// Ioctl is ioctl(2) on a descriptor or on the device. arg points to the
// argument in the thread's memory; for USERFAULTFD_IOC_NEW it is the flags,
// and fd the new descriptor.
func (th *Thread) Ioctl(fd int, request uint32, arg mem.Addr) (newfd int, errno syscall.Errno) {
	th.enter()
	defer th.leave()
	f := th.p.file(fd)
	if f == nil {
		return -1, EBADF
	}
	defer f.put()
	switch {
	case f.dev:
		if request != uapi.USERFAULTFD_IOC_NEW {
			return -1, EINVAL
		}
		return th.newDescriptor(int(arg))
	case f.uffd == nil:
		return -1, ENOTTY
	}
	return 0, f.uffd.ioctl(th, request, arg)
}

// ioctl dispatches one request.
func (u *uffd) ioctl(th *Thread, request uint32, arg mem.Addr) syscall.Errno {
	p := u.k.profile
	if p.gate && request != uapi.UFFDIO_API && !u.ready() {
		return EINVAL
	}
	call := p.ioctls[request]
	if call == nil {
		return EINVAL
	}
	return call(u, th, arg)
}
