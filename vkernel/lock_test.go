// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"context"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// budget is how long what must end soon may take.
const budget = 20 * time.Second

// soon fails the test with the stacks of all if c is not closed in some
// seconds. Who waits for a mutex stops the time of a bubble: where that is what
// would go wrong, there is none.
func soon(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(budget):
		b := make([]byte, 1<<20)
		t.Fatalf("%s does not end:\n%s", what, b[:runtime.Stack(b, true)])
	}
}

// doing runs fn in a goroutine and returns what is closed at its end.
func doing(fn func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	return done
}

// asleep waits until a thread sleeps in a fault.
func asleep(t *testing.T, th *Thread) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	defer cancel()
	if err := th.WaitState(ctx, InFault); err != nil {
		t.Fatalf("the fault is not queued: thread %v", th.State())
	}
}

// TestPollWhileFaulting forces A.14.5 from the side of who waits for messages:
// a poll or a read that is in the middle of its look holds no lock that a
// fault needs to be queued and told of, nor one that a close needs. Were it
// so, each would wait for what the other has.
func TestPollWhileFaulting(t *testing.T) {
	waits := map[string]func(r *rig, th *Thread, ep int){
		"epoll": func(_ *rig, th *Thread, ep int) { th.EpollWait(ep, 0) },
		"poll":  func(r *rig, th *Thread, _ int) { th.Poll([]PollFD{{FD: r.fd, Events: PollIn}}, 0) },
		"read":  func(r *rig, th *Thread, _ int) { th.Read(r.fd, r.scratch+8*page, uapi.MsgSize) },
	}
	for _, p := range []*Profile{Linux618, Seed} {
		for name, wait := range waits {
			t.Run(p.Name()+"/"+name, func(t *testing.T) {
				g := &gate{}
				r := newRig(t, p, WithHooks(Hooks{Reach: g.reach}))
				a := r.area(2*page, missing, 0)
				ep, errno := r.th.EpollCreate()
				r.must("epoll_create", errno)
				r.must("epoll_ctl", r.th.EpollAdd(ep, r.fd, false))
				// Something is there to be read.
				first := r.p.NewThread()
				loads := [2]<-chan struct{}{doing(func() { first.Load(context.Background(), a, make([]byte, 1)) })}
				asleep(t, first)

				ph := PhasePoll
				if name == "read" {
					ph = PhaseRead
				}
				g.hold(ph, 0)
				waiter := r.p.NewThread()
				waiting := doing(func() { wait(r, waiter, ep) })
				soon(t, "the way to the look", g.at)

				second := r.p.NewThread()
				loads[1] = doing(func() { second.Load(context.Background(), a+page, make([]byte, 1)) })
				asleep(t, second)
				soon(t, "close", doing(func() { r.th.Close(r.fd) }))
				close(g.open)
				soon(t, name, waiting)
				for _, load := range loads {
					soon(t, "an access to a closed descriptor's memory", load)
				}
				r.p.Kill() // not deferred: where a lock is held for ever, it would hang
			})
		}
	}
}

// TestFaultWhilePolling forces A.14.5 from the side of the fault: while it is
// telling of itself, an epoll that watches the descriptor looks at that. It must
// not have a lock by which it is to be told, nor the fault one that it needs.
func TestFaultWhilePolling(t *testing.T) {
	for _, p := range []*Profile{Linux618, Seed} {
		t.Run(p.Name(), func(t *testing.T) {
			look := make(chan struct{})
			var looking func() // of an epoll that comes while the fault is held
			r := newRig(t, p, WithHooks(Hooks{Reach: func(ph Phase, _ *Thread, _ mem.Addr) {
				if ph == PhasePoll && looking != nil {
					looking()
				}
			}}))
			a := r.area(page, missing, 0)
			f := r.p.file(r.fd)
			u := f.uffd
			f.put()
			// Who is told first holds the fault up.
			held, open := make(chan struct{}), make(chan struct{})
			u.addReader(&reader{poke: sync.OnceFunc(func() {
				close(held)
				<-open
			})})
			ep, errno := r.th.EpollCreate()
			r.must("epoll_create", errno)
			r.must("epoll_ctl", r.th.EpollAdd(ep, r.fd, false))

			faulting := r.p.NewThread()
			load := doing(func() { faulting.Load(context.Background(), a, make([]byte, 1)) })
			soon(t, "the way of the fault to its first reader", held)
			looking = sync.OnceFunc(func() { close(look) })
			var events []EpollEvent
			polling := doing(func() { events, _ = r.th.EpollWait(ep, -1) })
			soon(t, "the way of the epoll to its look", look)
			close(open)
			asleep(t, faulting)
			soon(t, "the epoll", polling)
			if len(events) != 1 || events[0].Events != PollIn {
				t.Errorf("the epoll has seen %v", events)
			}
			r.p.Kill()
			soon(t, "the access", load)
		})
	}
}

