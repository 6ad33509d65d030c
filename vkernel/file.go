// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"sync"
	"sync/atomic"
	"syscall"
)

// file is an open file description. What it is about is in one of its parts.
type file struct {
	refs  atomic.Int32
	flags atomic.Uint32 // access mode and O_NONBLOCK
	uffd  *uffd
	obj   *object
	epoll *epoll
	dev   bool   // /dev/userfaultfd
	mem   *space // whose memory it is, as /proc/PID/mem
	// nowait is whether a read can be asked not to wait, by its own flags.
	nowait bool
	pos    atomic.Int64

	mu     sync.Mutex          // taken with no other lock held
	epolls map[*epoll]struct{} // that watch it; protected by mu
}

func newFile(flags int) *file {
	f := &file{}
	f.flags.Store(uint32(flags))
	f.refs.Store(1)
	return f
}

func (f *file) nonblock() bool { return f.flags.Load()&ONonblock != 0 }
func (f *file) mode() int      { return int(f.flags.Load() & 3) }

func (f *file) get() { f.refs.Add(1) }

// put drops a reference; the last one closes the file.
func (f *file) put() {
	if f.refs.Add(-1) > 0 {
		return
	}
	switch {
	case f.uffd != nil:
		f.unwatch()
		f.uffd.release()
	case f.obj != nil:
		f.obj.put()
	case f.epoll != nil:
		f.epoll.close()
	}
}

// Close closes fd. Who sleeps in a read of it goes on sleeping: the read
// holds the file.
func (th *Thread) Close(fd int) syscall.Errno {
	th.enter()
	defer th.leave()
	return th.p.close(fd)
}

func (p *Process) close(fd int) syscall.Errno {
	p.mu.Lock()
	if fd < 0 || fd >= len(p.files) || p.files[fd].file == nil {
		p.mu.Unlock()
		return EBADF
	}
	f := p.files[fd].file
	p.files[fd] = fdEntry{}
	p.mu.Unlock()
	f.put()
	return 0
}

// Dup returns another descriptor of the same file.
func (th *Thread) Dup(fd int) (int, syscall.Errno) {
	return th.PassFD(fd, th.p)
}

// PassFD installs the file of fd in another process, as SCM_RIGHTS does, and
// returns its number there.
func (th *Thread) PassFD(fd int, to *Process) (int, syscall.Errno) {
	f := th.p.file(fd)
	if f == nil {
		return -1, EBADF
	}
	n, errno := to.install(f, false)
	if errno != 0 {
		f.put()
	}
	return n, errno
}

// Fcntl gets or sets the flags of fd: FGetfd, FSetfd, FGetfl or FSetfl.
func (th *Thread) Fcntl(fd, cmd, arg int) (int, syscall.Errno) {
	f := th.p.file(fd)
	if f == nil {
		return -1, EBADF
	}
	defer f.put()
	p := th.p
	switch cmd {
	case FGetfl:
		return int(f.flags.Load()), 0
	case FSetfl:
		f.flags.Store(f.flags.Load()&^ONonblock | uint32(arg)&ONonblock)
		return 0, 0
	case FGetfd, FSetfd:
		p.mu.Lock()
		defer p.mu.Unlock()
		if fd >= len(p.files) || p.files[fd].file != f {
			return -1, EBADF
		}
		if cmd == FSetfd {
			p.files[fd].cloexec = arg&FdCloexec != 0
		} else if p.files[fd].cloexec {
			return FdCloexec, 0
		}
		return 0, 0
	}
	return -1, EINVAL
}

// MemfdCreate returns a descriptor of a new object of shared memory, of huge
// pages with MfdHugetlb.
func (th *Thread) MemfdCreate(name string, flags int) (int, syscall.Errno) {
	if flags&^(MfdCloexec|MfdHugetlb) != 0 {
		return -1, EINVAL
	}
	kind := kindShmem
	if flags&MfdHugetlb != 0 {
		kind = kindHugetlb
	}
	f := newFile(ORdwr)
	f.obj = th.p.k.newObject(kind, "/memfd:"+name+" (deleted)", 0)
	return th.own(f, flags&MfdCloexec != 0)
}

// RegularFile returns a descriptor of a file of a kind that cannot be
// registered.
func (th *Thread) RegularFile(name string, size uint64) (int, syscall.Errno) {
	f := newFile(ORdwr)
	f.obj = th.p.k.newObject(kindRegular, name, size)
	return th.own(f, false)
}

// Reopen opens the object of fd once more with another access mode, as
// opening /proc/self/fd/N does.
func (th *Thread) Reopen(fd, mode int) (int, syscall.Errno) {
	f := th.p.file(fd)
	if f == nil {
		return -1, EBADF
	}
	defer f.put()
	if f.obj == nil {
		return -1, EACCES
	}
	g := newFile(mode & 3)
	f.obj.get()
	g.obj = f.obj
	return th.own(g, mode&OCloexec != 0)
}

// own installs a new file in the thread's process, or closes it.
func (th *Thread) own(f *file, cloexec bool) (int, syscall.Errno) {
	fd, errno := th.p.install(f, cloexec)
	if errno != 0 {
		f.put()
	}
	return fd, errno
}

// Ftruncate sets the size of an object, which is an off_t: EINVAL if it is
// negative, and EFBIG if it is more than the object can have.
func (th *Thread) Ftruncate(fd int, size uint64) syscall.Errno {
	th.enter()
	defer th.leave()
	if size > maxFileSize {
		return EINVAL
	}
	f := th.p.file(fd)
	if f == nil {
		return EBADF
	}
	defer f.put()
	switch {
	case f.mode() == ORdonly:
		return EINVAL
	case f.obj == nil && f.mem == nil:
		return EINVAL
	case size > f.limit():
		return EFBIG
	case f.mem != nil:
		return 0 // it has no size to set, which nobody is told
	}
	return f.obj.truncate(size)
}

// limit is the size that an object or a memory file cannot exceed.
func (f *file) limit() uint64 {
	if f.mem != nil {
		return maxProcSize
	}
	return f.obj.limit()
}

// Fallocate with FallocPunchHole|FallocKeepSize drops the pages of a range of
// an object. There is no other mode.
func (th *Thread) Fallocate(fd, mode int, off, n uint64) syscall.Errno {
	th.enter()
	defer th.leave()
	f := th.p.file(fd)
	if f == nil {
		return EBADF
	}
	defer f.put()
	switch {
	case off > maxFileSize, n > maxFileSize, n == 0:
		return EINVAL
	case mode != FallocPunchHole|FallocKeepSize:
		return EOPNOTSUPP
	case f.mode() == ORdonly:
		return EBADF
	case f.obj == nil && f.mem == nil:
		return ENODEV
	case off+n > f.limit():
		return EFBIG
	case f.obj == nil:
		return EOPNOTSUPP
	}
	f.obj.punch(off, n)
	return 0
}
