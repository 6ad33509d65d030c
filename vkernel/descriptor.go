// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// Descriptor is a descriptor for a manager that is Go code, and so lives
// outside of every process of the machine. It is a pager.Descriptor. Errnos
// that it returns are those of the system it runs on, as Go code expects.
type Descriptor struct {
	p    *Process
	fd   int
	f    *file
	u    *uffd
	r    reader
	wake chan struct{} // capacity 1
	// sleepers counts who receives from wake, or looks a last time before.
	sleepers atomic.Int32
	patience patience
	stop     atomic.Bool // an Interrupt that no Wait has seen
	shut     atomic.Bool
}

// Descriptor returns the descriptor fd of p for use by Go code. A fork event
// that it reads installs its descriptor in p. It keeps the file open until
// its Close, which closes fd too.
func (p *Process) Descriptor(fd int) (*Descriptor, error) {
	f := p.file(fd)
	if f == nil || f.uffd == nil {
		if f != nil {
			f.put()
		}
		return nil, fmt.Errorf("vkernel: descriptor %d of process %d is no userfaultfd", fd, p.pid)
	}
	d := &Descriptor{p: p, fd: fd, f: f, u: f.uffd, wake: make(chan struct{}, 1)}
	d.r.poke = d.poke
	d.u.addReader(&d.r)
	return d, nil
}

// Handshake is UFFDIO_API. The errors are EINVAL for features that are not known
// or a second handshake.
func (d *Descriptor) Handshake(features uapi.Features) syscall.Errno {
	if d.shut.Load() {
		return hostErrno(EBADF)
	}
	if features&^d.u.k.profile.features != 0 || !d.u.state.CompareAndSwap(0, uint64(features)|initialized) {
		return hostErrno(EINVAL)
	}
	return 0
}

// poke makes a Wait look again. One that does not sleep will look anyway,
// before it does.
func (d *Descriptor) poke() {
	if d.sleepers.Load() == 0 {
		return
	}
	select {
	case d.wake <- struct{}{}:
	default: // somebody is to look already
	}
}

// Read fills msgs with queued messages; EAGAIN when none is queued. A profile
// whose messages are shorter gives them in the same form.
func (d *Descriptor) Read(msgs []uapi.Msg) (n int, errno syscall.Errno) {
	switch {
	case d.shut.Load():
		return 0, hostErrno(EBADF)
	case !d.u.ready() || len(msgs) == 0:
		return 0, hostErrno(EINVAL)
	}
	for n < len(msgs) {
		got := d.u.faults.take(msgs[n:])
		if n += got; n == len(msgs) {
			break
		}
		msg, ok, errno := d.u.takeEvent(d.p)
		if !ok {
			if n == 0 {
				if errno == 0 {
					errno = EAGAIN
				}
				return 0, hostErrno(errno)
			}
			break
		}
		msgs[n] = msg
		n++
	}
	return n, 0
}

// Pending reports whether a message is queued, without taking it.
func (d *Descriptor) Pending() bool { return d.u.pending() }

// Wait blocks until a message is queued, Interrupt is called or timeout has
// passed, for ever if it is negative. It reports whether a message is queued.
func (d *Descriptor) Wait(timeout time.Duration) (ready bool, errno syscall.Errno) {
	if d.Pending() {
		return true, 0
	}
	if d.ended() || timeout == 0 {
		return false, 0
	}
	if d.patience.wait(d.Pending) && d.Pending() {
		return true, 0
	}
	return d.sleep(timeout), 0
}

// sleep is Wait for who has given way to others for nothing.
func (d *Descriptor) sleep(timeout time.Duration) (ready bool) {
	d.sleepers.Add(1)
	defer d.sleepers.Add(-1)
	var expired <-chan time.Time // never, if it is nil
	for {
		if d.Pending() {
			return true
		}
		if d.ended() {
			return false
		}
		if timeout > 0 && expired == nil {
			timer := time.NewTimer(timeout)
			defer timer.Stop()
			expired = timer.C
		}
		select {
		case <-d.wake:
		case <-expired:
			return d.Pending()
		}
	}
}

// ended reports whether Wait has to return without a message.
func (d *Descriptor) ended() bool { return d.stop.Load() && d.stop.Swap(false) || d.shut.Load() }

// Interrupt makes the present or the next Wait return.
func (d *Descriptor) Interrupt() {
	d.stop.Store(true)
	d.poke()
}

