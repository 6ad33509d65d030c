// SPDX-License-Identifier: Apache-2.0

package pager_test

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager"
	memstore "github.com/faultline-go/faultline/store/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// The tests of this file do the same on the running kernel and on package vkernel: a
// program in a process, a manager in another, and a pager here that does by the hand of
// the manager's threads what it would do with a descriptor of its own. So all that the
// pager hears and is answered is the backend's.

// machine is a backend. Its methods are one goroutine's at a time.
type machine struct {
	t       *testing.T
	mu      sync.Mutex
	backend conformance.Backend
	manager *process
	p       *pager.Pager
	spaces  sync.Map // *pager.Space
}

// process hands out scratch memory, and threads, for good.
type process struct {
	m *machine
	conformance.Process
	used uint64 // of the scratch memory; protected by m.mu
}

// thread is a thread of a process, with scratch memory of its own.
type thread struct {
	p       *process
	task    conformance.Task
	scratch mem.Addr
}

const (
	threadScratch = 256 << 10
	base          = mem.Addr(0x20_0000_0000)
	limitPages    = pager.MinLimit / mem.PageSize
	// atOnce is the most that is brought in with a fault.
	atOnce = 16
	events = uapi.UFFD_FEATURE_EVENT_FORK | uapi.UFFD_FEATURE_EVENT_REMAP | uapi.UFFD_FEATURE_EVENT_REMOVE |
		uapi.UFFD_FEATURE_EVENT_UNMAP | uapi.UFFD_FEATURE_THREAD_ID
)

