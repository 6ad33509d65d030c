// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/bpf"
	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/place"
	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/internal/sysargs"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// Engine gives our own process what the kernel's call would give it for the
// memory of other processes: see [Manager]. The programs do not get the call.
//
// What differs from a program that manages its memory by itself is that all its
// private anonymous memory is missing pages in the end, stacks and thread control
// blocks too. So what the kernel touches there beside system calls is looked
// after as well: see upkeep.
//
// It is told of what happens in a tree by who owns the tracer, all on the
// tracer's thread.
type Engine struct{ *Provider }

// Hooks are how an Engine tells of memory. They are called on goroutines of their
// own, while the thread waits that has changed its memory.
type Hooks struct {
	// Mapped tells of new private anonymous memory.
	Mapped func(s *tracee.Space, r mem.Range)
	// Wiped tells of memory that a forked child finds zeroed, or no longer.
	Wiped func(s *tracee.Space, r mem.Range, wipe bool)
	// Guarded tells of memory whose content is gone, without an event, and whether
	// it is a guard now.
	Guarded func(s *tracee.Space, r mem.Range, on bool)
}

// NewEngine returns an engine. Bind it before anything else.
func NewEngine(log *slog.Logger, h Hooks) (*Engine, error) {
	p, err := newProvider(log)
	if err != nil {
		return nil, err
	}
	p.hooks = &h
	return &Engine{p}, nil
}

// Bind tells which tracer calls the engine.
func (e *Engine) Bind(t *tracee.Tracer) { e.run(t) }

// Close ends an engine whose tree is gone. Err says what it has killed it for.
func (e *Engine) Close() { e.rest() }

// Err returns for what the engine has killed the tree, nil if it has not.
func (e *Engine) Err() error {
	if f := e.failure.Load(); f != nil {
		return *f
	}
	return nil
}

// managed is what is known of an address space that we manage.
type managed struct {
	manager *Manager
	// pins counts who needs a page to stay where it is.
	pins map[mem.Page]int
	// unsure has the threads that may be in a call which began before we saw
	// calls, and whose buffers are not known yet.
	unsure map[int]struct{}
	// guards is memory that must not be accessed (MADV_GUARD_INSTALL): a fault
	// there is the program's.
	guards []mem.Range
}

// Manage begins to manage the memory of a stopped thread's address space. None
// of it is registered yet.
//
// It is called on the tracer's thread. The error matches tracee.ErrGone or one
// of package inject's if the thread has died.
func (e *Engine) Manage(th *tracee.Thread) (*Manager, error) {
	p := e.Provider
	if n := len(th.Process().Space().Processes()); n > 1 {
		// A filter is for the threads of one process.
		return nil, fmt.Errorf("%d processes share the memory of pid %d at the moment", n, th.Process().Pid())
	}
	sp := p.space(th.Process().Space())
	t := p.task(th)
	s, err := inject.Open(th.Tid())
	if err != nil {
		return nil, err
	}
	if err = sp.plant(s); err == nil {
		err = t.learnAction(s)
	}
	// A program that was started by one whose memory is managed has it already.
	f := p.filters[th.Process()]
	everywhere := mem.Range{Start: 0, End: allMemory.End}
	if err == nil && f != nil && !f.covers(everywhere, true) {
		if err = s.Install(managedFilter()); err == nil {
			f.windows, f.buffers = append(f.windows, everywhere), append(f.buffers, everywhere)
		}
	}
	if err = errors.Join(err, s.Close()); err != nil {
		return nil, err
	}
	if err := sp.open(); err != nil {
		return nil, err
	}
	h, errno := sp.keeper.Userfaultfd(unix.O_NONBLOCK)
	if errno != 0 {
		return nil, fmt.Errorf("make a descriptor: %w", errno)
	}
	reg, errno := sp.keeper.PassFD(h, p.registry)
	sp.keeper.Close(h)
	if errno != 0 {
		return nil, fmt.Errorf("keep a descriptor: %w", errno)
	}
	m, err := p.manager(reg)
	if err != nil {
		return nil, err
	}
	const features = uapi.UFFD_FEATURE_EVENT_FORK | uapi.UFFD_FEATURE_EVENT_REMAP |
		uapi.UFFD_FEATURE_EVENT_REMOVE | uapi.UFFD_FEATURE_EVENT_UNMAP |
		uapi.UFFD_FEATURE_THREAD_ID | uapi.UFFD_FEATURE_POISON
	if errno := m.d.Handshake(features); errno != 0 {
		return nil, fmt.Errorf("make a descriptor: %w", errno)
	}
	sp.seals = canSeal()
	sp.managed = &managed{manager: m, pins: make(map[mem.Page]int), unsure: make(map[int]struct{})}
	if err := sp.findGuards(); err != nil {
		return nil, err
	}
	p.doubt(sp, th)
	p.findWatched(th.Process())
	return m, nil
}

