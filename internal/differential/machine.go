// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/mem"
)

const (
	regions   = 3
	workers   = 3
	smallSize = 8 // pages of a region
	hugeSize  = 2
	maxFDs    = 4
	maxForks  = 2

	base mem.Addr = 0x20_0000_0000
	gap           = 16 << 20
	// before is how much of its place a region leaves free: memory grows down
	// there. belowPages of it have a page table with the region, and are named
	// like the region's own.
	before     = 2<<20 + 1<<16
	belowPages = 2
	// Aliases of the regions' files are here, and are never registered.
	aliasBase mem.Addr = 0x28_0000_0000

	budget = 5 * time.Second
)

// region is a place where memory is, most of the time.
type region struct {
	kind  conformance.Memory
	pages int
	all   mem.Range
	file  uint64    // descriptor, or none
	alias mem.Range // of the file
	// marked says that huge pages may have been protected.
	marked bool
}

// below are the pages before the region that have names. Where pages are huge
// there are none.
func (r *region) below() mem.Range {
	if r.kind.Huge() {
		return mem.Range{Start: r.all.Start, End: r.all.Start}
	}
	return mem.Range{Start: r.all.Start - belowPages*mem.PageSize, End: r.all.Start}
}

func (r *region) mark() { r.marked = r.marked || r.kind.Huge() }

const none = ^uint64(0)

// actor is a thread that may block.
type actor struct {
	name  string
	task  conformance.Task
	last  conformance.State
	pipe  uint64                              // where to write; its own, since a writer holds others up
	user  bool                                // its last call is an access
	child func() (conformance.Process, error) // of the fork that it is in
	proc  conformance.Process                 // of a child
	// drops is what its advice drops while it sleeps for an event.
	drops mem.Range
	// wants is what its call brings in, to read it, to write it or perhaps
	// either.
	wants         mem.Range
	reads, writes bool
}

// machine is one side.
type machine struct {
	b       conformance.Backend
	p       conformance.Process
	control conformance.Task // never blocks
	actors  []*actor
	kids    []*actor
	regions [regions]region
	fds     []uint64           // of userfaultfds; closed ones are none
	epolls  map[int]*[2]uint64 // by the index of the descriptor that they watch
	forks   int
	selfMem uint64   // /proc/self/mem
	pagemap uint64   // /proc/self/pagemap
	scratch mem.Addr // arguments
	fills   mem.Addr // sources of copies, one page of each letter
	// muddled says that two threads have queued messages at once.
	muddled bool
	trace   []string
	rounds  int // of reading everything at the end
}

// failure is thrown where a side does not do what both must.
type failure struct{ err error }

func (m *machine) fail(format string, args ...any) {
	panic(failure{fmt.Errorf(m.b.Name()+": "+format, args...)})
}

func (m *machine) must(err error) {
	if err != nil {
		m.fail("%w", err)
	}
}

// newMachine prepares a side for a script.
func newMachine(b conformance.Backend, s Script) (m *machine, err error) {
	p, err := b.Start()
	if err != nil {
		return nil, err
	}
	defer func() {
		if f, ok := recover().(failure); ok {
			p.Close()
			m, err = nil, f.err
		}
	}()
	m = &machine{b: b, p: p, control: p.Main(), scratch: p.Scratch().Start, epolls: map[int]*[2]uint64{}}
	m.fills = (m.scratch + 1<<16).Up()
	m.selfMem = m.do(conformance.OpenSelfMem, conformance.ORdwr)
	m.pagemap = m.do(conformance.OpenPagemap)
	huge := false
	for i, k := range s.Memory {
		huge = huge || k.Huge()
		m.makeRegion(i, k)
	}
	// Only the start of a page is ever compared.
	for i := range fillKinds {
		letters := []byte(strings.Repeat(string(rune('a'+i)), mem.PageSize))
		m.p.Poke(m.fill(i), letters)
		if huge {
			m.p.Poke(m.fill(i)+2<<20, letters)
		}
	}
	for i := range workers {
		t, err := p.Spawn(m.control)
		m.must(err)
		m.do(conformance.Pipe, m.scratch, 0)
		var ends [8]byte
		p.Peek(m.scratch, ends[:])
		m.actors = append(m.actors, &actor{name: fmt.Sprint("w", i), task: t, last: conformance.Idle,
			pipe: uint64(binary.LittleEndian.Uint32(ends[4:]))})
	}
	return m, nil
}

// fillKinds is how many letters there are to copy.
const fillKinds = 3

// fill returns where a page of letter i is to copy from.
func (m *machine) fill(i int) mem.Addr { return m.fills + mem.Addr(i*(hugeSize*2<<20+mem.PageSize)) }