// onBackends runs a test on each.
func onBackends(t *testing.T, test func(m *machine)) {
	for _, name := range []string{"vkernel", "kernel"} {
		t.Run(name, func(t *testing.T) {
			open := conformance.Backends()[name]
			backend, err := open()
			testutil.Need(t, err == nil, fmt.Sprint(err))
			has, err := backend.Features()
			testutil.Need(t, err == nil && has&(events|uapi.UFFD_FEATURE_MOVE) == events|uapi.UFFD_FEATURE_MOVE,
				fmt.Sprintf("userfaultfd with all events and UFFDIO_MOVE: %v, %v", has, err))
			testutil.Need(t, backend.Privileged(), "the faults of system calls need privilege")
			store, err := memstore.Open(memstore.Options{})
			if err != nil {
				t.Fatal(err)
			}
			m := &machine{t: t, backend: backend}
			if m.p, err = pager.New(pager.Config{Limit: pager.MinLimit, Store: store, Readahead: atOnce}); err != nil {
				t.Fatal(err)
			}
			m.manager = m.start()
			test(m)
			m.spaces.Range(func(s, _ any) bool {
				s.(*pager.Space).Close()
				return true
			})
			m.p.Close()
			if err := store.Close(); err != nil {
				t.Error(err)
			}
			if err := backend.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func (m *machine) must(what string, err error) {
	if err != nil {
		m.t.Helper()
		m.t.Fatalf("%s: %v", what, err)
	}
}

// start makes a process, which ends with the test.
func (m *machine) start() *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, err := m.backend.Start()
	m.must("starting a process", err)
	m.t.Cleanup(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.must("ending a process", p.Close())
	})
	return &process{m: m, Process: p}
}

// main returns the first thread.
func (p *process) main() *thread {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	return p.withScratch(p.Main())
}

// spawn makes another by the hand of by.
func (p *process) spawn(by *thread) *thread {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	task, err := p.Spawn(by.task)
	p.m.must("making a thread", err)
	return p.withScratch(task)
}

func (p *process) withScratch(task conformance.Task) *thread {
	p.used += threadScratch
	s := p.Scratch()
	if p.used > s.Len() {
		p.m.t.Fatal("there is not enough scratch memory")
	}
	return &thread{p: p, task: task, scratch: s.End - mem.Addr(p.used)}
}

// do makes a call and waits for its end.
func (th *thread) do(call conformance.Call, args ...any) conformance.Result {
	th.begin(call, args...)
	return th.end()
}

func (th *thread) begin(call conformance.Call, args ...any) {
	var words [6]uint64
	for i, a := range args {
		switch a := a.(type) {
		case int:
			words[i] = uint64(a)
		case uint64:
			words[i] = a
		case mem.Addr:
			words[i] = uint64(a)
		default:
			panic(fmt.Sprintf("argument %T", a))
		}
	}
	th.p.m.mu.Lock()
	defer th.p.m.mu.Unlock()
	th.task.Start(call, words)
}

// hung is how long a call may take, on whatever machine.
const hung = time.Minute

func (th *thread) end() conformance.Result {
	m := th.p.m
	for until := time.Now().Add(hung); ; {
		m.mu.Lock()
		state := th.task.State()
		if state == conformance.Idle {
			r := th.task.Result()
			m.mu.Unlock()
			return r
		}
		at := th.task.Describe()
		m.mu.Unlock()
		if state == conformance.Gone || time.Now().After(until) {
			panic(fmt.Sprintf("a thread is %v: %s", state, at)) // perhaps on the pager's goroutines
		}
		time.Sleep(20 * time.Microsecond) // between two looks at the state
	}
}

// ok is do for what must succeed.
func (th *thread) ok(call conformance.Call, args ...any) uint64 {
	r := th.do(call, args...)
	if r.Errno != 0 || r.Signal != 0 {
		th.p.m.t.Helper()
		th.p.m.t.Fatalf("%v%v: %v, signal %d", call, args, r.Errno, r.Signal)
	}
	return r.Value
}

func (th *thread) poke(off int, b []byte) {
	th.p.m.mu.Lock()
	defer th.p.m.mu.Unlock()
	th.p.Poke(th.scratch+mem.Addr(off), b)
}

func (th *thread) peek(off int, b []byte) {
	th.p.m.mu.Lock()
	defer th.p.m.mu.Unlock()
	th.p.Peek(th.scratch+mem.Addr(off), b)
}

// ioctl makes a request with a struct of words, and returns them as they are then.
func (th *thread) ioctl(fd uint64, request uint32, words ...uint64) ([]uint64, syscall.Errno) {
	var b []byte
	for _, w := range words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	th.poke(0, b)
	r := th.do(conformance.Ioctl, fd, uint64(request), th.scratch)
	th.peek(0, b)
	for i := range words {
		words[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return words, syscall.Errno(r.Errno)
}

// open makes a descriptor that has shaken hands.
func (th *thread) open(features uapi.Features) uint64 {
	fd := th.ok(conformance.Userfaultfd, conformance.OCloexec|conformance.ONonblock)
	if _, errno := th.ioctl(fd, uapi.UFFDIO_API, uapi.UFFD_API, uint64(features), 0); errno != 0 {
		th.p.m.t.Fatalf("UFFDIO_API: %v", errno)
	}
	return fd
}

func (th *thread) register(fd uint64, r mem.Range) {
	if _, errno := th.ioctl(fd, uapi.UFFDIO_REGISTER, uint64(r.Start), r.Len(), uint64(uapi.UFFDIO_REGISTER_MODE_MISSING), 0); errno != 0 {
		th.p.m.t.Fatalf("UFFDIO_REGISTER: %v", errno)
	}
}

// descriptor is a pager.Descriptor by the hand of two threads of the manager.
type descriptor struct {
	fd      uint64
	reading *thread // for the goroutine that reads
	mu      sync.Mutex
	asking  *thread // for whoever else; protected by mu
	stop    atomic.Bool
}

var _ pager.Descriptor = (*descriptor)(nil)

func (m *machine) descriptor(fd uint64) *descriptor {
	first := m.manager.main()
	return &descriptor{fd: fd, reading: m.manager.spawn(first), asking: m.manager.spawn(first)}
}

func (d *descriptor) Read(msgs []uapi.Msg) (int, syscall.Errno) {
	r := d.reading.do(conformance.Read, d.fd, d.reading.scratch, len(msgs)*uapi.MsgSize)
	if r.Errno != 0 {
		return 0, syscall.Errno(r.Errno)
	}
	b := make([]byte, r.Value)
	d.reading.peek(0, b)
	for i := range len(b) / uapi.MsgSize {
		msg, err := uapi.ParseMsg(b[i*uapi.MsgSize:][:uapi.MsgSize])
		if err != nil {
			panic(err)
		}
		msgs[i] = msg
	}
	return len(b) / uapi.MsgSize, 0
}

func (d *descriptor) Wait(timeout time.Duration) (bool, syscall.Errno) {
	for until := time.Now().Add(timeout); ; {
		if ready(d.reading, d.fd) {
			return true, 0
		}
		if d.stop.Swap(false) || timeout >= 0 && time.Now().After(until) {
			return false, 0
		}
		time.Sleep(20 * time.Microsecond) // between two looks
	}
}

func (d *descriptor) Interrupt() { d.stop.Store(true) }

func (d *descriptor) Pending() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return ready(d.asking, d.fd)
}

// ready is poll(2) that does not wait.
func ready(th *thread, fd uint64) bool {
	th.poke(0, binary.LittleEndian.AppendUint64(nil, fd|conformance.PollIn<<32))
	return th.do(conformance.Poll, th.scratch, 1, 0).Value > 0
}

// fill makes one of the requests whose last word is the number of bytes done.
func (d *descriptor) fill(request uint32, words ...uint64) (int, syscall.Errno) {
	out, errno := d.asking.ioctl(d.fd, request, append(words, 0)...)
	return int(max(0, int64(out[len(out)-1]))), errno
}

const source = 4096 // where in the scratch memory a copy's bytes are

func (d *descriptor) Copy(dst mem.Addr, src []byte, mode uapi.CopyMode) (int, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asking.poke(source, src)
	return d.fill(uapi.UFFDIO_COPY, uint64(dst), uint64(d.asking.scratch+source), uint64(len(src)), uint64(mode))
}

func (d *descriptor) Poison(r mem.Range, mode uapi.PoisonMode) (int, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fill(uapi.UFFDIO_POISON, uint64(r.Start), r.Len(), uint64(mode))
}

func (d *descriptor) Wake(r mem.Range) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, errno := d.asking.ioctl(d.fd, uapi.UFFDIO_WAKE, uint64(r.Start), r.Len())
	return errno
}

// Changing is uffd.FD's: a copy of nothing is refused for that before all else.
func (d *descriptor) Changing() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, errno := d.fill(uapi.UFFDIO_COPY, 0, 0, 0, 0)
	return errno == syscall.EAGAIN
}

func (d *descriptor) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.asking.do(conformance.Close, d.fd); r.Errno != 0 {
		return syscall.Errno(r.Errno)
	}
	return nil
}