// manager returns the manager with a number in the registry.
func (p *Provider) manager(reg int) (*Manager, error) {
	sp, _ := p.registry.Memory(reg).(*space)
	d, err := p.registry.Descriptor(reg)
	if err != nil {
		return nil, err
	}
	if sp == nil {
		d.Close()
		return nil, tracee.ErrGone
	}
	return &Manager{p: p, sp: sp, d: d, bell: place.NewBell()}, nil
}

// Child returns the manager of a child, from the number that a fork event has,
// and the child's address space. The error matches tracee.ErrGone if the child
// has ended.
func (e *Engine) Child(fd int) (m *Manager, s *tracee.Space, err error) {
	done := e.tracer.Do(func() {
		delete(e.unborn, fd)
		if m, err = e.manager(fd); err == nil {
			s = m.sp.ts
			m.sp.managed.manager = m
		}
	})
	if !done {
		return nil, nil, tracee.ErrGone
	}
	return m, s, err
}

// earlyFilter sees, from a program's start on, what must be known of a thread
// when its memory comes to be managed. It refuses what writes to memory without
// anybody waiting for it: which pages that would need is not to be known.
func earlyFilter() []unix.SockFilter {
	p := &program{}
	p.Load(bpf.OffArch)
	p.Unless(auditArch, func() { p.Ret(allow) })
	p.IfCall([]uintptr{unix.SYS_RSEQ, unix.SYS_SIGALTSTACK, unix.SYS_SET_TID_ADDRESS, unix.SYS_SET_ROBUST_LIST}, p.report)
	// Whoever makes these: the memory may be that of another, which we manage.
	p.IfCall([]uintptr{unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV}, p.report)
	p.IfCall([]uintptr{unix.SYS_MMAP}, func() {
		p.Load(bpf.OffArg(3))
		p.And(unix.MAP_GROWSDOWN)
		p.If(unix.MAP_GROWSDOWN, p.report)
	})
	// What is sealed could not be closed to the program any more (Linux 6.10), and what
	// is outside would be missing to the kernel, too, if the program serves it itself.
	p.IfCall([]uintptr{unix.SYS_IO_URING_SETUP, unix.SYS_IO_SETUP, unix.SYS_MSEAL, unix.SYS_USERFAULTFD}, func() {
		p.Ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS))
	})
	// As before Linux 6.13, which takes all advice for the caller's own memory.
	p.IfCall([]uintptr{unix.SYS_PROCESS_MADVISE}, func() {
		p.Load(bpf.OffArg(3))
		for _, advice := range []uint32{unix.MADV_COLD, unix.MADV_PAGEOUT, unix.MADV_WILLNEED, unix.MADV_COLLAPSE} {
			p.RetIf(advice, allow)
		}
		p.Ret(unix.SECCOMP_RET_ERRNO | uint32(unix.EINVAL))
	})
	// Pages get their permissions from us, without a key.
	p.IfCall([]uintptr{unix.SYS_PKEY_ALLOC}, func() { p.Ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSPC)) })
	return p.end()
}

// allMemory is where a program's mappings may be.
var allMemory = mem.Range{Start: 2 * slack, End: 1 << 47}

// managedFilter sees all calls that use memory, or change it.
func managedFilter() []unix.SockFilter {
	p := &program{}
	p.Load(bpf.OffArch)
	p.Unless(auditArch, func() { p.Ret(allow) })
	p.uses(allMemory)
	p.only([]uintptr{unix.SYS_MMAP}, func() {
		p.Load(bpf.OffArg(3))
		p.And(unix.MAP_FIXED)
		p.If(unix.MAP_FIXED, p.report)
		p.Load(bpf.OffArg(3))
		p.And(unix.MAP_TYPE | unix.MAP_ANONYMOUS)
		p.If(unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, p.report)
	})
	p.forks()
	for _, nr := range slices.Sorted(maps.Keys(memoryCalls)) {
		if nr != unix.SYS_MMAP {
			p.IfCall([]uintptr{nr}, p.report)
		}
	}
	p.IfCall([]uintptr{unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_RT_SIGRETURN, unix.SYS_RESTART_SYSCALL}, p.report)
	p.IfCall(rareCalls, p.report)
	return p.end()
}

