// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"errors"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// The errors that a thread of a sim can meet.
var (
	errSegv = errors.New("SIGSEGV")
	errBus  = errors.New("SIGBUS")
	errZero = errors.New("served by nobody: the descriptor was closed")
)

// frame is the memory of a page. Forked spaces share frames.
type frame struct {
	data [mem.PageSize]byte
	refs int
}

// simPage is a page that is not absent.
type simPage struct {
	*frame         // nil if poisoned
	exclusive bool // not shared by fork since it was last written
	pinned    bool // as by vmsplice(2)
}

type simVMA struct {
	mem.Range
	readonly, mlocked, wipe bool
	unregistered            bool
}

type waiter struct {
	page mem.Page
	tid  uint32
	wake chan struct{}
}

type simEvent struct {
	msg  uapi.Msg
	read chan struct{} // closed when the message has been read
}

// world is what the spaces of one test share.
type world struct {
	tb      testing.TB
	mu      sync.Mutex
	present int // pages in spaces and windows; protected by mu, as all of the spaces
	most    int
	nextFD  int
	forked  map[int]*sim
	sims    []*sim
	gates   map[string]*gate
	held    []*gate
}

// sim is one address space with its descriptor, as userfaultfd(2) and the
// observations of B.10 to B.13 have it.
type sim struct {
	*world
	pages    map[mem.Page]*simPage
	vmas     []simVMA
	unread   []*waiter
	waiting  map[*waiter]bool // read, or not
	events   []*simEvent
	changing int
	closed   bool
	dead     bool
	ready    chan struct{}
	intr     chan struct{}

	short    int                           // every COPY stops after so many pages, if positive
	tried    int                           // calls of COPY
	copies   []mem.Range                   // what COPY has installed
	wakes    []mem.Range                   // arguments of WAKE
	onCopy   func(mem.Range) syscall.Errno // protected by mu, called with it
	stuck    bool                          // Changing is on for good
	movers   int
	moveDies int // pages after which the mover's agent dies, if positive
	readErr  error
	moves    int
}

// gate holds an operation at a phase.
type gate struct {
	arrived, open chan struct{}
	once          sync.Once
}

func newWorld(tb testing.TB) *world {
	return &world{tb: tb, forked: make(map[int]*sim), gates: make(map[string]*gate), nextFD: 1000}
}

func (w *world) space() *sim {
	k := &sim{
		world: w, pages: make(map[mem.Page]*simPage), waiting: make(map[*waiter]bool),
		ready: make(chan struct{}, 1), intr: make(chan struct{}, 1),
	}
	w.mu.Lock()
	w.sims = append(w.sims, k)
	w.mu.Unlock()
	return k
}

// hold makes the next operation that comes to phase stop there.
func (w *world) hold(phase string) *gate {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.newGateLocked()
	w.gates[phase] = g
	return g
}

func (w *world) newGate() *gate {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.newGateLocked()
}

func (w *world) newGateLocked() *gate {
	g := &gate{arrived: make(chan struct{}), open: make(chan struct{})}
	w.held = append(w.held, g)
	return g
}

func (w *world) at(phase string) {
	w.mu.Lock()
	g := w.gates[phase]
	delete(w.gates, phase)
	w.mu.Unlock()
	if g != nil {
		close(g.arrived)
		<-g.open
	}
}

func (g *gate) release() { g.once.Do(func() { close(g.open) }) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (w *world) countLocked(n int) {
	w.present += n
	w.most = max(w.most, w.present)
}

func (k *sim) vmaLocked(a mem.Addr) *simVMA {
	for i := range k.vmas {
		if k.vmas[i].Contains(a) {
			return &k.vmas[i]
		}
	}
	return nil
}

// mmap maps and registers r as one VMA.
func (k *sim) mmap(r mem.Range) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.vmas = append(k.vmas, simVMA{Range: r})
}

// split makes a VMA boundary at a, as mprotect(2) does.
func (k *sim) split(a mem.Addr) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if v := k.vmaLocked(a); v != nil && v.Start < a {
		right := *v
		v.End, right.Start = a, a
		k.vmas = append(k.vmas, right)
	}
}

func (k *sim) dropLocked(pg mem.Page) {
	p := k.pages[pg]
	if p == nil {
		return
	}
	if p.frame != nil {
		p.refs--
		k.countLocked(-1)
	}
	delete(k.pages, pg)
}

func (k *sim) zapLocked(r mem.Range) {
	if r.Pages() > len(k.pages) {
		for pg := range k.pages {
			if r.Contains(pg.Addr()) {
				k.dropLocked(pg)
			}
		}
		return
	}
	for pg := r.Start.Page(); pg < r.End.Page(); pg++ {
		k.dropLocked(pg)
	}
}