func (m *machine) makeRegion(i int, k conformance.Memory) {
	r := &m.regions[i]
	*r = region{kind: k, pages: smallSize, file: none}
	if k.Huge() {
		r.pages = hugeSize
		m.must(m.b.Huge(regions * hugeSize * 4))
	}
	n := uint64(r.pages) * k.PageSize()
	start := base + mem.Addr(i*gap) + before
	r.all = mem.MakeRange(start&^mem.Addr(k.PageSize()-1), n)
	if k.File() {
		flags := 0
		if k.Huge() {
			flags = conformance.MfdHugetlb
		}
		r.file = m.do(conformance.MemfdCreate, flags)
		m.do(conformance.Ftruncate, r.file, n)
		r.alias = mem.MakeRange(aliasBase+mem.Addr(i*gap), n)
		m.do(conformance.Mmap, r.alias.Start, n, 3, conformance.MapShared|conformance.MapFixed, r.file, 0)
	}
	m.do(conformance.Mmap, r.all.Start, n, 3, r.flags(), r.file, 0)
	// Whether there is a page table shows in what UFFDIO_MOVE complains of
	// first, and in mincore of huge pages, and is nobody's promise: see to it
	// that there is one.
	keep := r.all.Start + 1<<20
	if k.Huge() {
		keep = r.all.Start + 12<<20
	}
	m.do(conformance.Mmap, keep, mem.PageSize, 3, conformance.MapPrivate|conformance.MapAnonymous|conformance.MapFixed, none, 0)
	m.do(conformance.Store8, keep, 1)
}

// flags are those to map the region with.
func (r *region) flags() uint64 {
	f := uint64(conformance.MapFixed)
	switch {
	case r.kind.Shared():
		f |= conformance.MapShared
	case r.kind.Huge():
		// Linux 6.18 loses the reservation of private huge pages when part
		// of a mapping moves, and the pool cannot shrink any more.
		f |= conformance.MapPrivate | conformance.MapNoReserve
	case r.kind.File():
		f |= conformance.MapPrivate
	default:
		f |= conformance.MapPrivate | conformance.MapAnonymous
	}
	return f
}

// call makes a call of the control thread, which must end by itself.
func (m *machine) call(c conformance.Call, args ...any) conformance.Result {
	var a [6]uint64
	for i, v := range args {
		a[i] = number(v)
	}
	m.control.Start(c, a)
	for deadline := time.Now().Add(budget); ; {
		switch m.control.State() {
		case conformance.Idle:
			return m.control.Result()
		case conformance.Gone:
			m.fail("the control thread is gone in %v", c)
		case conformance.Running:
		default:
			// A sleep that is not ours to end is as bad as none at all.
		}
		if time.Now().After(deadline) {
			m.fail("%v%x does not end: %s", c, a, m.control.Describe())
		}
		m.control.Wait(time.Millisecond)
	}
}

func number(v any) uint64 {
	switch v := v.(type) {
	case int:
		return uint64(v)
	case uint64:
		return v
	case rune:
		return uint64(v)
	case uint16:
		return uint64(v)
	case mem.Addr:
		return uint64(v)
	}
	panic(fmt.Sprintf("%T is no argument", v))
}

// do is call that must succeed.
func (m *machine) do(c conformance.Call, args ...any) uint64 {
	r := m.call(c, args...)
	if r.Errno != 0 || r.Signal != 0 {
		m.fail("%v%x: %v", c, args, r)
	}
	return r.Value
}

// everybody returns all threads that may block.
func (m *machine) everybody() []*actor {
	return append(m.actors[:len(m.actors):len(m.actors)], m.kids...)
}

// settle lets every thread come to rest, and tells what became of each. Two
// looks in a row have to find everybody at rest: what wakes somebody was
// awake itself at the first.
func (m *machine) settle() {
	calm := 0
	for deadline := time.Now().Add(budget); calm < 2; {
		calm++
		for _, a := range m.everybody() {
			if a.task.State() != conformance.Running {
				continue
			}
			calm = 0
			a.task.Wait(100 * time.Microsecond)
			if time.Now().After(deadline) {
				m.fail("%s does not come to rest: %s", a.name, a.task.Describe())
			}
		}
	}
	queued := 0
	for _, a := range m.everybody() {
		now := a.task.State()
		if now == a.last {
			continue
		}
		switch now {
		case conformance.Idle:
			m.say("  %s: %s", a.name, m.ended(a))
		case conformance.InFault, conformance.InEvent:
			queued++
			m.say("  %s: %v", a.name, now)
		default:
			m.say("  %s: %v", a.name, now)
		}
		a.last = now
	}
	m.muddled = m.muddled || queued > 1
}

// ended says how the call of a ended. The child of a fork comes to life here.
func (m *machine) ended(a *actor) string {
	r := a.task.Result()
	if a.child == nil {
		return r.String()
	}
	child := a.child
	a.child = nil
	if r.Errno != 0 {
		return r.Errno.String()
	}
	p, err := child()
	m.must(err)
	m.kids = append(m.kids, &actor{name: fmt.Sprint("child", len(m.kids)), task: p.Main(), last: conformance.Idle, proc: p})
	return "forked"
}

func (m *machine) say(format string, args ...any) {
	m.trace = append(m.trace, fmt.Sprintf(format, args...))
}
