// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
	"github.com/faultline-go/faultline/vkernel"
)

// What the accesses of a sim end with.
var (
	errSegv = errors.New("SIGSEGV")
	errBus  = errors.New("SIGBUS")
)

// area is a call of mmap.
type area struct {
	mem.Range
	wipe bool
}

// sim is a process that the pager serves, and a Descriptor of its memory.
type sim struct {
	*world
	proc    *vkernel.Process
	areas   []area              // what mmap has mapped, ever; protected by mu
	splits  int                 // calls of split
	fd      *vkernel.Descriptor // set once, before arrived is closed
	arrived chan struct{}

	forking sync.Mutex // held in fork, which tells by the order which child is whose

	idle  map[uint32][]*vkernel.Thread // by the tid that tests give; protected by mu
	pins  map[mem.Page]func()          // unpin; protected by mu
	extra []uapi.Msg                   // to be read before all others; protected by mu
	heirs []*sim                       // whose fork event was not read; protected by mu

	short    int            // every Copy stops after so many pages, if positive
	tried    int            // calls of Copy; protected by mu
	wakes    []mem.Range    // arguments of Wake; protected by mu
	onCopy   func(mem.Addr) // called by Copy before it does anything; protected by mu
	stuck    bool           // Changing is on for good; protected by mu
	changing bool           // Changing is on, though pages are copied; protected by mu
	movers   int            // how many were made; protected by mu
	later    bool           // Move cannot do anything now; protected by mu
	moveDies int            // pages after which the mover's agent dies, if positive; protected by mu
	readErr  error          // of every mover's Read; protected by mu
}

func (w *world) newSim(p *vkernel.Process) *sim {
	k := &sim{
		world: w, proc: p, arrived: make(chan struct{}),
		idle: make(map[uint32][]*vkernel.Thread), pins: make(map[mem.Page]func()),
	}
	w.mu.Lock()
	w.sims = append(w.sims, k)
	w.mu.Unlock()
	return k
}

// space returns a new process with a descriptor.
func (w *world) space() *sim {
	k := w.newSim(w.kernel.NewProcess(vkernel.ProcessOptions{Privileged: true}))
	th := k.proc.NewThread()
	fd := k.open(th, uapi.UFFD_FEATURE_EVENT_FORK|uapi.UFFD_FEATURE_EVENT_REMAP|
		uapi.UFFD_FEATURE_EVENT_REMOVE|uapi.UFFD_FEATURE_EVENT_UNMAP|uapi.UFFD_FEATURE_THREAD_ID)
	passed, errno := th.PassFD(fd, w.manager)
	w.must("pass", errno)
	w.must("close", th.Close(fd))
	k.take(passed)
	return k
}

// take makes a descriptor of the manager the sim's.
func (k *sim) take(fd int) {
	d, err := k.manager.Descriptor(fd)
	if err != nil {
		k.tb.Error(err)
	}
	k.fd = d
	k.mu.Lock()
	k.forked[fd] = k
	k.mu.Unlock()
	close(k.arrived)
}

// end is exit(2).
func (k *sim) end() { k.proc.Kill() }

// as runs f on a thread that stands for tid: the same as the last time, unless
// that is busy.
func (k *sim) as(tid uint32, f func(th *vkernel.Thread)) {
	k.mu.Lock()
	var th *vkernel.Thread
	if list := k.idle[tid]; len(list) > 0 {
		th = list[len(list)-1]
		k.idle[tid] = list[:len(list)-1]
	} else {
		th = k.proc.NewThread()
	}
	k.mu.Unlock()
	f(th)
	k.mu.Lock()
	k.idle[tid] = append(k.idle[tid], th)
	k.mu.Unlock()
}

// caller stands for a thread that makes calls and touches nothing.
const caller = 1 << 31

// call makes a call whose phases have the given name.
func (k *sim) call(name string, f func(th *vkernel.Thread) syscall.Errno) {
	k.as(caller, func(th *vkernel.Thread) {
		k.mu.Lock()
		k.calls[th] = name
		k.mu.Unlock()
		k.must(name, f(th))
		k.mu.Lock()
		delete(k.calls, th)
		k.mu.Unlock()
	})
}

// mapped maps r, for reading and writing.
func (k *sim) mapped(r mem.Range, flags int) {
	k.call("mmap", func(th *vkernel.Thread) syscall.Errno {
		_, errno := th.Mmap(r.Start, r.Len(), vkernel.ProtRead|vkernel.ProtWrite,
			flags|vkernel.MapAnonymous|vkernel.MapFixedNoReplace, -1, 0)
		return errno
	})
}

// share maps r as shared memory, which is not registered.
func (k *sim) share(r mem.Range) { k.mapped(r, vkernel.MapShared) }

// mmap maps and registers r.
func (k *sim) mmap(r mem.Range) {
	k.mapped(r, vkernel.MapPrivate)
	if errno := k.fd.Register(r, uapi.UFFDIO_REGISTER_MODE_MISSING); errno != 0 {
		k.tb.Errorf("register: %v", errno)
	}
	k.mu.Lock()
	k.areas = append(k.areas, area{Range: r})
	k.mu.Unlock()
}

// wipe is MADV_WIPEONFORK of what was mapped last.
func (k *sim) wipe() {
	k.mu.Lock()
	a := &k.areas[len(k.areas)-1]
	a.wipe = true
	k.mu.Unlock()
	k.advise("wipe", a.Range, vkernel.MadvWipeOnFork)
}

func (k *sim) advise(name string, r mem.Range, advice int) {
	k.call(name, func(th *vkernel.Thread) syscall.Errno { return th.Madvise(r.Start, r.Len(), advice) })
}

