// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
)

// What a program reads from /proc/PID/mem, or writes there, as some compilers write the
// code that they make, must be present: the kernel brings in nothing for that, but ends
// the call where a page is missing, with EIO if it is the first. So the pages are brought
// in before the call, and kept until its end. It is made again if one is missing all
// the same, which the program may have given up meanwhile.
//
// The filter reports calls at a position that only this file has.

// memWindow is how much of a call's range is brought in: more must not push out all else.
// A longer call comes back short, as it may.
const memWindow = 1 << 20

// memPatience is how long a call is made again that finds a page missing.
const memPatience = time.Second

// memCall is a call on /proc/PID/mem under way.
type memCall struct {
	whole bool   // all of its range could be read
	unpin func() // lets its pages go
	begun time.Time
}

// positioned reports whether a call reads or writes a file at a position.
func positioned(c tracee.Call) bool { return c.Nr == unix.SYS_PREAD64 || c.Nr == unix.SYS_PWRITE64 }

// enterMem brings in what a call that the filter has reported reads or writes, if it is
// of /proc/PID/mem. The thread stays where it is until then, and not the tracer's: to make
// room may take that.
func (h *handler) enterMem(th *tracee.Thread, c tracee.Call) (exit bool) {
	tid, e := h.ofMem(th, int(int32(c.Args[0])))
	if e == nil {
		delete(h.calls, th)
		return false
	}
	r := mem.MakeRange(mem.Addr(c.Args[3]), min(uint64(c.Args[2]), memWindow))
	th.Keep()
	go func() {
		unpin := e.pg.Pin(r)
		whole := touch(tid, r)
		h.tracer.Do(func() {
			if !slices.Contains(th.Process().Threads(), th) {
				unpin()
				return // it has died
			}
			m := h.memCalls[th]
			if m.begun.IsZero() {
				m.begun = time.Now()
			}
			m.whole, m.unpin = whole, unpin
			h.memCalls[th] = m
			th.Resume(0, true)
		})
	}()
	return true
}

// exitMem has a thread make its call again if that ended where a page is missing that
// was there before it.
func (h *handler) exitMem(th *tracee.Thread, c tracee.Call) {
	m := h.memCalls[th]
	m.unpin()
	exit, err := th.Call()
	short := exit.Errno == unix.EIO || exit.Errno == 0 && exit.Ret < min(c.Args[2], memWindow)
	if err == nil && short && m.whole && time.Since(m.begun) < memPatience && inject.Again(th.Tid(), c.Nr, c.Args) == nil {
		return
	}
	delete(h.memCalls, th)
}

// ofMem returns a task that has the memory that a descriptor of a thread is of, and who
// serves that, nil if it is of none that is served. A number that is nobody's is another
// namespace's, and taken for the thread's own process.
func (h *handler) ofMem(th *tracee.Thread, fd int) (tid int, e *engagement) {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", th.Tid(), fd))
	part := strings.Split(link, "/")
	if err != nil || len(part) < 4 || part[len(part)-1] != "mem" {
		return 0, nil
	}
	i := len(part) - 2
	if i >= 2 && part[i-1] == "task" {
		i -= 2
	}
	pid, err := strconv.Atoi(part[i])
	if err != nil {
		return 0, nil // not of proc
	}
	for _, p := range h.tracer.Processes() {
		if p.Pid() != pid || p.Space() == th.Process().Space() {
			continue
		}
		return procmem.Task(pid), h.engagementOf(p.Space())
	}
	return th.Tid(), h.engagementOf(th.Process().Space()) // which is there as long as its call
}

// touch brings in all pages of r, in the memory of a task, as far as they can be read. It
// reports whether all can be.
func touch(tid int, r mem.Range) bool {
	var b [1]byte
	var all []procmem.Segment
	for a := r.Start; a < r.End; a = a.Down() + mem.PageSize {
		all = append(all, procmem.Segment{Addr: a, Dst: b[:]})
	}
	return procmem.Read(tid, all) == nil
}
