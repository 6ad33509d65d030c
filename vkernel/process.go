// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/faultline-go/faultline/mem"
)

// ProcessOptions says what a new process is like.
type ProcessOptions struct {
	// Privileged processes have CAP_SYS_PTRACE, and may open the device.
	Privileged bool
	// MaxFiles bounds the descriptor table; 1024 if zero.
	MaxFiles int
	// MaxStack is how long memory that grows down gets by itself, which is
	// RLIMIT_STACK; 8 MiB if zero.
	MaxStack uint64
}

// Process is an address space, a table of descriptors and threads.
type Process struct {
	k       *Kernel
	pid     int
	options ProcessOptions
	as      atomic.Pointer[space] // replaced by exec only

	dead atomic.Bool

	mu      sync.Mutex
	threads map[*Thread]struct{} // protected by mu
	tid     int                  // last one given; protected by mu
	files   []fdEntry            // by number; protected by mu
	ignored map[int]bool         // signals; protected by mu
}

type fdEntry struct {
	file    *file
	cloexec bool
}

// space is an address space.
type space struct {
	k  *Kernel
	id uint64
	// users are the process and those of others that are on their way through its
	// memory: it stays until the last of them has gone.
	users atomic.Int32

	_ [cacheLine]byte
	// mu is the mmap lock: faults and fills hold it for reading, whatever
	// changes a VMA for writing. Nobody sleeps with it.
	mu   sync.RWMutex
	vmas vmaTree
	dead bool // protected by mu
	// future is the lock that a new mapping gets; protected by mu.
	future vmaFlags
	brk    mem.Addr // the end of the heap; protected by mu

	pt  pageTable
	out Outside // nil but for a mirror; set once, before there are threads
	// scarred is set once there has been a poisoned page.
	scarred atomic.Bool

	// lineMu protects the line of every VMA against faults, which hold mu
	// for reading.
	lineMu sync.Mutex
}

func (k *Kernel) newSpace() *space {
	as := &space{k: k, id: k.nextSpace.Add(1), brk: heapStart}
	as.users.Store(1)
	return as
}

// use keeps the memory for somebody of another process until leave. It reports false
// if it has gone.
func (as *space) use() bool {
	for n := as.users.Load(); n > 0; n = as.users.Load() {
		if as.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
	return false
}

// leave is the end of a use. That of a mirror ends with its process, whatever uses it.
func (as *space) leave() {
	if as.users.Add(-1) == 0 && as.out == nil {
		as.destroy()
	}
}

// exit is the end of the process's own use.
func (as *space) exit() {
	if as.users.Add(-1) == 0 || as.out != nil {
		as.destroy()
	}
}

// NewProcess makes a process with an empty address space and no descriptors.
func (k *Kernel) NewProcess(o ProcessOptions) *Process {
	if o.MaxFiles == 0 {
		o.MaxFiles = 1024
	}
	if o.MaxStack == 0 {
		o.MaxStack = 8 << 20
	}
	return k.newProcess(o, k.newSpace())
}

func (k *Kernel) newProcess(o ProcessOptions, as *space) *Process {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pid += 1000
	p := &Process{k: k, pid: k.pid, tid: k.pid - 1, options: o, threads: make(map[*Thread]struct{}), ignored: make(map[int]bool)}
	p.as.Store(as)
	k.live[p] = struct{}{}
	return p
}

// PID returns the number of the process, which is also that of its first
// thread.
func (p *Process) PID() int { return p.pid }

// Kernel returns the machine of the process.
func (p *Process) Kernel() *Kernel { return p.k }

// Dead reports whether the process has exited or was killed.
func (p *Process) Dead() bool { return p.dead.Load() }

// SetPrivileged gives or takes away CAP_SYS_PTRACE. No call of the process
// may be under way.
func (p *Process) SetPrivileged(on bool) { p.options.Privileged = on }

// Ignore makes the process ignore a signal, or handle it again.
func (p *Process) Ignore(sig int, on bool) {
	p.mu.Lock()
	p.ignored[sig] = on
	p.mu.Unlock()
}

// Exit ends the process: its threads stop, its descriptors close, its memory
// goes. A thread of it that is blocked returns ErrKilled or EINTR.
func (p *Process) Exit() { p.Kill() }

// Kill is SIGKILL.
func (p *Process) Kill() {
	if p.dead.Swap(true) {
		return
	}
	p.mu.Lock()
	for th := range p.threads {
		th.poke()
	}
	files := p.files
	p.files = nil
	p.mu.Unlock()
	// Memory goes before descriptors, so that nobody meets a page that the
	// closing descriptor no longer guards.
	p.as.Load().exit()
	for _, e := range files {
		if e.file != nil {
			e.file.put()
		}
	}
	p.k.mu.Lock()
	delete(p.k.live, p)
	p.k.mu.Unlock()
}

// destroy drops all memory. Calls through descriptors find the space dead.
func (as *space) destroy() {
	var asked []*uffd
	as.mu.Lock()
	as.dead = true
	for v := as.vmas.find(0); v != nil; v = as.vmas.find(0) {
		if v.uffd != nil && !slices.Contains(asked, v.uffd) {
			asked = append(asked, v.uffd)
		}
		as.drop(v)
	}
	as.pt.trim(mem.Range{Start: 0, End: 1 << topShift << 8})
	as.mu.Unlock()
	// Threads of others may wait for pages of a mirror, which nobody can bring now.
	for _, u := range asked {
		u.faults.wakeAll()
	}
}

// drop unmaps all of v without a word to its descriptor.
func (as *space) drop(v *vma) {
	as.zapAll(v, v.rng())
	as.unlink(v)
}

// zapAll drops the pages and markers of r, a part of v.
func (as *space) zapAll(v *vma, r mem.Range) {
	as.pt.zap(&as.k.mem, r, v.hugetlb())
}

// NewThread adds a thread to the process.
func (p *Process) NewThread() *Thread {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tid++
	th := &Thread{p: p, tid: p.tid, wake: make(chan struct{}, 1)}
	p.threads[th] = struct{}{}
	return th
}

// install puts f at the lowest free number.
func (p *Process) install(f *file, cloexec bool) (int, syscall.Errno) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fd := p.freeLocked()
	if fd < 0 || p.dead.Load() {
		return -1, EMFILE
	}
	if fd == len(p.files) {
		p.files = append(p.files, fdEntry{})
	}
	p.files[fd] = fdEntry{f, cloexec}
	return fd, 0
}

// full reports whether install would fail.
func (p *Process) full() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.freeLocked() < 0
}

// freeLocked returns the lowest free number, -1 if that is too great. p.mu is
// held.
func (p *Process) freeLocked() int {
	fd := slices.IndexFunc(p.files, func(e fdEntry) bool { return e.file == nil })
	if fd < 0 {
		fd = len(p.files)
	}
	if fd >= p.options.MaxFiles {
		return -1
	}
	return fd
}

// SetMaxFiles bounds the descriptor table anew. Descriptors that are open
// stay so.
func (p *Process) SetMaxFiles(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.options.MaxFiles = n
}

// SetMaxStack bounds anew how far memory grows down. No call of the process may
// be under way.
func (p *Process) SetMaxStack(n uint64) { p.options.MaxStack = n }

// file returns the open file of fd with a reference, nil if there is none.
func (p *Process) file(fd int) *file {
	p.mu.Lock()
	defer p.mu.Unlock()
	if fd < 0 || fd >= len(p.files) || p.files[fd].file == nil {
		return nil
	}
	f := p.files[fd].file
	f.get()
	return f
}