func (k *sim) cutLocked(r mem.Range) {
	var out []simVMA
	for _, v := range k.vmas {
		for _, part := range []mem.Range{{Start: v.Start, End: min(v.End, r.Start)}, {Start: max(v.Start, r.End), End: v.End}} {
			if !part.Empty() {
				n := v
				n.Range = part
				out = append(out, n)
			}
		}
	}
	k.vmas = out
}

// access is one load or store of a thread: it faults until the page is there.
func (k *sim) access(tid uint32, a mem.Addr, store bool, f func(page []byte)) error {
	for {
		k.mu.Lock()
		v, p := k.vmaLocked(a), k.pages[a.Page()]
		switch {
		case v == nil:
			k.mu.Unlock()
			return errSegv
		case p == nil && k.closed:
			k.mu.Unlock()
			return errZero
		case p == nil:
			w := &waiter{a.Page(), tid, make(chan struct{})}
			k.unread = append(k.unread, w)
			k.waiting[w] = true
			signal(k.ready)
			k.mu.Unlock()
			<-w.wake
			continue
		case p.frame == nil:
			k.mu.Unlock()
			return errBus
		}
		if store {
			k.ownLocked(p)
		}
		f(p.data[:])
		k.mu.Unlock()
		return nil
	}
}

func (k *sim) ownLocked(p *simPage) {
	if p.refs > 1 {
		p.refs--
		p.frame = &frame{data: p.data, refs: 1}
	}
	p.exclusive = true
}

func (k *sim) load(tid uint32, pg mem.Page) (out []byte, err error) {
	err = k.access(tid, pg.Addr(), false, func(b []byte) { out = slices.Clone(b) })
	return out, err
}

func (k *sim) store(tid uint32, pg mem.Page, b []byte) error {
	return k.access(tid, pg.Addr(), true, func(dst []byte) { copy(dst, b) })
}

// isPresent asks without touching.
func (k *sim) isPresent(pg mem.Page) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.pages[pg]
	return p != nil && p.frame != nil
}

// presentIn is SpaceConfig.Present.
func (k *sim) presentIn(r mem.Range, f func(mem.Range)) error {
	var found []mem.Page
	k.mu.Lock()
	for pg, p := range k.pages {
		if p.frame != nil && r.Contains(pg.Addr()) {
			found = append(found, pg)
		}
	}
	k.mu.Unlock()
	slices.Sort(found)
	for _, pg := range found {
		f(mem.MakeRange(pg.Addr(), mem.PageSize))
	}
	return nil
}

// mapping is SpaceConfig.Mapping.
func (k *sim) mapping(a mem.Addr) (mem.Range, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if v := k.vmaLocked(a); v != nil {
		return v.Range, true
	}
	return mem.Range{}, false
}

func (k *sim) eventLocked(kind uapi.EventKind, words ...uint64) *simEvent {
	e := &simEvent{read: make(chan struct{})}
	e.msg.Event = kind
	copy(e.msg.Word[:], words)
	k.changing++
	return e
}

// deliver queues e and waits until it was read, as the thread of the
// operation does. The count of layout changes drops when that thread runs.
func (k *sim) deliver(e *simEvent, phase string) {
	k.mu.Lock()
	if !k.closed {
		k.events = append(k.events, e)
		signal(k.ready)
	} else {
		close(e.read)
	}
	k.mu.Unlock()
	<-e.read
	k.at(phase + ":read")
	k.mu.Lock()
	k.changing--
	k.mu.Unlock()
	k.at(phase + ":done")
}

// remove is MADV_DONTNEED: the event comes before the pages go.
func (k *sim) remove(r mem.Range) {
	k.mu.Lock()
	e := k.eventLocked(uapi.UFFD_EVENT_REMOVE, uint64(r.Start), uint64(r.End))
	k.mu.Unlock()
	k.deliver(e, "remove")
	k.mu.Lock()
	k.zapLocked(r)
	k.mu.Unlock()
}

// free is MADV_FREE: the event comes, and the pages stay.
func (k *sim) free(r mem.Range) {
	k.mu.Lock()
	e := k.eventLocked(uapi.UFFD_EVENT_REMOVE, uint64(r.Start), uint64(r.End))
	k.mu.Unlock()
	k.deliver(e, "remove")
}

// unmap is munmap(2): the pages go before the event comes.
func (k *sim) unmap(r mem.Range) {
	k.mu.Lock()
	e := k.eventLocked(uapi.UFFD_EVENT_UNMAP, uint64(r.Start), uint64(r.End))
	k.zapLocked(r)
	k.cutLocked(r)
	k.mu.Unlock()
	k.at("unmap:gone")
	k.deliver(e, "unmap")
}

