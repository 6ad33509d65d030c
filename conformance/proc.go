// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// Where the memory of cases goes. It is the same on every backend, so that
// layouts can be compared.
const (
	arenaStart mem.Addr = 0x20_0000_0000
	arenaGap            = 4 << 20
)

// space is what a process and its children have in common.
type space struct {
	free  mem.Addr            // of the scratch memory
	end   mem.Addr            // of the same
	fills map[string]mem.Addr // pages of one byte, by their kind
	next  mem.Addr            // of the arena
}

// Proc is a process, and its main thread.
type Proc struct {
	*Thread
	c     *C
	p     Process
	space *space
}

// Process starts a process.
func (c *C) Process() *Proc {
	p, err := c.backend.Start()
	c.Must(err)
	c.procs = append(c.procs, p)
	r := p.Scratch()
	return c.wrap(p, &space{free: r.Start, end: r.End, fills: map[string]mem.Addr{}, next: arenaStart})
}

func (c *C) wrap(p Process, s *space) *Proc {
	proc := &Proc{c: c, p: p, space: s}
	proc.Thread = &Thread{c: c, proc: proc, t: p.Main()}
	return proc
}

// NewThread makes another thread.
func (p *Proc) NewThread() *Thread {
	t, err := p.p.Spawn(p.t)
	p.c.Must(err)
	return &Thread{c: p.c, proc: p, t: t}
}

// Forking is a fork(2) that has begun.
type Forking struct {
	*Pending
	proc  *Proc
	child func() (Process, error)
}

// BeginFork begins to make a child by the hand of th.
func (p *Proc) BeginFork(th *Thread) *Forking {
	child, err := p.p.BeginFork(th.t)
	p.c.Must(err)
	return &Forking{Pending: &Pending{th: th, what: "fork"}, proc: p, child: child}
}

// Child returns the child of a fork that is no longer held up.
func (f *Forking) Child() *Proc {
	p, err := f.child()
	f.proc.c.Must(err)
	f.Value(p.PID())
	return f.proc.c.wrap(p, f.proc.space)
}

// Fork makes a child.
func (p *Proc) Fork() *Proc { return p.BeginFork(p.Thread).Child() }

// Kill ends the process by SIGKILL.
func (p *Proc) Kill() { p.c.Must(p.p.Kill()) }

// Take puts a descriptor of another process into the table of p.
func (p *Proc) Take(u *UFFD) *UFFD {
	fd, err := p.p.Take(u.th.proc.p, int(u.fd))
	p.c.Must(err)
	return &UFFD{th: p.Thread, fd: uint64(fd)}
}

// Thread is a thread of a process.
type Thread struct {
	c    *C
	proc *Proc
	t    Task
}

// scratch gives out n bytes of memory that is never registered.
func (t *Thread) scratch(n int) mem.Addr {
	s := t.proc.space
	a := s.free
	s.free += mem.Addr(n+15) &^ 15
	if s.free > s.end {
		panic("the scratch memory is used up")
	}
	return a
}

// pageScratch gives out n bytes on a page boundary.
func (t *Thread) pageScratch(n int) mem.Addr {
	s := t.proc.space
	s.free = s.free.Up()
	return t.scratch(n)
}

// put places b in scratch memory.
func (t *Thread) put(b []byte) mem.Addr {
	a := t.scratch(len(b))
	t.proc.p.Poke(a, b)
	return a
}

// get reads scratch memory.
func (t *Thread) get(a mem.Addr, n int) []byte {
	b := make([]byte, n)
	t.proc.p.Peek(a, b)
	return b
}

// fill returns the address of n bytes of value v, on a page boundary.
func (t *Thread) fill(v byte, n uint64) mem.Addr {
	key := fmt.Sprint(v, n)
	a, ok := t.proc.space.fills[key]
	if !ok {
		a = t.pageScratch(int(n))
		t.proc.p.Poke(a, bytes.Repeat([]byte{v}, int(n)))
		t.proc.space.fills[key] = a
	}
	return a
}

// Begin starts a call, which may block.
func (t *Thread) Begin(call Call, args ...any) *Pending {
	if t.c.backend.Lacks(call) {
		t.c.Skipf("%s has no %v", t.c.backend.Name(), call)
	}
	var a [6]uint64
	for i, v := range args {
		a[i] = word(v)
	}
	t.t.Start(call, a)
	return &Pending{th: t, what: fmt.Sprintf("%v%v", call, args)}
}

// word makes an argument of what cases write.
func word(v any) uint64 {
	switch v := v.(type) {
	case int:
		return uint64(v)
	case int64:
		return uint64(v)
	case uint64:
		return v
	case uint32:
		return uint64(v)
	case rune:
		return uint64(v)
	case byte:
		return uint64(v)
	case mem.Addr:
		return uint64(v)
	case uapi.RegisterMode:
		return uint64(v)
	}
	panic(fmt.Sprintf("%T is no argument", v))
}

