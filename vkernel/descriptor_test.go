// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"context"
	"sync"
	"syscall"
	"testing"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// TestRegisterAfterClose covers H8 for a manager that is Go code: memory could be
// registered with a descriptor that was closed, or just being closed. It was nobody's
// then, for ever: who touched it spun, and no other descriptor could have it.
func TestRegisterAfterClose(t *testing.T) {
	for _, p := range []*Profile{Linux618, Seed} {
		withGate(t, p, func(r *rig, g *gate) {
			r.api(0)
			a := mem.MakeRange(r.mmap(page), page)
			d, err := r.p.Descriptor(r.fd)
			if err != nil {
				t.Fatal(err)
			}
			u := d.u
			g.hold(PhaseReleased, 0)
			closed := make(chan error)
			go func() { closed <- d.Close() }()
			<-g.at
			_, errno := p.register(u, a, missing) // that of somebody who was on the way
			r.want("register with a descriptor that is being closed", errno, EBADF)
			close(g.open)
			if err := <-closed; err != nil {
				t.Error(err)
			}
			for what, errno := range map[string]syscall.Errno{
				"register":   d.Register(a, missing),
				"unregister": d.Unregister(a),
				"wake":       d.Wake(a),
				"handshake":  d.Handshake(0),
			} {
				r.want(what+" after the close", errno, hostErrno(EBADF))
			}
			_, errno = d.Read(make([]uapi.Msg, 1))
			r.want("read after the close", errno, hostErrno(EBADF))
			_, errno = d.Copy(a.Start, make([]byte, page), 0)
			r.want("copy after the close", errno, hostErrno(EBADF))
			if load := r.load(a.Start); !load.ended() || load.err != nil {
				t.Errorf("an access to the memory: ended %v, %v", load.ended(), load.err)
			}
		})
	}
}

// TestDescriptorOfProfile: a manager that is Go code got other answers than a program.
func TestDescriptorOfProfile(t *testing.T) {
	inBubble(t, Linux618, func(r *rig) {
		a := mem.MakeRange(r.mmap(page), page)
		d, err := r.p.Descriptor(r.fd)
		if err != nil {
			t.Fatal(err)
		}
		r.want("register before the handshake", d.Register(a, missing), hostErrno(EINVAL))
		r.want("unregister before the handshake", d.Unregister(a), hostErrno(EINVAL))
		r.want("wake before the handshake", d.Wake(a), hostErrno(EINVAL))
		r.must("handshake", d.Handshake(0))
		r.must("register", d.Register(a, missing))
		r.must("wake of nobody", d.Wake(a))
	})
	inBubble(t, Seed, func(r *rig) {
		a := mem.MakeRange(r.mmap(page), page)
		d, err := r.p.Descriptor(r.fd)
		if err != nil {
			t.Fatal(err)
		}
		r.want("handshake with a feature", d.Handshake(uapi.UFFD_FEATURE_THREAD_ID), hostErrno(EINVAL))
		r.want("register for protection", d.Register(a, uapi.UFFDIO_REGISTER_MODE_WP), hostErrno(EINVAL))
		r.must("register before the handshake", d.Register(a, missing))
		r.want("wake of nobody", d.Wake(a), hostErrno(ENOENT))
		r.must("unregister", d.Unregister(a))
	})
}

// TestMoveOfHugePages: mremap wrote the entry at the new place without the lock under
// which an access there looks.
func TestMoveOfHugePages(t *testing.T) {
	k := New(Linux618, WithHugePages(1))
	p := k.NewProcess(ProcessOptions{Privileged: true})
	defer p.Kill()
	th := p.NewThread()
	const base mem.Addr = 0x10_0000_0000
	_, errno := th.Mmap(base, HugePageSize, ProtRead|ProtWrite, MapPrivate|MapAnonymous|MapHugetlb|MapFixed, -1, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	if err := th.Store(context.Background(), base, []byte{1}); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var looking sync.WaitGroup
	for i := range mem.Addr(2) {
		looker := p.NewThread()
		looking.Go(func() {
			b := []byte{0}
			for {
				select {
				case <-stop:
					return
				default:
				}
				// It is not there half of the time.
				if err := looker.Load(context.Background(), base+i*HugePageSize, b); err == nil && b[0] != 1 {
					t.Errorf("the page has %d", b[0])
					return
				}
			}
		})
	}
	for i := range mem.Addr(2000) {
		from, to := base+i%2*HugePageSize, base+(i+1)%2*HugePageSize
		if _, errno := th.Mremap(from, HugePageSize, HugePageSize, MremapMayMove|MremapFixed, to); errno != 0 {
			t.Fatal(errno)
		}
	}
	close(stop)
	looking.Wait()
}