// remap is mremap(2) with MREMAP_MAYMOVE|MREMAP_FIXED of a whole VMA.
func (k *sim) remap(from mem.Range, to mem.Addr) {
	dst := mem.MakeRange(to, from.Len())
	k.mu.Lock()
	var evs []*simEvent
	for _, v := range k.vmas {
		if v.Overlaps(dst) {
			evs = append(evs, k.eventLocked(uapi.UFFD_EVENT_UNMAP, uint64(dst.Start), uint64(dst.End)))
			break
		}
	}
	k.zapLocked(dst)
	k.cutLocked(dst)
	for pg := from.Start.Page(); pg < from.End.Page(); pg++ {
		if p := k.pages[pg]; p != nil {
			delete(k.pages, pg)
			k.pages[pg-from.Start.Page()+to.Page()] = p
		}
	}
	var moved []simVMA
	for _, v := range k.vmas {
		if part := v.Intersect(from); !part.Empty() {
			v.Range = mem.Range{Start: part.Start - from.Start + to, End: part.End - from.Start + to}
			moved = append(moved, v)
		}
	}
	k.cutLocked(from)
	k.vmas = append(k.vmas, moved...)
	evs = append(evs,
		k.eventLocked(uapi.UFFD_EVENT_REMAP, uint64(from.Start), uint64(to), from.Len()),
		k.eventLocked(uapi.UFFD_EVENT_UNMAP, uint64(from.Start), uint64(from.End)))
	k.mu.Unlock()
	k.at("remap:moved")
	for _, e := range evs {
		k.deliver(e, "remap")
	}
}

// fork returns the child, whose descriptor the message carries.
func (k *sim) fork() *sim {
	c := k.space()
	k.mu.Lock()
	k.nextFD++
	k.forked[k.nextFD] = c
	c.vmas = slices.Clone(k.vmas)
	for pg, p := range k.pages {
		if k.vmaLocked(pg.Addr()).wipe {
			continue
		}
		n := *p
		if p.frame != nil {
			p.exclusive, n.exclusive = false, false
			p.refs++
			k.countLocked(1)
		}
		c.pages[pg] = &n
	}
	e := k.eventLocked(uapi.UFFD_EVENT_FORK, uint64(k.nextFD))
	k.mu.Unlock()
	k.deliver(e, "fork")
	return c
}

// The descriptor.

func (k *sim) Read(msgs []uapi.Msg) (n int, errno syscall.Errno) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for n < len(msgs) && len(k.unread) > 0 {
		w := k.unread[0]
		k.unread = k.unread[1:]
		msgs[n] = uapi.Msg{Event: uapi.UFFD_EVENT_PAGEFAULT, Word: [3]uint64{0, uint64(w.page.Addr()), uint64(w.tid)}}
		n++
	}
	for n < len(msgs) && len(k.events) > 0 {
		e := k.events[0]
		k.events = k.events[1:]
		msgs[n] = e.msg
		n++
		close(e.read)
	}
	if n == 0 {
		return 0, syscall.EAGAIN
	}
	return n, 0
}

func (k *sim) Pending() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.unread)+len(k.events) > 0
}

func (k *sim) Wait(timeout time.Duration) (bool, syscall.Errno) {
	var end <-chan time.Time
	if timeout >= 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		end = t.C
	}
	for {
		if k.Pending() {
			return true, 0
		}
		select {
		case <-k.ready:
		case <-k.intr:
			return k.Pending(), 0
		case <-end:
			return k.Pending(), 0
		}
	}
}

func (k *sim) Interrupt() { signal(k.intr) }

func (k *sim) Changing() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changing > 0 || k.stuck
}

func (k *sim) wakeLocked(r mem.Range) {
	k.unread = slices.DeleteFunc(k.unread, func(w *waiter) bool { return r.Contains(w.page.Addr()) })
	for w := range k.waiting {
		if r.Contains(w.page.Addr()) {
			delete(k.waiting, w)
			close(w.wake)
		}
	}
}

func (k *sim) checkLocked(r mem.Range) syscall.Errno {
	switch v := k.vmaLocked(r.Start); {
	case k.closed:
		return syscall.EBADF
	case k.changing > 0 || k.stuck:
		return syscall.EAGAIN
	case k.dead:
		return syscall.ESRCH
	case v == nil || !v.Covers(r) || v.unregistered:
		return syscall.ENOENT
	}
	return 0
}