// mover moves pages by the hand of a thread of the program's process.
type mover struct {
	th     *thread
	fd     uint64
	window mem.Range
}

var _ pager.Mover = (*mover)(nil)

const slots = 64

func newMover(th *thread) (pager.Mover, error) {
	m := &mover{th: th}
	at := m.th.ok(conformance.Mmap, 0, slots*mem.PageSize, conformance.ProtRead|conformance.ProtWrite,
		conformance.MapPrivate|conformance.MapAnonymous, -1, 0)
	m.window = mem.MakeRange(mem.Addr(at), slots*mem.PageSize)
	m.th.ok(conformance.Madvise, m.window.Start, m.window.Len(), madvDontfork)
	m.fd = m.th.open(0)
	m.th.register(m.fd, m.window)
	return m, nil
}

const madvDontfork = 10

func (m *mover) Slots() int { return slots }

func (m *mover) slot(i int) mem.Addr { return m.window.Start + mem.Addr(i)*mem.PageSize }

func (m *mover) Move(runs []pager.Run) error {
	for i := range runs {
		r := &runs[i]
		r.Moved, r.Errno = 0, 0
		for r.Moved < r.Pages && r.Errno == 0 {
			out, errno := m.th.ioctl(m.fd, uapi.UFFDIO_MOVE, uint64(m.slot(r.Slot+r.Moved)),
				uint64(r.Src)+uint64(r.Moved)*mem.PageSize, uint64(r.Pages-r.Moved)*mem.PageSize, 0, 0)
			moved := int(max(0, int64(out[4]))) / mem.PageSize
			r.Moved += moved
			if errno != syscall.EAGAIN || moved == 0 {
				r.Errno = errno
			}
		}
	}
	return nil
}

func (m *mover) Read(runs []pager.Run, buf []byte) error {
	for _, r := range runs {
		for i := r.Slot; i < r.Slot+r.Moved; i++ {
			m.th.ok(conformance.CopyMem, m.th.scratch, m.slot(i), mem.PageSize)
			m.th.peek(0, buf[i*mem.PageSize:(i+1)*mem.PageSize])
		}
	}
	return nil
}

