// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"slices"
	"strings"

	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/mem"
)

// handlers perform the operations. One that makes no sense now does nothing,
// on both sides alike, since it goes by what both have agreed on.
var handlers map[string]func(*machine, Op)

func init() {
	handlers = map[string]func(*machine, Op){
		"load": func(m *machine, o Op) { m.touch(o, conformance.Load8) },
		"store": func(m *machine, o Op) {
			m.touch(o, conformance.Store8)
		},
		"below":    below,
		"cas":      func(m *machine, o Op) { m.touch(o, conformance.CAS64) },
		"write":    write,
		"populate": populate,
		"mmap":     mmap, "munmap": munmap, "mprotect": mprotect, "mremap": mremap, "madvise": madvise, "advise": advise, "mlock": mlock, "lockall": lockall, "mincore": mincore, "mem": selfMem, "scan": scan,
		"alias": alias, "punch": punch, "truncate": truncate,
		"fork": fork, "child": child, "signal": signal,
		"open": open, "close": closeFD, "api": api, "request": request,
		"register": register, "unregister": unregister, "wake": wake,
		"copy": copyPages, "zeropage": zeropage, "continue": continuePages, "poison": poison, "move": move, "protect": protect,
		"read": read, "readv": readv, "epoll": epoll, "poll": poll,
	}
}

// pick returns a member of list. The first has half of the chances.
func pick[T any](list []T, arg uint16) T {
	if arg < 32 {
		return list[0]
	}
	return list[int(arg)%len(list)]
}

// even returns a member of list, all with the same chances.
func even[T any](list []T, arg uint16) T { return list[int(arg)%len(list)] }

// pages returns n pages from page p of region r, as three numbers choose.
func (m *machine) pages(r, p, n uint16) (*region, mem.Range) {
	reg := &m.regions[int(r)%regions]
	first := int(p) % reg.pages
	if p >= 62 && !reg.kind.Huge() {
		first = 61 - int(p) // below it, where memory may have grown to
	}
	count := 1
	if n%4 != 0 {
		count = 1 + int(n)%(reg.pages-first)
	}
	size := reg.kind.PageSize()
	return reg, mem.MakeRange(reg.all.Start+mem.Addr(int64(first)*int64(size)), uint64(count)*size)
}

// free returns an idle thread, or nil.
func (m *machine) free(arg uint16) *actor {
	a := m.actors[int(arg)%len(m.actors)]
	if a.last != conformance.Idle {
		return nil
	}
	return a
}

// begin starts a call of a thread.
func (m *machine) begin(a *actor, c conformance.Call, args ...any) {
	var v [6]uint64
	for i, x := range args {
		v[i] = number(x)
	}
	a.user = c.Access()
	if c != conformance.Madvise {
		a.drops = mem.Range{}
	}
	a.wants = mem.Range{}
	a.last = conformance.Running // so that its end is told
	a.task.Start(c, v)
}

// brings notes what the call that a has begun brings in.
func (a *actor) brings(r mem.Range, reads, writes bool) {
	a.wants, a.reads, a.writes = r, reads, writes
}

// racing reports whether two threads that sleep in a fault, one to read and
// one to write, want the same page. Which of them comes first shows, if both
// are woken and find it in a file, or are given one that the writer has to copy:
// see the package comment.
func (m *machine) racing() bool {
	var asleep []*actor
	for _, a := range m.everybody() {
		if a.last != conformance.InFault || a.wants.Empty() {
			continue
		}
		if slices.ContainsFunc(asleep, func(b *actor) bool {
			return a.wants.Overlaps(b.wants) && (a.reads && b.writes || a.writes && b.reads)
		}) {
			return true
		}
		asleep = append(asleep, a)
	}
	return false
}

// own is where in a page a thread reads and writes, so that the order in
// which threads are woken does not matter.
func own(arg uint16) mem.Addr { return mem.Addr(8 * (arg % 4)) }

func (m *machine) touch(o Op, c conformance.Call) {
	a := m.free(o.Arg[0])
	if a == nil {
		return
	}
	_, r := m.pages(o.Arg[1], o.Arg[2], 0)
	if m.stale(r.Start) {
		return
	}
	m.begin(a, c, r.Start+own(o.Arg[0]%workers), 'a'+int(o.Arg[3]%16), int(o.Arg[4]))
	a.brings(r, c == conformance.Load8, c != conformance.Load8)
}

// below touches what is before a region, near and far: memory that grows down
// comes to be there, and other memory does not.
func below(m *machine, o Op) {
	a := m.free(o.Arg[0])
	if a == nil {
		return
	}
	n := even([]uint64{1, 2, 3, 16, 17, 255, 256, 257, 300, 500, 2039, 2040, 2041, 2048}, o.Arg[2])
	at := m.regions[int(o.Arg[1])%regions].all.Start - mem.Addr(n*mem.PageSize)
	if m.stale(at) {
		return
	}
	call := even([]conformance.Call{conformance.Store8, conformance.Load8}, o.Arg[3])
	m.begin(a, call, at+own(o.Arg[0]%workers), 'd')
	a.brings(mem.MakeRange(at, mem.PageSize), call == conformance.Load8, call != conformance.Load8)
}

func write(m *machine, o Op) {
	if a := m.free(o.Arg[0]); a != nil {
		_, r := m.pages(o.Arg[1], o.Arg[2], 0)
		if m.stale(r.Start) {
			return
		}
		m.begin(a, conformance.Write, a.pipe, r.Start+own(o.Arg[0]%workers), 1)
		a.brings(r, true, false)
	}
}