func (k *sim) Copy(dst mem.Addr, src []byte, _ uapi.CopyMode) (done int, errno syscall.Errno) {
	r := mem.MakeRange(dst, uint64(len(src)))
	k.at("copy")
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tried++
	if errno := k.checkLocked(r); errno != 0 {
		return 0, errno
	}
	if k.onCopy != nil {
		if errno := k.onCopy(r); errno != 0 {
			return 0, errno
		}
	}
	for ; done < len(src); done += mem.PageSize {
		pg := (dst + mem.Addr(done)).Page()
		if p := k.pages[pg]; p != nil && p.frame != nil {
			errno = syscall.EEXIST
			break
		}
		if k.short > 0 && done == k.short*mem.PageSize {
			errno = syscall.EAGAIN
			break
		}
		f := &frame{refs: 1}
		copy(f.data[:], src[done:])
		k.pages[pg] = &simPage{frame: f, exclusive: true}
		k.countLocked(1)
	}
	if done > 0 {
		k.copies = append(k.copies, mem.MakeRange(dst, uint64(done)))
		k.wakeLocked(mem.MakeRange(dst, uint64(done)))
		if done < len(src) {
			errno = syscall.EAGAIN
		}
	}
	return done, errno
}

func (k *sim) Wake(r mem.Range) syscall.Errno {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wakes = append(k.wakes, r)
	k.wakeLocked(r)
	return 0
}

func (k *sim) Poison(r mem.Range, _ uapi.PoisonMode) (int, syscall.Errno) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if errno := k.checkLocked(r); errno != 0 {
		return 0, errno
	}
	if k.pages[r.Start.Page()] != nil {
		return 0, syscall.EEXIST
	}
	k.pages[r.Start.Page()] = &simPage{}
	k.wakeLocked(r)
	return mem.PageSize, 0
}

func (k *sim) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	k.wakeLocked(mem.Range{Start: 0, End: 1 << 48})
	for _, e := range k.events {
		close(e.read)
	}
	k.events = nil
	return nil
}

// simMover moves pages of a sim.
type simMover struct {
	k     *sim
	slots [512]*frame
	dirty bool
	dead  bool
}

var errAgent = errors.New("the agent died")

func (k *sim) newMover() (Mover, error) {
	k.at("mover")
	k.mu.Lock()
	defer k.mu.Unlock()
	k.movers++
	return &simMover{k: k}, nil
}

func (m *simMover) Slots() int { return len(m.slots) }

func (m *simMover) Move(runs []Run) error {
	k := m.k
	k.at("move")
	if m.dirty {
		m.Flush()
	}
	for i := range runs {
		runs[i].Moved, runs[i].Errno = 0, syscall.EBUSY
	}
	for i := range runs {
		r := &runs[i]
		r.Errno = 0
		for r.Moved < r.Pages && r.Errno == 0 {
			k.mu.Lock()
			if k.moveDies > 0 {
				if k.moveDies--; k.moveDies == 0 {
					m.dead = true
					r.Errno = syscall.EBUSY
					k.mu.Unlock()
					return errAgent
				}
			}
			if r.Errno = m.moveLocked(r.Src+mem.Addr(r.Moved*mem.PageSize), r.Slot+r.Moved); r.Errno == 0 {
				r.Moved++
			}
			k.mu.Unlock()
		}
	}
	k.at("moved")
	return nil
}

func (m *simMover) moveLocked(src mem.Addr, slot int) syscall.Errno {
	k := m.k
	v, p := k.vmaLocked(src), k.pages[src.Page()]
	switch {
	case m.slots[slot] != nil:
		k.tb.Errorf("slot %d of the window is not empty", slot)
		return syscall.EEXIST
	case v == nil:
		return syscall.ENOENT
	case v.readonly || v.mlocked:
		return syscall.EINVAL
	case p == nil:
		return syscall.ENOENT
	case p.frame == nil:
		return syscall.EFAULT
	case p.pinned || !p.exclusive:
		return syscall.EBUSY
	}
	k.moves++
	m.slots[slot] = p.frame
	delete(k.pages, src.Page())
	return 0
}

func (m *simMover) Read(runs []Run, buf []byte) error {
	m.k.at("read")
	m.k.mu.Lock()
	defer m.k.mu.Unlock()
	if m.k.readErr != nil {
		return m.k.readErr
	}
	for _, r := range runs {
		for i := range r.Moved {
			copy(buf[(r.Slot+i)*mem.PageSize:], m.slots[r.Slot+i].data[:])
		}
	}
	return nil
}

func (m *simMover) Drop() { m.dirty = true }

func (m *simMover) Flush() {
	m.k.mu.Lock()
	defer m.k.mu.Unlock()
	for i, f := range m.slots {
		if f != nil {
			m.k.countLocked(-1)
			m.slots[i] = nil
		}
	}
	m.dirty = false
}

func (m *simMover) Unshare(r mem.Range) error {
	m.k.at("unshare")
	for pg := r.Start.Page(); pg < r.End.Page(); pg++ {
		if err := m.k.access(9999, pg.Addr(), true, func([]byte) {}); err != nil {
			return err
		}
	}
	return nil
}

func (m *simMover) Close() { m.Flush() }

var _ Descriptor = (*sim)(nil)
var _ Mover = (*simMover)(nil)