func (m *mover) Drop() {
	m.th.ok(conformance.Madvise, m.window.Start, m.window.Len(), conformance.MadvDontneed)
}

func (m *mover) Flush() {}

func (m *mover) Unshare(r mem.Range) error {
	if res := m.th.do(conformance.Madvise, r.Start, r.Len(), conformance.MadvPopulateWrite); res.Errno != 0 {
		return syscall.Errno(res.Errno)
	}
	return nil
}

func (m *mover) Close() {
	m.th.ok(conformance.Munmap, m.window.Start, m.window.Len())
	m.th.ok(conformance.Close, m.fd)
}

// program is a process whose memory is served.
type program struct {
	*process
	th *thread
	r  mem.Range
	s  *pager.Space
	// forked has the children that the pager was told of.
	forked chan newborn
}

type newborn struct {
	fd    int
	table *pager.Child
}

// run starts a program with n pages that are served.
func (m *machine) run(n int) *program {
	p := &program{process: m.start(), r: mem.MakeRange(base, uint64(n)*mem.PageSize), forked: make(chan newborn, 1)}
	p.th = p.main()
	p.th.ok(conformance.Mmap, p.r.Start, p.r.Len(), conformance.ProtRead|conformance.ProtWrite,
		conformance.MapPrivate|conformance.MapAnonymous|conformance.MapFixed, -1, 0)
	fd := p.th.open(events)
	m.mu.Lock()
	taken, err := m.manager.Take(p.Process, int(fd))
	m.mu.Unlock()
	m.must("taking the descriptor", err)
	p.s = m.p.Attach(m.descriptor(uint64(taken)), p.config())
	m.spaces.Store(p.s, nil)
	m.must("Add", p.s.Add(p.r, false))
	p.th.register(fd, p.r)
	p.th.ok(conformance.Close, fd)
	return p
}

func (p *program) config() pager.SpaceConfig {
	// By the main thread's hand, which may be asleep when the mover is wanted.
	agent := p.spawn(p.th)
	return pager.SpaceConfig{
		Name:    fmt.Sprintf("process %d", p.PID()),
		Mover:   func() (pager.Mover, error) { return newMover(agent) },
		Forked:  func(fd int, c *pager.Child) { p.forked <- newborn{fd, c} },
		Present: p.present,
	}
}

func (p *program) present(r mem.Range, f func(mem.Range)) error {
	p.m.mu.Lock()
	words, err := p.Pagemap(r)
	p.m.mu.Unlock()
	for i, w := range words {
		if w>>63 != 0 {
			f(mem.MakeRange(r.Start+mem.Addr(i)*mem.PageSize, mem.PageSize))
		}
	}
	return err
}

func (p *program) page(i int) mem.Addr { return p.r.Start + mem.Addr(i)*mem.PageSize }

// Each page begins and ends with its number and a salt.
func (p *program) store(th *thread, i int, salt uint64) {
	p.m.t.Helper()
	th.ok(conformance.Store64, p.page(i), uint64(i)<<32|salt)
	th.ok(conformance.Store64, p.page(i)+mem.PageSize-8, uint64(i)<<32|salt)
}

func (p *program) want(th *thread, i int, salt uint64) {
	p.m.t.Helper()
	p.wantAt(th, p.page(i), uint64(i)<<32|salt)
}

func (p *program) wantAt(th *thread, a mem.Addr, want uint64) {
	p.m.t.Helper()
	for _, at := range []mem.Addr{a, a + mem.PageSize - 8} {
		if got := th.ok(conformance.Load64, at); got != want {
			p.m.t.Fatalf("%v holds %#x, want %#x", at, got, want)
		}
	}
}

// over is a number of pages that the limit has no room for, whatever it may be passed
// by for a moment.
const over = 2*limitPages + 700