// TestInstallLast forces A.14.7: while a descriptor is made, others who name
// the number that it will have find nothing there to close, to use or to look
// at; and what takes the number first has it.
func TestInstallLast(t *testing.T) {
	for _, p := range []*Profile{Linux618, Seed} {
		withGate(t, p, func(r *rig, g *gate) {
			other := r.p.NewThread()
			fd := r.fd + 1
			g.hold(PhaseInstall, 0)
			var made int
			c := start(func() (errno syscall.Errno) {
				made, errno = r.p.NewThread().Userfaultfd(ONonblock)
				return errno
			})
			<-g.at
			r.nobody(other, fd)
			taken, errno := other.Dup(r.fd)
			r.must("dup", errno)
			if taken != fd {
				r.t.Fatalf("dup = %d, want %d", taken, fd)
			}
			close(g.open)
			r.ends(c, 0)
			if made != fd+1 {
				r.t.Errorf("userfaultfd = %d after %d was taken", made, fd)
			}
			r.must("close", other.Close(taken))
			// It is whole: all that a descriptor does, this one does.
			_, errno = r.ioctl(made, uapi.UFFDIO_API, uapi.UFFD_API, 0, 0)
			r.must("UFFDIO_API", errno)
			r.must("close", other.Close(made))
		})
	}
}

// TestInstallLastOfFork forces the same for the descriptor of a fork event,
// which the reader's process gets.
func TestInstallLastOfFork(t *testing.T) {
	withGate(t, Linux618, func(r *rig, g *gate) {
		r.area(page, missing, uapi.UFFD_FEATURE_EVENT_FORK)
		var child *Process
		c := start(func() (errno syscall.Errno) {
			child, errno = r.p.NewThread().Fork()
			return errno
		})
		synctest.Wait()
		other := r.p.NewThread()
		g.hold(PhaseInstall, 0)
		fd := -1
		read := start(func() syscall.Errno {
			msgs, errno := r.read(1)
			if errno == 0 {
				fd = int(msgs[0].ForkFD())
			}
			return errno
		})
		<-g.at
		r.nobody(other, r.fd+1)
		close(g.open)
		r.ends(read, 0)
		r.ends(c, 0)
		defer child.Kill()
		if fd != r.fd+1 {
			r.t.Fatalf("the child's descriptor is %d, want %d", fd, r.fd+1)
		}
		// It has shaken hands already.
		_, errno := r.ioctl(fd, uapi.UFFDIO_WAKE, uint64(r.scratch), page)
		r.must("wake", errno)
		r.must("close", other.Close(fd))
	})
}

// TestKilledBeforeInstall: a process that dies while it makes a descriptor has
// none, and nothing is left of it.
func TestKilledBeforeInstall(t *testing.T) {
	for _, p := range []*Profile{Linux618, Seed} {
		withGate(t, p, func(r *rig, g *gate) {
			g.hold(PhaseInstall, 0)
			c := start(func() syscall.Errno {
				_, errno := r.p.NewThread().Userfaultfd(ONonblock)
				return errno
			})
			<-g.at
			r.p.Kill()
			close(g.open)
			r.ends(c, EMFILE)
			if len(r.p.files) != 0 {
				r.t.Errorf("%d descriptors of a dead process", len(r.p.files))
			}
		})
	}
}

// nobody fails the test if something is open as fd.
func (r *rig) nobody(th *Thread, fd int) {
	r.t.Helper()
	r.want("close", th.Close(fd), EBADF)
	_, errno := th.Ioctl(fd, uapi.UFFDIO_API, r.scratch)
	r.want("ioctl", errno, EBADF)
	_, errno = th.Dup(fd)
	r.want("dup", errno, EBADF)
	_, errno = th.Read(fd, r.scratch, uapi.MsgSize)
	r.want("read", errno, EBADF)
	fds := []PollFD{{FD: fd, Events: PollIn}}
	if _, errno := th.Poll(fds, 0); errno != 0 || fds[0].Revents != PollNval {
		r.t.Errorf("poll: %#x, %s", fds[0].Revents, ErrnoName(errno))
	}
	if text := r.p.Fdinfo(fd); text != "" {
		r.t.Errorf("fdinfo: %q", text)
	}
}
