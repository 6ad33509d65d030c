// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"runtime"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// gate holds whoever reaches a phase at an address until it is opened.
type gate struct {
	mu    sync.Mutex
	phase Phase
	addr  mem.Addr
	at    chan struct{} // closed when somebody is held
	open  chan struct{}
}

// hold makes the next thread that reaches the phase stop there.
func (g *gate) hold(ph Phase, a mem.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.phase, g.addr = ph, a
	g.at, g.open = make(chan struct{}), make(chan struct{})
}

func (g *gate) reach(ph Phase, _ *Thread, a mem.Addr) {
	g.mu.Lock()
	if g.phase != ph || a != g.addr {
		g.mu.Unlock()
		return
	}
	g.phase = ""
	at, open := g.at, g.open
	g.mu.Unlock()
	close(at)
	<-open
}

// withGate is inBubble with a gate in the machine's hooks.
func withGate(t *testing.T, p *Profile, fn func(r *rig, g *gate)) {
	g := &gate{}
	inBubble(t, p, func(r *rig) { fn(r, g) }, WithHooks(Hooks{Reach: g.reach}))
}

// TestWakeBeforeSleep forces A.14.1: a wake between the queueing and the sleep
// is not lost.
func TestWakeBeforeSleep(t *testing.T) {
	for _, ph := range []Phase{PhaseSleep, PhaseQueued} {
		withGate(t, Linux618, func(r *rig, g *gate) {
			a := r.area(page, missing, 0)
			d, err := r.p.Descriptor(r.fd)
			if err != nil {
				r.t.Fatal(err)
			}
			g.hold(ph, a)
			load := r.load(a)
			<-g.at
			if n, errno := d.Copy(a, make([]byte, page), 0); n != page {
				r.t.Fatalf("copy = %d, %v", n, errno)
			}
			close(g.open)
			r.got(load, 0)
			if err := d.Close(); err != nil {
				r.t.Error(err)
			}
		})
	}
}

// TestFillBeforeQueue forces the lost wake that the seed had: the page comes
// after the fault has looked for it and before it is queued, when nobody
// waits. 6.18 looks again; the seed sleeps, until its manager has read the
// fault and wakes it.
func TestFillBeforeQueue(t *testing.T) {
	withGate(t, Linux618, func(r *rig, g *gate) {
		a := r.area(page, missing, 0)
		d, err := r.p.Descriptor(r.fd)
		if err != nil {
			r.t.Fatal(err)
		}
		g.hold(PhaseChecked, a)
		load := r.load(a)
		<-g.at
		if n, errno := d.Copy(a, make([]byte, page), 0); n != page {
			r.t.Fatalf("copy = %d, %v", n, errno)
		}
		close(g.open)
		r.got(load, 0)
		r.nothing()
		if err := d.Close(); err != nil {
			r.t.Error(err)
		}
	})
}

// TestReleaseRace forces A.14.2 and A.14.3: a fault that has found the
// descriptor open and is not queued yet when that closes sleeps for ever in
// neither profile.
func TestReleaseRace(t *testing.T) {
	for _, p := range []*Profile{Linux618, Seed} {
		for _, ph := range []Phase{PhaseChecked, PhaseQueued, PhaseSleep} {
			withGate(t, p, func(r *rig, g *gate) {
				a := r.area(page, missing, 0)
				f := r.p.file(r.fd)
				u := f.uffd
				f.put()
				g.hold(ph, a)
				load := r.load(a)
				<-g.at
				closed := make(chan struct{})
				go func() {
					defer close(closed)
					r.th.Close(r.fd)
				}()
				// The fault is held until the close has marked the
				// descriptor.
				for !u.released.Load() {
					runtime.Gosched()
				}
				close(g.open)
				<-closed
				if !load.ended() {
					r.t.Fatalf("%s, %s: the access sleeps", p.Name(), ph)
				}
				if late := ph == PhaseChecked && p == Seed; (load.err != nil) != late {
					r.t.Errorf("%s, %s: %v", p.Name(), ph, load.err)
				}
			})
		}
	}
}

// TestWakeOnce forces A.14.4: who leaves by himself while others wake him is
// taken out once.
func TestWakeOnce(t *testing.T) {
	withGate(t, Linux618, func(r *rig, g *gate) {
		a := r.area(page, missing, 0)
		load := r.load(a)
		g.hold(PhaseWoken, a)
		load.th.Signal(10)
		<-g.at
		_, errno := r.ioctl(r.fd, uapi.UFFDIO_WAKE, uint64(a), page)
		r.must("wake", errno)
		close(g.open)
		r.blocked(load)
		if unread, total := r.p.files[r.fd].file.uffd.counts(); unread != 1 || total != 1 {
			r.t.Errorf("%d unread of %d waiters", unread, total)
		}
		_, errno = r.copy(a, page, 1, 0)
		r.must("copy", errno)
		r.got(load, 1)
	})
}