// TestPagesOnBackends: what is more than the limit leaves, and comes back as it was.
func TestPagesOnBackends(t *testing.T) {
	if testing.Short() {
		t.Skip("the other tests of this file do the same, and more")
	}
	onBackends(t, func(m *machine) {
		p := m.run(over)
		for i := range over {
			p.store(p.th, i, 1)
		}
		for i := range over {
			p.want(p.th, i, 1)
		}
		for i := range over { // scattered
			p.want(p.th, i*7%over, 1)
			p.store(p.th, i*7%over, 2)
		}
		for i := over - 1; i >= 0; i-- {
			p.want(p.th, i, 2)
		}
		here := 0
		m.must("present", p.present(p.r, func(mem.Range) { here++ }))
		st := m.p.Stats()
		if most := limitPages + 600; here > most || st.PagesOut < over || st.Lost > 0 {
			t.Errorf("%d pages are present, at most %d may be; %d went out, %d were lost", here, most, st.PagesOut, st.Lost)
		}
	})
}

// TestLayoutOnBackends: what happens to memory happens to what of it is outside (B.10, H5, H6).
func TestLayoutOnBackends(t *testing.T) {
	onBackends(t, func(m *machine) {
		p := m.run(over)
		for i := range over {
			p.store(p.th, i, 1)
		}
		at := func(i, n int) (mem.Addr, uint64) { return p.page(i), uint64(n) * mem.PageSize }
		drop, n := at(10, 100)
		p.th.ok(conformance.Madvise, drop, n, conformance.MadvDontneed)
		gone, n := at(200, 100)
		p.th.ok(conformance.Munmap, gone, n)
		from, n := at(400, 100)
		const to = base + 1<<30
		p.th.ok(conformance.Mremap, from, n, n, conformance.MremapMayMove|conformance.MremapFixed, to)
		for i := range over {
			switch {
			case i >= 10 && i < 110:
				p.wantAt(p.th, p.page(i), 0)
			case i >= 200 && i < 300, i >= 400 && i < 500:
				if r := p.th.do(conformance.Load64, p.page(i)); r.Signal != int(syscall.SIGSEGV) {
					t.Fatalf("page %d is still there: %+v", i, r)
				}
			default:
				p.want(p.th, i, 1)
			}
		}
		for i := range 100 {
			p.wantAt(p.th, to+mem.Addr(i)*mem.PageSize, uint64(400+i)<<32|1)
		}
	})
}

// TestForkOnBackends: a child finds what its parent had, in memory and outside, and each
// has its own from then on.
func TestForkOnBackends(t *testing.T) {
	onBackends(t, func(m *machine) {
		p := m.run(over)
		for i := range over {
			p.store(p.th, i, 1)
		}
		m.mu.Lock()
		born, err := p.BeginFork(p.th.task)
		m.mu.Unlock()
		m.must("fork", err)
		b := <-p.forked // the pager has read the event
		m.mu.Lock()
		proc, err := born()
		m.mu.Unlock()
		m.must("fork", err)
		c := &program{process: &process{m: m, Process: proc, used: p.used}, r: p.r, forked: make(chan newborn, 1)}
		c.th = c.main()
		c.s = b.table.Start(m.descriptor(uint64(b.fd)), c.config())
		m.spaces.Store(c.s, nil)
		m.must("FindResident", c.s.FindResident(c.r, false))
		p.th.end()
		for i := range over {
			p.store(p.th, i, 2)
			c.want(c.th, i, 1)
		}
		for i := over - 1; i >= 0; i-- {
			c.store(c.th, i, 3)
			p.want(p.th, i, 2)
		}
		for i := range over {
			c.want(c.th, i, 3)
		}
	})
}

// TestThreadsOnBackends: threads that want the same pages at once, and others.
func TestThreadsOnBackends(t *testing.T) {
	onBackends(t, func(m *machine) {
		p := m.run(over)
		for i := range over {
			p.store(p.th, i, 1)
		}
		const threads = 4
		var all [threads]*thread
		for k := range all {
			all[k] = p.spawn(p.th)
		}
		for i := 0; i < over; i++ {
			for k, th := range all {
				th.begin(conformance.Load64, p.page((i+k/2*over/2)%over)) // two and two the same
			}
			for k, th := range all {
				at := (i + k/2*over/2) % over
				if r := th.end(); r.Signal != 0 || r.Value != uint64(at)<<32|1 {
					t.Fatalf("thread %d, page %d: %+v", k, at, r)
				}
			}
		}
		if st := m.p.Stats(); st.Lost > 0 {
			t.Errorf("%d pages were lost", st.Lost)
		}
	})
}