// rareCalls use memory that sysargs does not know.
var rareCalls = append([]uintptr{
	unix.SYS_MSGSND, unix.SYS_MSGRCV, unix.SYS_MSGCTL, unix.SYS_SEMOP, unix.SYS_SEMTIMEDOP, unix.SYS_SEMCTL, unix.SYS_SHMCTL,
	unix.SYS_MQ_OPEN, unix.SYS_MQ_UNLINK, unix.SYS_MQ_TIMEDSEND, unix.SYS_MQ_TIMEDRECEIVE, unix.SYS_MQ_NOTIFY, unix.SYS_MQ_GETSETATTR,
	unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD, unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF,
	unix.SYS_OPEN_TREE, unix.SYS_OPEN_TREE_ATTR, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSPICK,
	unix.SYS_MOUNT_SETATTR, unix.SYS_STATMOUNT, unix.SYS_LISTMOUNT,
	unix.SYS_FREMOVEXATTR, unix.SYS_SETXATTRAT, unix.SYS_GETXATTRAT, unix.SYS_LISTXATTRAT, unix.SYS_REMOVEXATTRAT,
	unix.SYS_FILE_GETATTR, unix.SYS_FILE_SETATTR, unix.SYS_FCHMODAT2, unix.SYS_CACHESTAT, unix.SYS_FANOTIFY_MARK,
	unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT,
	unix.SYS_FUTEX_WAITV, unix.SYS_FUTEX_WAIT, unix.SYS_FUTEX_WAKE, unix.SYS_FUTEX_REQUEUE,
	unix.SYS_RT_TGSIGQUEUEINFO, unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_PTRACE, unix.SYS_KCMP,
	unix.SYS_MBIND, unix.SYS_SET_MEMPOLICY, unix.SYS_GET_MEMPOLICY, unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES,
	unix.SYS_SECCOMP, unix.SYS_LANDLOCK_CREATE_RULESET, unix.SYS_LANDLOCK_ADD_RULE,
	unix.SYS_LSM_GET_SELF_ATTR, unix.SYS_LSM_SET_SELF_ATTR, unix.SYS_LSM_LIST_MODULES,
	unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_ACCT, unix.SYS_REBOOT,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD,
}, archRareCalls...)

// noted are the calls after which something is remembered of the thread.
var noted = map[uintptr]bool{
	unix.SYS_MMAP: true, unix.SYS_RSEQ: true, unix.SYS_SIGALTSTACK: true, unix.SYS_SET_TID_ADDRESS: true, unix.SYS_RT_SIGACTION: true,
	unix.SYS_SET_ROBUST_LIST: true,
}

// managedJob is jobFor for a tree whose memory we manage.
func (p *Provider) managedJob(th *tracee.Thread, c tracee.Call) func(*task, tracee.Call) {
	sp := p.spaces[th.Process().Space()]
	remote := c.Nr == unix.SYS_PROCESS_VM_READV || c.Nr == unix.SYS_PROCESS_VM_WRITEV
	if sp == nil || sp.managed == nil {
		switch {
		case noted[c.Nr]:
			return (*task).note
		case remote:
			return (*task).remote
		}
		return nil
	}
	delete(sp.managed.unsure, th.Tid())
	if t := p.tasks[th]; t != nil && t.own.piece.c.Nr == c.Nr && t.own.piece.done > 0 && t.own.piece.c.Args == c.Args {
		return (*task).nextPiece
	}
	if remote {
		return (*task).remote
	}
	switch c.Nr {
	case unix.SYS_EXIT, unix.SYS_EXIT_GROUP:
		return (*task).exit
	case unix.SYS_RT_SIGRETURN:
		return (*task).sigreturn
	case unix.SYS_RESTART_SYSCALL:
		return (*task).restart
	case unix.SYS_MMAP:
		return (*task).mapped
	case unix.SYS_BRK:
		return (*task).heap
	case unix.SYS_MADVISE:
		if int32(c.Args[2]) == unix.MADV_GUARD_INSTALL || int32(c.Args[2]) == unix.MADV_GUARD_REMOVE {
			return (*task).guards
		}
	case unix.SYS_READ, unix.SYS_WRITE, unix.SYS_PREAD64, unix.SYS_PWRITE64:
		if job := p.memJob(th.Process(), c); job != nil {
			return job
		}
		if c.Args[2] > pieceSize {
			return (*task).pieces
		}
	}
	if slices.Contains(forkCalls, c.Nr) {
		return (*task).fork
	}
	if i := slices.IndexFunc(openCalls, func(o openCall) bool { return o.nr == c.Nr }); i >= 0 {
		return func(t *task, c tracee.Call) { t.openManaged(c, openCalls[i]) }
	}
	if job := memoryCalls[c.Nr]; job != nil {
		return func(t *task, c tracee.Call) { t.change(func() { job(t, c) }) }
	}
	return (*task).use
}

// elsewhere runs f on another goroutine, while the thread waits.
func (t *task) elsewhere(f func()) {
	done := false
	go func() {
		f()
		t.p.tracer.Do(func() {
			if done = true; !t.gone {
				t.wake()
				t.p.settle()
			}
		})
	}()
	for !done && !t.gone {
		t.as(waitElsewhere, t.park)
	}
}