// TestKilledWhileRead forces the use after free of A.15: the fault's thread
// dies between the taking of its message and the storing.
func TestKilledWhileRead(t *testing.T) {
	for _, p := range []*Profile{Linux618, Seed} {
		withGate(t, p, func(r *rig, g *gate) {
			a := r.area(page, missing, 0)
			m := r.k.NewProcess(ProcessOptions{})
			defer m.Kill()
			fd, errno := r.th.PassFD(r.fd, m)
			r.must("pass", errno)
			th := m.NewThread()
			buf, errno := th.Mmap(0, page, ProtRead|ProtWrite, MapPrivate|MapAnonymous, -1, 0)
			r.must("mmap", errno)
			load := r.load(a)
			g.hold(PhaseRead, 0)
			n := 0
			done := make(chan struct{})
			go func() {
				defer close(done)
				n, _ = th.Read(fd, buf, 32)
			}()
			<-g.at
			r.p.Kill()
			if !load.ended() || load.err != ErrKilled {
				r.t.Errorf("killed: %v", load.err)
			}
			close(g.open)
			<-done
			if n != p.recordSize {
				r.t.Errorf("read %d bytes", n)
			}
		})
	}
}

// TestEventOutlivesRead forces H2: EAGAIN goes on after the event was read,
// until its thread has run, so it must be retried and never taken for ever.
func TestEventOutlivesRead(t *testing.T) {
	withGate(t, Linux618, func(r *rig, g *gate) {
		a := r.area(page, missing, uapi.UFFD_FEATURE_EVENT_REMOVE)
		th := r.p.NewThread()
		g.hold(PhaseEventRead, 0)
		c := start(func() syscall.Errno { return th.Madvise(a, page, MadvDontNeed) })
		r.event(uapi.Remove{Range: mem.MakeRange(a, page)})
		<-g.at
		_, errno := r.copy(a, page, 1, 0)
		r.want("copy", errno, EAGAIN)
		close(g.open)
		r.ends(c, 0)
		_, errno = r.copy(a, page, 1, 0)
		r.must("copy", errno)
	})
}

// TestFillBeforeRemoval forces H5: what is installed between a REMOVE event
// and the removal goes with the rest, and the next access is a fault (H6).
func TestFillBeforeRemoval(t *testing.T) {
	withGate(t, Linux618, func(r *rig, g *gate) {
		a := r.area(page, missing, uapi.UFFD_FEATURE_EVENT_REMOVE)
		th := r.p.NewThread()
		g.hold(PhaseEventDone, 0)
		c := start(func() syscall.Errno { return th.Madvise(a, page, MadvDontNeed) })
		r.event(uapi.Remove{Range: mem.MakeRange(a, page)})
		<-g.at
		_, errno := r.copy(a, page, 1, 0)
		r.must("copy", errno)
		close(g.open)
		r.ends(c, 0)
		if r.p.PageState(a).Present {
			r.t.Error("the page has survived its removal")
		}
		load := r.load(a)
		r.blocked(load)
		_, errno = r.copy(a, page, 2, 0)
		r.must("copy", errno)
		r.got(load, 2)
	})
}

// TestChangeBeforeItsEvent forces the other half of H2: munmap has happened,
// and fills are refused, before there is an event to read.
func TestChangeBeforeItsEvent(t *testing.T) {
	withGate(t, Linux618, func(r *rig, g *gate) {
		a := r.area(2*page, missing, uapi.UFFD_FEATURE_EVENT_UNMAP)
		th := r.p.NewThread()
		g.hold(PhaseAnnounced, 0)
		c := start(func() syscall.Errno { return th.Munmap(a, page) })
		<-g.at
		r.nothing()
		_, errno := r.copy(a+page, page, 1, 0)
		r.want("copy", errno, EAGAIN)
		close(g.open)
		synctest.Wait()
		r.event(uapi.Unmap{Range: mem.MakeRange(a, page)})
		r.ends(c, 0)
		_, errno = r.copy(a+page, page, 1, 0)
		r.must("copy", errno)
	})
}