// Call makes a call that does not block.
func (t *Thread) Call(call Call, args ...any) Result { return t.Begin(call, args...).Done() }

// Do makes a call that must succeed, and returns its result.
func (t *Thread) Do(call Call, args ...any) uint64 {
	p := t.Begin(call, args...)
	r := p.Done()
	if r.Errno != OK || r.Signal != 0 {
		t.c.Failf("%s: %v", p.what, r)
	}
	return r.Value
}

// Load starts to read the byte at a.
func (t *Thread) Load(a mem.Addr) *Pending { return t.Begin(Load8, a) }

// Store starts to write the byte at a.
func (t *Thread) Store(a mem.Addr, v byte) *Pending { return t.Begin(Store8, a, v) }

// Sees checks that the byte at a can be read at once, and is v.
func (t *Thread) Sees(a mem.Addr, v byte) { t.Load(a).Value(v) }

// Puts writes the byte at a, which must be possible at once.
func (t *Thread) Puts(a mem.Addr, v byte) { t.Store(a, v).Value(0) }

// String says how a call ended.
func (r Result) String() string {
	switch {
	case r.Signal != 0:
		return fmt.Sprintf("signal %d, code %d, at %v", r.Signal, r.Code, r.Addr)
	case r.Errno != OK:
		return r.Errno.String()
	}
	return fmt.Sprintf("%#x", r.Value)
}

// Pending is a call that has been started.
type Pending struct {
	th   *Thread
	what string
}

// until waits for a state, and fails if the call ends or nothing comes of it.
func (p *Pending) until(want State) *Pending {
	c := p.th.c
	for deadline := time.Now().Add(budget); ; {
		got := p.th.t.State()
		switch {
		case got == want:
			return p
		case got == Idle:
			c.Failf("%s: ended with %v, and should be %v", p.what, p.th.t.Result(), want)
		case got == Gone || time.Now().After(deadline):
			c.Failf("%s: it is %s, and should be %v", p.what, p.th.t.Describe(), want)
		}
		p.th.t.Wait(200 * time.Microsecond)
	}
}

// Blocked waits until the call sleeps in a fault.
func (p *Pending) Blocked() *Pending { return p.until(InFault) }

// InEvent waits until the call sleeps for an event to be read.
func (p *Pending) InEvent() *Pending { return p.until(InEvent) }

// Asleep waits until the call sleeps in something that is neither.
func (p *Pending) Asleep() *Pending { return p.until(Asleep) }

// StillBlocked checks that nothing has woken the call from its fault.
func (p *Pending) StillBlocked() {
	if s := p.th.t.State(); s != InFault {
		p.th.c.Failf("%s: it was to sleep on, and is %s", p.what, p.th.t.Describe())
	}
}

// Done waits for the end of the call.
func (p *Pending) Done() Result {
	for deadline := time.Now().Add(budget); ; {
		s := p.th.t.State()
		if s == Idle {
			return p.th.t.Result()
		}
		if s == Gone || time.Now().After(deadline) {
			p.th.c.Failf("%s: it should end, and is %s", p.what, p.th.t.Describe())
		}
		p.th.t.Wait(5 * time.Millisecond)
	}
}

// Value waits for the end, which must be with a value.
func (p *Pending) Value(want any) {
	w := word(want)
	if r := p.Done(); r.Errno != OK || r.Signal != 0 || r.Value != w {
		p.th.c.Failf("%s: got %v, want %#x", p.what, r, w)
	}
}

// Err waits for the end, which must be with an errno.
func (p *Pending) Err(want Errno) {
	if r := p.Done(); r.Signal != 0 || r.Errno != want {
		p.th.c.Failf("%s: got %v, want %v", p.what, r, want)
	}
}

// Bus waits for the end, which must be with SIGBUS about a.
func (p *Pending) Bus(a mem.Addr) {
	r := p.Done()
	if r.Signal != SIGBUS || r.Code != BusAdrErr || r.Addr != a {
		p.th.c.Failf("%s: got %v, want SIGBUS with code %d at %v", p.what, r, BusAdrErr, a)
	}
}

// Poisoned waits for the end, which must be with the SIGBUS of a poisoned
// page. Its code depends on how the kernel was built.
func (p *Pending) Poisoned(a mem.Addr) {
	r := p.Done()
	if r.Signal != SIGBUS || r.Code != BusAdrErr && r.Code != BusMceErr {
		p.th.c.Failf("%s: got %v, want SIGBUS at %v", p.what, r, a)
	}
}

// Segv waits for the end, which must be with SIGSEGV.
func (p *Pending) Segv(code int) {
	if r := p.Done(); r.Signal != SIGSEGV || r.Code != code {
		p.th.c.Failf("%s: got %v, want SIGSEGV with code %d", p.what, r, code)
	}
}

func le64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// words lays out a struct of 64-bit fields.
func words(v ...uint64) []byte {
	var b []byte
	for _, w := range v {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}
