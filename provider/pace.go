// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/place"
)

// pace keeps together on one processor the threads that follow each other in
// the service of a fault: the one that faults, ours, the agent and the handler.
// On a virtual machine it costs more than all else to wake a processor that
// has gone to sleep.
//
// While faults come in quick succession our thread is bound to a processor, in
// the idle class, so that a thread which it wakes there finds the processor
// free. The program's threads are not bound: one that was elsewhere is woken
// here once, by a mask that it has for no longer than that, and stays by
// itself.
type pace struct {
	th     *place.Thread
	streak int
	at     atomic.Int64 // of the last stop, in nanoseconds since began
	// active is set while the thread is bound. The tick leaves when nothing
	// comes any more, or when others want the processor.
	active atomic.Bool
	delay  atomic.Uint64 // that our thread has waited for a processor, as last seen
	// until is when it may be bound again, on the clock of at. Where others want
	// the processors too, the idle class would have it wait for them each time.
	until atomic.Int64
}

const (
	// quick is how soon a stop follows another one of the same service.
	quick = 300 * time.Microsecond
	// enough stops in quick succession make it worth while.
	enough = 64
	// lookEvery is how many stops of a thread there are between looks at where
	// it runs.
	lookEvery = 16
	// abstain is how long our thread is left alone when it has starved.
	abstain = time.Second
	// quiet ends it.
	quiet = 20 * time.Millisecond
	// starved is how long our thread may wait for a processor between two
	// ticks.
	starved = uint64(tickEvery / 2)
)

// began is where times are counted from, on the clock that does not jump.
var began = time.Now()

// stopped notes that t has stopped, for something to be decided.
func (pc *pace) stopped(t *task) {
	if t.p.hooks != nil {
		return
	}
	now := int64(time.Since(began))
	if now-pc.at.Swap(now) < int64(quick) {
		pc.streak++
	} else {
		pc.streak = 0
	}
	if !pc.active.Load() {
		if pc.streak < enough || now < pc.until.Load() {
			return
		}
		pc.enter(t)
	}
	if !pc.active.Load() {
		return
	}
	if sp := t.sp; sp.agent != nil && !sp.placed {
		sp.placed = sp.agent.SetCPU(pc.th.CPU()) == nil
		sp.agent.SetIdle(true)
	}
	if t.stops++; t.stops%lookEvery == 0 {
		cpu := pc.th.CPUOf(t.th.Process().Pid(), t.th.Tid())
		t.away = cpu >= 0 && cpu != pc.th.CPU()
	}
}

func (pc *pace) enter(t *task) {
	if pc.th == nil {
		pc.th = place.Self()
	}
	// Where the thread is, which may be allowed nowhere else.
	cpu := pc.th.CPUOf(t.th.Process().Pid(), t.th.Tid())
	if cpu < 0 {
		return
	}
	pc.th.Pin(cpu)
	pc.th.Idle()
	// The runtime's other threads would push ours aside.
	place.Clear(pc.th.CPU())
	pc.delay.Store(runDelay(pc.th.Tid()))
	pc.active.Store(true)
}

// leave lets everything run anywhere again.
func (p *Provider) leave() {
	pc := &p.pace
	if !pc.active.Load() {
		return
	}
	pc.th.Normal()
	pc.th.Pin(-1)
	place.Clear(-1)
	for _, sp := range p.spaces {
		if sp.placed {
			sp.placed = false
			sp.agent.SetIdle(false)
			_ = sp.agent.Unbind() // ESRCH: it is dead
		}
	}
	pc.streak = 0
	pc.active.Store(false)
}

// watch leaves if need be. It is called by the tick, on another thread: one
// that starves could not.
func (p *Provider) watch() {
	pc := &p.pace
	if !pc.active.Load() {
		return
	}
	delay := runDelay(pc.th.Tid())
	hungry := delay-pc.delay.Swap(delay) > starved
	if hungry {
		pc.th.Normal()
		pc.until.Store(int64(time.Since(began) + abstain))
	}
	if hungry || int64(time.Since(began))-pc.at.Load() > int64(quiet) {
		p.tracer.Do(p.leave)
	}
}

// runDelay returns how long a thread of ours has waited for a processor, in
// nanoseconds.
func runDelay(tid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/schedstat", tid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.ParseUint(f[1], 10, 64)
	return n
}

// letGo resumes the thread, on our processor if it was elsewhere: its mask is
// the program's again when it has been woken.
func (t *task) letGo(sig syscall.Signal, exit bool) {
	if !t.away || !t.p.pace.active.Load() {
		t.th.Resume(sig, exit)
		return
	}
	t.away = false
	var mask, here unix.CPUSet
	if unix.SchedGetaffinity(t.th.Tid(), &mask) != nil {
		t.th.Resume(sig, exit)
		return
	}
	here.Set(t.p.pace.th.CPU())
	if mask.IsSet(t.p.pace.th.CPU()) {
		_ = unix.SchedSetaffinity(t.th.Tid(), &here)
		t.th.Resume(sig, exit)
		_ = unix.SchedSetaffinity(t.th.Tid(), &mask) // ESRCH: it is dead
		return
	}
	t.th.Resume(sig, exit)
}