// split makes a VMA boundary at a: advice that nobody follows keeps the sides
// apart. Boundaries are made in order of address.
func (k *sim) split(a mem.Addr) {
	v, _ := k.mapping(a)
	advice := []int{vkernel.MadvRandom, vkernel.MadvSequential}[k.splits%2]
	k.splits++
	k.advise("split", mem.Range{Start: a, End: v.End}, advice)
	if now, _ := k.mapping(a); now.Start != a {
		k.tb.Errorf("no boundary at %v: %v", a, now)
	}
}

// vmas returns the VMAs that overlap r.
func (k *sim) vmas(r mem.Range) (all []mem.Range) {
	for line := range strings.Lines(k.proc.Maps()) {
		var start, end uint64
		if _, err := fmt.Sscanf(line, "%x-%x", &start, &end); err != nil {
			k.tb.Error(err)
		}
		if v := (mem.Range{Start: mem.Addr(start), End: mem.Addr(end)}); v.Overlaps(r) {
			all = append(all, v)
		}
	}
	return all
}

// mapping is SpaceConfig.Mapping.
func (k *sim) mapping(a mem.Addr) (mem.Range, bool) {
	all := k.vmas(mem.MakeRange(a.Down(), mem.PageSize))
	if len(all) == 0 {
		return mem.Range{}, false
	}
	return all[0], true
}

// access is one load or store of a thread: it sleeps until the page is there.
func (k *sim) access(tid uint32, f func(th *vkernel.Thread) error) (err error) {
	k.as(tid, func(th *vkernel.Thread) { err = f(th) })
	var sig *vkernel.Signal
	switch {
	case !errors.As(err, &sig):
		return err
	case sig.Signo == vkernel.SIGBUS:
		return errBus
	}
	return errSegv
}

func (k *sim) load(tid uint32, pg mem.Page) ([]byte, error) {
	b := make([]byte, mem.PageSize)
	err := k.access(tid, func(th *vkernel.Thread) error { return th.Load(context.Background(), pg.Addr(), b) })
	return b, err
}

func (k *sim) store(tid uint32, pg mem.Page, b []byte) error {
	return k.access(tid, func(th *vkernel.Thread) error { return th.Store(context.Background(), pg.Addr(), b) })
}

// isPresent asks without touching.
func (k *sim) isPresent(pg mem.Page) bool { return k.proc.PageState(pg.Addr()).Present }

// presentIn is SpaceConfig.Present.
func (k *sim) presentIn(r mem.Range, f func(mem.Range)) error {
	var found []vkernel.PageRegion
	k.call("scan", func(th *vkernel.Thread) (errno syscall.Errno) {
		found, _, errno = th.PagemapScan(k.proc, vkernel.PagemapScan{Range: r, Mask: vkernel.PagePresent})
		return errno
	})
	for _, p := range found {
		f(p.Range)
	}
	return nil
}

// present returns how many pages of the tests' memory are present.
func (k *sim) present() (n int) {
	_ = k.presentIn(mem.MakeRange(base, 1<<30), func(r mem.Range) { n += r.Pages() })
	return n
}

// pin pins a page, or unpins it.
func (k *sim) pin(pg mem.Page, on bool) {
	k.mu.Lock()
	unpin := k.pins[pg]
	delete(k.pins, pg)
	k.mu.Unlock()
	if unpin != nil {
		unpin()
	}
	if !on {
		return
	}
	k.call("pin", func(th *vkernel.Thread) (errno syscall.Errno) {
		unpin, errno = th.Pin(mem.MakeRange(pg.Addr(), mem.PageSize))
		return errno
	})
	k.mu.Lock()
	k.pins[pg] = unpin
	k.mu.Unlock()
}

// reclaim drops pages without a word to anybody, as a kernel does with what
// MADV_FREE has marked when memory is short.
func (k *sim) reclaim(r mem.Range) {
	m := k.mover()
	runs := []Run{{Src: r.Start, Pages: r.Pages()}}
	if err := m.Move(runs); err != nil || runs[0].Moved != r.Pages() {
		k.tb.Errorf("reclaim: %v, %+v", err, runs)
	}
	m.Close()
}

// remove is MADV_DONTNEED: the event comes before the pages go.
func (k *sim) remove(r mem.Range) { k.advise("remove", r, vkernel.MadvDontNeed) }

// free is MADV_FREE: the event comes, and the pages stay.
func (k *sim) free(r mem.Range) { k.advise("free", r, vkernel.MadvFree) }

// unmap is munmap(2): the pages go before the event comes.
func (k *sim) unmap(r mem.Range) {
	k.call("unmap", func(th *vkernel.Thread) syscall.Errno { return th.Munmap(r.Start, r.Len()) })
}

// remap is mremap(2) with MREMAP_MAYMOVE|MREMAP_FIXED of every VMA in from:
// one call does not move several that are registered.
func (k *sim) remap(from mem.Range, to mem.Addr) {
	for _, v := range k.vmas(from) {
		part := v.Intersect(from)
		k.call("remap", func(th *vkernel.Thread) syscall.Errno {
			_, errno := th.Mremap(part.Start, part.Len(), part.Len(), vkernel.MremapMayMove|vkernel.MremapFixed,
				part.Start-from.Start+to)
			return errno
		})
	}
}

// fork returns the child, once the event with its descriptor has been read.
func (k *sim) fork() *sim {
	k.forking.Lock()
	defer k.forking.Unlock()
	var c *sim
	k.call("fork", func(th *vkernel.Thread) syscall.Errno {
		_, errno := th.ForkWith(func(p *vkernel.Process) {
			c = k.newSim(p)
			k.mu.Lock()
			c.areas = slices.Clone(k.areas)
			k.heirs = append(k.heirs, c)
			k.mu.Unlock()
		})
		return errno
	})
	<-c.arrived
	return c
}