// Copy installs src at dst and wakes the waiters of what it installed. done
// counts bytes and is valid with any errno.
func (d *Descriptor) Copy(dst mem.Addr, src []byte, mode uapi.CopyMode) (done int, errno syscall.Errno) {
	const dontwake, wp = uapi.UFFDIO_COPY_MODE_DONTWAKE, uapi.UFFDIO_COPY_MODE_WP
	if mode&^(dontwake|wp) != 0 {
		return 0, hostErrno(EINVAL)
	}
	f := filler{kind: fillCopy, wp: mode&wp != 0, bytes: src}
	return d.fill(&f, mem.MakeRange(dst, uint64(len(src))), mode&dontwake != 0)
}

// Zeropage installs zeros.
func (d *Descriptor) Zeropage(r mem.Range, mode uapi.ZeropageMode) (done int, errno syscall.Errno) {
	return d.fill(&filler{kind: fillZero}, r, mode&uapi.UFFDIO_ZEROPAGE_MODE_DONTWAKE != 0)
}

// Poison makes every access to r a SIGBUS, and wakes its waiters.
func (d *Descriptor) Poison(r mem.Range, mode uapi.PoisonMode) (done int, errno syscall.Errno) {
	return d.fill(&filler{kind: fillPoison}, r, mode&uapi.UFFDIO_POISON_MODE_DONTWAKE != 0)
}

func (d *Descriptor) fill(f *filler, r mem.Range, dontwake bool) (int, syscall.Errno) {
	u := d.u
	f.u = u
	p := u.k.profile
	switch {
	case d.shut.Load():
		return 0, hostErrno(EBADF)
	case !u.ready() || !p.checkRange(uint64(r.Start), uint64(r.End-r.Start)) || !p.fills:
		return 0, hostErrno(EINVAL)
	case u.changing.Load() > 0:
		return 0, hostErrno(EAGAIN)
	}
	done, errno := f.run(r.Start, r.Len())
	if done > 0 && !dontwake {
		u.k.reach(PhaseFilled, nil, r.Start)
		u.wakeRange(mem.MakeRange(r.Start, uint64(done)))
	}
	if done > 0 && errno != 0 {
		errno = EAGAIN
	}
	return done, hostErrno(errno)
}

// Wake wakes all waiters in r, which then fault again.
func (d *Descriptor) Wake(r mem.Range) syscall.Errno {
	errno := d.refuse()
	if errno == 0 {
		errno = d.u.k.profile.wake(d.u, r)
	}
	return hostErrno(errno)
}

// Register registers r in mode.
func (d *Descriptor) Register(r mem.Range, mode uapi.RegisterMode) syscall.Errno {
	errno := d.refuse()
	if errno == 0 {
		_, errno = d.u.k.profile.register(d.u, r, mode)
	}
	return hostErrno(errno)
}

// Unregister gives r back.
func (d *Descriptor) Unregister(r mem.Range) syscall.Errno {
	errno := d.refuse()
	if errno == 0 {
		errno = d.u.k.profile.unregister(d.u, r)
	}
	return hostErrno(errno)
}

// refuse says why no request can be made: the descriptor is closed, or the handshake
// is still to come. (What a request registers while the descriptor is being closed is
// refused by itself, or undone.)
func (d *Descriptor) refuse() syscall.Errno {
	switch {
	case d.shut.Load():
		return EBADF
	case d.u.k.profile.gate && !d.u.ready():
		return EINVAL
	}
	return 0
}

// Changing reports whether an event of the space has not been taken note of
// yet, in which case every Copy would answer EAGAIN.
func (d *Descriptor) Changing() bool { return d.u.changing.Load() > 0 }

// Close closes the descriptor and its number in the process. A second Close
// is an error.
func (d *Descriptor) Close() error {
	if d.shut.Swap(true) {
		return errors.New("vkernel: descriptor is closed already")
	}
	d.u.dropReader(&d.r)
	d.p.closeFile(d.fd, d.f)
	d.f.put()
	d.poke()
	return nil
}

// closeFile closes fd if it is still that of f.
func (p *Process) closeFile(fd int, f *file) {
	p.mu.Lock()
	if fd >= len(p.files) || p.files[fd].file != f {
		p.mu.Unlock()
		return
	}
	p.files[fd] = fdEntry{}
	p.mu.Unlock()
	f.put()
}