// mapped follows mmap. What is new is registered before the program learns of
// it.
func (t *task) mapped(c tracee.Call) { t.change(func() { t.mapNew(c) }) }

func (t *task) mapNew(c tracee.Call) {
	if !t.run() {
		return
	}
	if t.call.Errno == 0 {
		r := mem.Range{Start: addr(t.call.Ret), End: addr(t.call.Ret+c.Args[1]) + mem.PageSize - 1}
		r.End = r.End.Down()
		t.unfence(r)
		t.growsDown(c)
		if c.Args[3]&unix.MAP_FIXED != 0 && t.sp.touches(r) {
			t.unmapped(r)
		}
		if c.Args[3]&(unix.MAP_TYPE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB) == unix.MAP_PRIVATE|unix.MAP_ANONYMOUS && !t.gone {
			t.elsewhere(func() { t.p.hooks.Mapped(t.sp.ts, r) })
		}
	}
	t.resume(0)
}

// growsDown takes note of memory that grows when it is touched below.
func (t *task) growsDown(c tracee.Call) {
	if c.Args[3]&unix.MAP_GROWSDOWN != 0 {
		t.sp.growing = append(t.sp.growing, addr(t.call.Ret+c.Args[1]).Up())
	}
}

// heap follows brk.
func (t *task) heap(tracee.Call) { t.change(t.moveHeap) }

func (t *task) moveHeap() {
	old := t.sp.heap()
	if !t.run() {
		return
	}
	if t.call.Errno == 0 {
		t.shrunk(old, t.sp.heap())
		if now := t.sp.heap(); now.End > old.End && !t.gone {
			t.elsewhere(func() {
				t.p.hooks.Mapped(t.sp.ts, mem.Range{Start: max(old.End, now.Start), End: now.End})
			})
		}
	}
	t.resume(0)
}

// guards follows advice that makes memory inaccessible, for which there is no
// event. Accessing it is a signal that the program gets.
func (t *task) guards(c tracee.Call) { t.change(func() { t.setGuards(c) }) }

func (t *task) setGuards(c tracee.Call) {
	r, ok := pages(c.Args[0], c.Args[1])
	if !ok || !t.sp.touches(r) {
		t.resume(0)
		return
	}
	install := int32(c.Args[2]) == unix.MADV_GUARD_INSTALL
	if !t.run() {
		return
	}
	if t.call.Errno == 0 {
		t.unfence(r)
		if install {
			t.sp.fence(r)
		}
		t.sp.prot.forget(r) // what was sealed has a guard of the program's now, or none
		// The mirror is told by nobody else; that the pages are absent is no
		// event to the program's manager, which is ours.
		t.sp.v.Drop(r)
		t.sp.apply(r)
		t.elsewhere(func() { t.p.hooks.Guarded(t.sp.ts, r, install) })
	}
	t.resume(0)
}

// fence notes that r is guarded. The list is in order.
func (sp *space) fence(r mem.Range) {
	m := sp.managed
	m.guards = append(m.guards, r)
	slices.SortFunc(m.guards, func(a, b mem.Range) int { return cmp.Compare(a.Start, b.Start) })
}

// findGuards notes what was guarded before anybody saw calls.
func (sp *space) findGuards() error {
	pm, err := procmem.OpenPagemap(sp.ts.Pid())
	if err != nil {
		return err
	}
	defer pm.Close()
	vmas, err := procmem.Maps(sp.ts.Pid())
	for i := 0; i < len(vmas) && err == nil; i++ {
		if vmas[i].Anonymous() {
			err = pm.Guards(vmas[i].Range, sp.fence)
		}
	}
	return err
}

// unfence forgets guards in r.
func (t *task) unfence(r mem.Range) {
	if m := t.sp.managed; m != nil && len(m.guards) != 0 {
		m.guards = mem.Subtract(m.guards, []mem.Range{r})
	}
}

// fenced reports whether an access to a is an error though a is registered.
func (sp *space) fenced(a mem.Addr) bool {
	if sp.managed == nil {
		return false
	}
	for _, g := range sp.managed.guards {
		if g.Contains(a) {
			return true
		}
	}
	return false
}

// blind adds to the ranges of a call that sysargs does not know what its arguments
// may point to. What is sure to be used comes first: the rest may not be to be had.
func (t *task) blind(c tracee.Call) { t.guess(c.Args[:]) }

func (t *task) guess(pointers []uintptr) {
	const most = 4 * mem.PageSize
	add := func(n uint64, write bool) {
		for _, a := range pointers {
			if r := mem.MakeRange(addr(a), n); t.sp.touches(mem.MakeRange(r.Start, 1)) {
				t.ranges = append(t.ranges, sysargs.Range{Range: r, Write: write})
			}
		}
	}
	add(1, false)
	add(most, false)
	add(most, true)
}
