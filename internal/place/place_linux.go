// SPDX-License-Identifier: Apache-2.0

package place

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Thread is the calling OS thread. Make one with Self on a goroutine that is
// locked to its thread. Idle and Normal may be called by any goroutine, the
// rest only by the thread itself.
type Thread struct {
	tid     int
	cpu     int // where it is pinned, -1 for nowhere
	avoided int // what Avoid was called with last, -1 for nothing
	stat    []byte
	statOf  int // thread whose stat file is open in statFD
	statFD  int
}

// Self returns the calling thread, which [Clear] leaves alone until Close. The
// goroutine must be locked to it.
func Self() *Thread {
	t := &Thread{tid: unix.Gettid(), cpu: -1, avoided: -1, statFD: -1, stat: make([]byte, 1024)}
	placed.Store(t.tid, true)
	keepTime()
	return t
}

// placed has the threads that decide by themselves where they run, by id.
var placed sync.Map

// Close lets the thread run anywhere, in the normal class.
func (t *Thread) Close() {
	t.Normal()
	t.Pin(-1)
	t.closeStat()
	placed.Delete(t.tid)
}

func (t *Thread) closeStat() {
	if t.statFD >= 0 {
		unix.Close(t.statFD)
		t.statFD = -1
	}
}

// canReturn reports whether a thread may leave the idle class again, which
// without CAP_SYS_NICE depends on RLIMIT_NICE (sched(7)). It is tried once,
// on a thread that ends thereafter.
var canReturn = sync.OnceValue(func() bool {
	ok := make(chan bool)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		tid := unix.Gettid()
		ok <- setPolicy(tid, unix.SCHED_IDLE) == nil && setPolicy(tid, unix.SCHED_NORMAL) == nil
	}()
	return <-ok
})

// Idle moves the thread to the idle class. It reports false, and changes
// nothing, where the thread could not be moved back.
func (t *Thread) Idle() bool {
	return canReturn() && setPolicy(t.tid, unix.SCHED_IDLE) == nil
}

// Normal moves the thread back to the normal class.
func (t *Thread) Normal() {
	// Idle has made sure that this is permitted; a thread that has ended
	// meanwhile needs no class.
	_ = setPolicy(t.tid, unix.SCHED_NORMAL)
}

func setPolicy(tid, policy int) error {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: uint32(policy)}
	return unix.SchedSetAttr(tid, &attr, 0)
}

// Pin binds the thread to one processor, or with cpu < 0 to all those of
// the whole process.
func (t *Thread) Pin(cpu int) {
	if cpu == t.cpu && t.avoided < 0 {
		return
	}
	var set unix.CPUSet
	if cpu >= 0 {
		set.Set(cpu)
	} else {
		set = allowed()
	}
	// A processor outside our cpuset is refused; the thread then stays where
	// the kernel puts it, which costs time and nothing else.
	if unix.SchedSetaffinity(0, &set) == nil {
		t.cpu, t.avoided = cpu, -1
	}
}

// Tid returns the thread's id.
func (t *Thread) Tid() int { return t.tid }

// CPU returns the processor to which the thread is pinned, or -1.
func (t *Thread) CPU() int { return t.cpu }

// CPUOf returns the processor on which thread tid of process pid runs or ran
// last, or -1 if the thread is gone. Its file stays open for the next call.
func (t *Thread) CPUOf(pid, tid int) int {
	if tid != t.statOf || t.statFD < 0 {
		t.closeStat()
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/task/%d/stat", pid, tid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1
		}
		t.statFD, t.statOf = fd, tid
	}
	n, err := unix.Pread(t.statFD, t.stat, 0)
	if err != nil {
		t.closeStat()
		return -1
	}
	return processor(t.stat[:n])
}

// processor extracts field 39 of proc_pid_stat(5).
func processor(stat []byte) int {
	// The command in field 2 may hold spaces and parentheses.
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return -1
	}
	rest := stat[i+1:]
	for range 37 - 1 { // fields 3 to 38 stand before it
		rest = bytes.TrimLeft(rest, " ")
		sp := bytes.IndexByte(rest, ' ')
		if sp < 0 {
			return -1
		}
		rest = rest[sp:]
	}
	rest = bytes.TrimLeft(rest, " ")
	if sp := bytes.IndexByte(rest, ' '); sp >= 0 {
		rest = rest[:sp]
	}
	cpu, err := strconv.Atoi(string(rest))
	if err != nil {
		return -1
	}
	return cpu
}

// allowed is the affinity that the process started with.
var allowed = sync.OnceValue(func() unix.CPUSet {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &set); err != nil {
		for i := range runtime.NumCPU() {
			set.Set(i)
		}
	}
	return set
})

// Avoid keeps the thread off one processor; with cpu < 0 off none. It costs
// nothing as long as cpu stays the same. It reports whether there is another.
func (t *Thread) Avoid(cpu int) bool {
	set, others := allowedBut(cpu)
	if cpu != t.avoided && unix.SchedSetaffinity(0, &set) == nil {
		t.cpu, t.avoided = -1, cpu
	}
	return others
}

// allowedBut returns the processors that we may use without one of them, or
// with it if there is no other.
func allowedBut(cpu int) (set unix.CPUSet, others bool) {
	set = allowed()
	if cpu < 0 {
		return set, true
	}
	if others = set.Count() > 1 || !set.IsSet(cpu); others {
		set.Clear(cpu)
	}
	return set, others
}

// Clear keeps the threads of this process off one processor, except for those
// that have placed themselves; with cpu < 0 off none. Those are the runtime's:
// each of its timers and wakeups would push aside whoever takes turns with a
// server there. Threads that are made later go where their maker may.
func Clear(cpu int) {
	set, others := allowedBut(cpu)
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil || !others {
		return
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if _, own := placed.Load(tid); err != nil || own {
			continue
		}
		// It may have ended; and what is not moved costs time, nothing else.
		_ = unix.SchedSetaffinity(tid, &set)
	}
}

// SetIdle moves any thread that we may control to the idle class, or back. It
// reports false, and changes nothing, where it could not be moved back.
func SetIdle(tid int, idle bool) bool {
	if !idle {
		return setPolicy(tid, unix.SCHED_NORMAL) == nil
	}
	return canReturn() && setPolicy(tid, unix.SCHED_IDLE) == nil
}

// Yield lets other threads that want this processor have it first.
func Yield() { unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// Urgent lets the calling thread run before all normal ones (SCHED_RR, which
// needs CAP_SYS_NICE or RLIMIT_RTPRIO; without, as soon as nice values can
// make it), and returns what takes that back. For threads that sleep most of
// the time.
func Urgent() (restore func()) {
	tid := unix.Gettid()
	UrgentThread(tid)
	return func() { _ = setPolicy(tid, unix.SCHED_NORMAL) }
}

// UrgentThread is Urgent for good, for any thread.
func UrgentThread(tid int) {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1}
	if unix.SchedSetAttr(tid, &attr, 0) != nil {
		attr = unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: -20}
		_ = unix.SchedSetAttr(tid, &attr, 0) // not permitted either: it has to do without
	}
}
