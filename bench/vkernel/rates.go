// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
	"github.com/faultline-go/faultline/vkernel"
)

// machine is a process with a descriptor, and a manager outside of it.
type machine struct {
	p *vkernel.Process
	d *vkernel.Descriptor
}

func newMachine(options ...vkernel.Option) *machine {
	k := vkernel.New(vkernel.Linux618, options...)
	p := k.NewProcess(vkernel.ProcessOptions{Privileged: true})
	th := p.NewThread()
	scratch, errno := th.Mmap(0, mem.PageSize, vkernel.ProtRead|vkernel.ProtWrite, vkernel.MapPrivate|vkernel.MapAnonymous, -1, 0)
	check("mmap", errno)
	fd, errno := th.Userfaultfd(vkernel.ONonblock)
	check("userfaultfd", errno)
	check("store", th.Store(context.Background(), scratch, []byte{uapi.UFFD_API, 23: 0}))
	_, errno = th.Ioctl(fd, uapi.UFFDIO_API, scratch)
	check("UFFDIO_API", errno)
	d, err := p.Descriptor(fd)
	check("descriptor", err)
	return &machine{p, d}
}

// area maps and registers n bytes.
func (m *machine) area(th *vkernel.Thread, n uint64) mem.Range {
	a, errno := th.Mmap(0, n, vkernel.ProtRead|vkernel.ProtWrite, vkernel.MapPrivate|vkernel.MapAnonymous, -1, 0)
	check("mmap", errno)
	r := mem.MakeRange(a, n)
	check("register", m.d.Register(r, uapi.UFFDIO_REGISTER_MODE_MISSING))
	return r
}

// serve answers every fault by a copy until the descriptor is interrupted.
func (m *machine) serve(stop *atomic.Bool) {
	msgs := make([]uapi.Msg, 64)
	page := make([]byte, mem.PageSize)
	for !stop.Load() {
		n, errno := m.d.Read(msgs)
		if errno == syscall.EAGAIN {
			_, errno = m.d.Wait(-1)
			check("wait", errno)
			continue
		}
		check("read", errno)
		for i := range n {
			addr, _, _ := msgs[i].Fault()
			if _, errno := m.d.Copy(addr, page, 0); errno != syscall.EEXIST {
				check("copy", errno)
			}
		}
	}
}

// faultRate returns round trips a second: each a store to a missing page, its
// message read, a copy, and the store done. Dropping the pages again is part
// of what is measured.
func faultRate(threads int, span time.Duration) float64 {
	const pages = 16 // of each thread
	m := newMachine()
	var stop, served atomic.Bool
	var server, workers sync.WaitGroup
	server.Go(func() { m.serve(&served) })
	var total atomic.Int64
	start := time.Now()
	for i := range threads {
		th := m.p.NewThread()
		r := m.area(th, pages*mem.PageSize)
		workers.Go(func() {
			b := []byte{1}
			n := int64(0)
			for !stop.Load() {
				// The first of them watches the clock. A timer would have
				// the scheduler do so, each time that it is asked for the
				// next goroutine.
				if i == 0 && time.Since(start) >= span {
					stop.Store(true)
				}
				for a := r.Start; a < r.End; a += mem.PageSize {
					check("store", th.Store(context.Background(), a, b))
				}
				n += pages
				check("madvise", th.Madvise(r.Start, r.Len(), vkernel.MadvDontNeed))
			}
			total.Add(n)
		})
	}
	workers.Wait()
	rate := float64(total.Load()) / time.Since(start).Seconds()
	served.Store(true)
	m.d.Interrupt()
	server.Wait()
	m.p.Kill()
	return rate
}

// rates measures with one processor and with all. Where the two sides run
// decides what there is to lose: on one processor a wake is a switch, on two
// every lock and every page changes caches. The goal is for each of the two.
func rates(span time.Duration) (rows []row) {
	for _, x := range []struct {
		threads int
		goal    float64
	}{{1, 1_000_000}, {100, 1_500_000}} {
		all := faultRate(x.threads, span)
		before := runtime.GOMAXPROCS(1)
		one := faultRate(x.threads, span)
		runtime.GOMAXPROCS(before)
		rows = append(rows, row{
			what:  fmt.Sprintf("fault, read, copy, resume with %d faulting goroutines, a second", x.threads),
			goal:  fmt.Sprintf("≥ %.0f", x.goal),
			value: fmt.Sprintf("%.0f with GOMAXPROCS=1, %.0f with %d", one, all, before),
			ok:    min(one, all) >= x.goal,
		})
	}
	return rows
}