func mmap(m *machine, o Op) {
	a := m.free(o.Arg[0])
	if a == nil {
		return
	}
	reg, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
	prot := pick([]int{3, 1, 0}, o.Arg[4])
	flags := reg.flags() | pick([]uint64{0, conformance.MapPopulate, conformance.MapGrowsDown, conformance.MapLocked,
		conformance.MapNoReserve, conformance.MapPopulate | conformance.MapNonblock,
		conformance.MapGrowsDown | conformance.MapPopulate, conformance.MapGrowsDown}, o.Arg[5])
	m.begin(a, conformance.Mmap, r.Start, r.Len(), prot, flags, reg.file, uint64(r.Start-reg.all.Start))
	a.brings(r, true, true)
}

func munmap(m *machine, o Op) {
	if a := m.free(o.Arg[0]); a != nil {
		_, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
		start, n := badRange(r, o.Arg[4])
		m.begin(a, conformance.Munmap, start, n)
	}
}

func mprotect(m *machine, o Op) {
	_, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
	start, n := badRange(r, o.Arg[5])
	res := m.call(conformance.Mprotect, start, n, badProtection(even([]int{3, 1, 0}, o.Arg[4]), o.Arg[6]))
	m.say("  %v", res)
}

func mincore(m *machine, o Op) {
	reg, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
	n := r.Len()
	switch o.Arg[4] {
	case 60:
		n++
	case 61:
		n += reg.kind.PageSize()
	case 62:
		n = 1 << 63
	}
	vec := make([]byte, smallSize+belowPages+1)
	if reg.kind.Huge() {
		vec = make([]byte, hugeSize<<9+1)
	}
	m.p.Poke(m.scratch, vec)
	res := m.call(conformance.Mincore, r.Start, n, m.scratch)
	m.p.Peek(m.scratch, vec)
	for i := range vec {
		vec[i] = '0' + vec[i]&1
	}
	if reg.kind.Huge() {
		vec = []byte{vec[0], vec[len(vec)/2]}
	}
	m.say("  %v %s", res, vec)
}

// selfMem reads or writes a page, or over the end of one, by way of
// /proc/self/mem.
func selfMem(m *machine, o Op) {
	_, r := m.pages(o.Arg[1], o.Arg[2], 0)
	if m.stale(r.Start) {
		return
	}
	at := r.Start + 40
	if o.Arg[4] >= 32 {
		at = r.End - 4
	}
	b := []byte(strings.Repeat(string('m'+rune(o.Arg[5]%8)), 8))
	call := even([]conformance.Call{conformance.Pread, conformance.Pwrite}, o.Arg[3])
	m.p.Poke(m.scratch, b)
	res := m.call(call, m.selfMem, m.scratch, len(b), at)
	m.p.Peek(m.scratch, b)
	m.say("  %v %q", res, b)
}

func mremap(m *machine, o Op) {
	a := m.free(o.Arg[0])
	if a == nil {
		return
	}
	reg, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
	flags := even([]int{
		conformance.MremapMayMove | conformance.MremapFixed,
		conformance.MremapMayMove | conformance.MremapFixed | conformance.MremapDontUnmap,
		0,
	}, o.Arg[4])
	_, dst := m.pages(o.Arg[5], o.Arg[6], 0)
	start, to, oldLen, n := r.Start, dst.Start, r.Len(), r.Len()
	switch {
	case flags == 0: // in place: shrink, or grow into what was unmapped
		n, to = uint64(1+o.Arg[6]%4)*reg.kind.PageSize(), 0
	case o.Arg[7] >= 32:
		n = uint64(1+o.Arg[7]%4) * reg.kind.PageSize()
	}
	if o.Arg[7] >= 48 {
		badMremap(o.Arg[2]^o.Arg[6], &start, &to, &oldLen, &n)
	}
	m.begin(a, conformance.Mremap, start, oldLen, n, flags, to)
	if flags == 0 {
		to = start
	}
	a.brings(near(to, n), true, true)
}

// alias writes or reads a page by way of another mapping of its file.
func alias(m *machine, o Op) {
	reg, r := m.pages(o.Arg[1], o.Arg[2], 0)
	if reg.file == none {
		return
	}
	a := reg.alias.Start + (r.Start - reg.all.Start) + 64
	if o.Arg[3]%2 == 0 {
		m.say("  %v", m.call(conformance.Store8, a, 'A'+int(o.Arg[4]%16)))
		return
	}
	m.say("  %v", m.call(conformance.Load8, a))
}

func fork(m *machine, o Op) {
	a := m.free(o.Arg[0])
	if a == nil || m.forks == maxForks {
		return
	}
	m.forks++
	child, err := m.p.BeginFork(a.task)
	m.must(err)
	a.child, a.user, a.last = child, false, conformance.Running
	a.drops = mem.Range{}
}

// child touches memory in a child.
func child(m *machine, o Op) {
	if len(m.kids) == 0 {
		return
	}
	a := m.kids[int(o.Arg[0])%len(m.kids)]
	if a.last != conformance.Idle {
		return
	}
	_, r := m.pages(o.Arg[1], o.Arg[2], 0)
	c := even([]conformance.Call{conformance.Load8, conformance.Store8}, o.Arg[3])
	m.begin(a, c, r.Start+own(3), 'k')
	a.brings(r, c == conformance.Load8, c == conformance.Store8)
}

// signal interrupts a thread that waits in a fault of user mode.
func signal(m *machine, o Op) {
	a := m.actors[int(o.Arg[0])%len(m.actors)]
	if a.last != conformance.InFault || !a.user {
		return
	}
	before := a.task.Handled()
	m.must(a.task.Signal(conformance.SIGUSR1))
	m.until("the handler", func() bool { return a.task.Handled() == before+1 })
	a.last = conformance.Running
}