// TestExistsIsNotWoken forces H3: a copy that finds the page there does not
// wake who waits for it.
func TestExistsIsNotWoken(t *testing.T) {
	withGate(t, Linux618, func(r *rig, g *gate) {
		a := r.area(page, missing, 0)
		load := r.load(a)
		_, errno := r.copy(a, page, 1, uapi.UFFDIO_COPY_MODE_DONTWAKE)
		r.must("copy", errno)
		_, errno = r.copy(a, page, 1, 0)
		r.want("copy", errno, EEXIST)
		r.blocked(load)
		_, errno = r.ioctl(r.fd, uapi.UFFDIO_WAKE, uint64(a), page)
		r.must("wake", errno)
		r.got(load, 1)
	})
}

// TestCloseWhileFilling forces H8: a descriptor is closed, and its number given
// to another, in the middle of a copy. The copy goes on with the descriptor
// that it began with, and that is gone when it has ended.
func TestCloseWhileFilling(t *testing.T) {
	withGate(t, Linux618, func(r *rig, g *gate) {
		a := r.area(2*page, missing, 0)
		scratch, src := r.mmap(page), r.mmap(page)
		waiting, late := r.load(a), r.load(a+page)
		th := r.p.NewThread()
		g.hold(PhaseFill, a)
		c := start(func() syscall.Errno {
			_, errno := ioctlBy(r.t, th, scratch, r.fd, uapi.UFFDIO_COPY, uint64(a), uint64(src), page, 0, 0)
			return errno
		})
		<-g.at
		r.must("close", r.th.Close(r.fd))
		fd, errno := r.th.Userfaultfd(ONonblock)
		r.must("userfaultfd", errno)
		if fd != r.fd {
			r.t.Fatalf("the new descriptor is %d, and was to be %d again", fd, r.fd)
		}
		r.blocked(late) // the copy has the file
		close(g.open)
		r.ends(c, 0)
		r.got(waiting, 0)
		r.got(late, 0)
		// The other has heard of nothing.
		r.api(0)
		r.nothing()
	})
}

// TestManyFaults lets many goroutines fault at once, for the race detector
// and for lost wakes: every access must end with what was copied.
func TestManyFaults(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		const pages, threads = 64, 16
		a := r.area(pages*page, missing, uapi.UFFD_FEATURE_EVENT_REMOVE)
		d, err := r.p.Descriptor(r.fd)
		if err != nil {
			r.t.Fatal(err)
		}
		var faulting, server sync.WaitGroup
		stop := make(chan struct{})
		server.Go(func() {
			msgs := make([]uapi.Msg, 8)
			content := make([]byte, page)
			for i := range content {
				content[i] = 7
			}
			for {
				select {
				case <-stop:
					return
				default:
				}
				d.Wait(-1)
				n, _ := d.Read(msgs)
				for _, m := range msgs[:n] {
					if m.Event != uapi.UFFD_EVENT_PAGEFAULT {
						continue
					}
					// EAGAIN is no answer: the thread faults again.
					at, _, _ := m.Fault()
					d.Copy(at, content, 0)
					d.Wake(mem.MakeRange(at, page))
				}
			}
		})
		for i := range threads {
			th := r.p.NewThread()
			faulting.Go(func() {
				b := make([]byte, 1)
				for n := range 200 {
					at := a + mem.Addr((n*7+i*3)%pages)*page
					if err := th.Load(r.t.Context(), at, b); err != nil || b[0] != 7 {
						r.t.Errorf("load = %d, %v", b[0], err)
						return
					}
					if n%16 == i {
						th.Madvise(at, page, MadvDontNeed)
					}
				}
			})
		}
		faulting.Wait()
		close(stop)
		d.Interrupt()
		server.Wait()
		synctest.Wait()
		if err := d.Close(); err != nil {
			r.t.Error(err)
		}
	})
}

// TestEpollListensBeforeItLooks: a fault that is queued when epoll_ctl(2) has looked
// for one, and is not yet told of the next, would be an edge that nobody sees.
func TestEpollListensBeforeItLooks(t *testing.T) {
	var u *uffd
	listening := -1
	hooks := Hooks{Reach: func(ph Phase, _ *Thread, _ mem.Addr) {
		if ph == PhasePoll && u != nil {
			listening = len(*u.readers.Load())
		}
	}}
	inBubble(t, Linux618, func(r *rig) {
		r.area(page, missing, 0)
		f := r.p.file(r.fd)
		defer f.put()
		u = f.uffd
		ep, errno := r.th.EpollCreate()
		r.must("epoll", errno)
		r.must("epoll", r.th.EpollAdd(ep, r.fd, true))
		if listening != 1 {
			t.Errorf("%d readers when it looks, want 1", listening)
		}
	}, WithHooks(hooks))
}
