// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
)

const (
	// codeSize is the length of the agent's code mapping. Behind the blob it
	// holds the two strings that planting needs.
	codeSize = mem.PageSize
	nameOff  = 2048
	wordOff  = 3072 // scratch, while the page is writable

	agentName = "faultline"

	// cloneFlags: share the memory, nothing else, and be traced even if the
	// tracer did not ask for PTRACE_O_TRACECLONE. The exit signal is 0, so
	// that the program's wait does not see the task.
	cloneFlags = unix.CLONE_VM | unix.CLONE_PTRACE
)

// planting is an agent in the making.
type planting struct {
	s    *Session // the program's thread
	code uintptr  // of the code page, 0 until mapped
	area uintptr  // of the shared area, 0 until mapped
	mid  int      // the task between the program and the agent, 0 if none
	tid  int      // the agent, 0 until made

	// The program's child, which it has to reap itself: mid or the agent, as
	// it is called in the program's pid namespace. 0 if there is none.
	child uintptr
}

// Plant makes an agent through the borrowed thread. The session stays open.
//
// The agent is not a child of the program but, where the program runs below
// us, our own: a task in between makes it and ends, and is reaped inside the
// program before Plant returns, so that the program can never find a child
// that it did not make, whatever flags it waits with. Only where the program
// is itself the reaper of orphans (init of a pid namespace, or a child
// subreaper) the agent is its direct child, seen by __WCLONE and __WALL
// alone, and leaves a zombie there when it dies before the program does.
//
// While Plant runs, this process is a child subreaper: an orphan of some
// other process that happens to be made then becomes our child.
//
// An error names the call that was refused and leaves the program without any
// trace of the attempt.
func Plant(s *Session) (*Agent, error) {
	p := &planting{s: s}
	a, err := p.plant()
	if err != nil {
		p.undo()
		return nil, fmt.Errorf("plant agent in thread %d: %w", s.tid, err)
	}
	return a, nil
}

func (p *planting) plant() (*Agent, error) {
	own, err := p.mapCode()
	if err != nil {
		return nil, err
	}
	if own {
		err = p.makeDirect()
	} else {
		err = p.makeOrphan()
	}
	if err != nil {
		return nil, err
	}
	return p.start()
}

// mapCode maps the code page. It reports whether the program is the reaper of
// its own orphans.
func (p *planting) mapCode() (own bool, err error) {
	page, err := call(p.s, "mmap", unix.SYS_MMAP, Hint(), codeSize, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
	if err != nil {
		return false, err
	}
	p.code = page
	text := make([]byte, codeSize)
	copy(text, blob[:])
	copy(text[nameOff:], agentName)
	if _, err := p.s.WriteAt(text, int64(page)); err != nil {
		return false, err
	}
	if _, err := call(p.s, "madvise", unix.SYS_MADVISE, page, codeSize, unix.MADV_DONTFORK); err != nil {
		return false, err
	}
	if _, err := call(p.s, "prctl(PR_GET_CHILD_SUBREAPER)", unix.SYS_PRCTL,
		unix.PR_GET_CHILD_SUBREAPER, page+wordOff); err != nil {
		return false, err
	}
	var word [4]byte
	if _, err := p.s.ReadAt(word[:], int64(page+wordOff)); err != nil {
		return false, err
	}
	st, err := readStatus(p.s.tid)
	if err != nil {
		return false, err
	}
	own = word != [4]byte{} || len(st.nspid) > 0 && st.nspid[len(st.nspid)-1] == "1"
	// Written and then made executable, rather than written through
	// /proc/PID/mem, which a kernel may be set to refuse.
	_, err = call(p.s, "mprotect", unix.SYS_MPROTECT, page, codeSize, unix.PROT_READ|unix.PROT_EXEC)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		err = p.remapCode(text)
	}
	return own, err
}

// remapCode makes the code page anew for a program that must not make memory
// executable which was writable (PR_SET_MDWE of prctl(2), or a filter that does
// the same): as it is to be, and written by the tracer's right.
func (p *planting) remapCode(text []byte) error {
	if _, err := call(p.s, "munmap", unix.SYS_MUNMAP, p.code, codeSize); err != nil {
		return err
	}
	p.code = 0
	page, err := call(p.s, "mmap", unix.SYS_MMAP, Hint(), codeSize, unix.PROT_READ|unix.PROT_EXEC,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
	if err != nil {
		return err
	}
	p.code = page
	if err := poke(p.s.tid, page, text); err != nil {
		return err
	}
	_, err = call(p.s, "madvise", unix.SYS_MADVISE, page, codeSize, unix.MADV_DONTFORK)
	return err
}

// makeDirect makes the agent a child of the program.
func (p *planting) makeDirect() (err error) {
	if p.tid, p.child, err = clone(p.s); err != nil {
		return err
	}
	t, err := Open(p.tid)
	if err != nil {
		return err
	}
	return errors.Join(closeAll(t), t.Close())
}

// makeOrphan makes the agent through a task in between, which ends at once.
func (p *planting) makeOrphan() error {
	var err error
	if p.mid, p.child, err = clone(p.s); err != nil {
		return err
	}
	t, err := Open(p.mid)
	if err != nil {
		return err
	}
	if err := closeAll(t); err != nil {
		return errors.Join(err, t.Close())
	}
	if p.tid, _, err = clone(t); err != nil {
		return errors.Join(err, t.Close())
	}
	// The task in between ends, and the agent becomes an orphan.
	restore, err := adoptOrphans()
	if err != nil {
		return err
	}
	reap(p.mid)
	restore()
	p.mid = 0
	return p.reapChild()
}

// reapChild has the program reap its dead child.
func (p *planting) reapChild() error {
	if p.child == 0 {
		return nil
	}
	there := p.child
	p.child = 0
	// ECHILD: another thread of the program, waiting with __WALL, was first.
	_, err := call(p.s, "wait4", unix.SYS_WAIT4, there, 0, unix.WALL, 0)
	if errors.Is(err, unix.ECHILD) {
		return nil
	}
	return err
}

// start gives the made task its shared area and lets it run.
func (p *planting) start() (*Agent, error) {
	t, err := Open(p.tid)
	if err != nil {
		return nil, err
	}
	raiseLimits(p.tid)
	// Back from where clone has bound it.
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(p.s.tid, &cpus); err == nil {
		defer unix.SchedSetaffinity(p.tid, &cpus)
	}
	// First of all, while it can still be waited for: a stop signal to the
	// program's process group finds it no more after this. A fresh task never
	// leads a process group, so this cannot be refused for that.
	if _, err := call(t, "setsid", unix.SYS_SETSID); err != nil {
		return nil, err
	}
	a := &Agent{tid: p.tid, tracer: unix.Gettid(), pidfd: -1, dead: make(chan struct{}),
		glance: unix.NsecToTimespec(glanceTime.Nanoseconds())}
	fd, err := p.share(t, a)
	if err != nil {
		a.Release()
		return nil, err
	}
	var r regs
	if err := getRegs(p.tid, &r); err != nil {
		a.Release()
		return nil, err
	}
	prepareBlob(&r, p.code, p.area)
	// From here on it is not put back to the program's registers, ever.
	t.saved, t.mask, t.rseq = r, ^sigset(0), 0
	t.suspended = false // Close leaves it so: the program's filters are never for it
	if err := t.Close(); err != nil {
		a.Release()
		return nil, err
	}
	if err := ptrace(unix.PTRACE_CONT, p.tid, 0, 0); err != nil {
		a.Release()
		return nil, err
	}
	if err := p.settle(a, fd); err != nil {
		a.Release()
		return nil, err
	}
	return a, nil
}

// share makes the area and maps it on both sides. It returns the agent's
// descriptor of it.
func (p *planting) share(t *Session, a *Agent) (fd uintptr, err error) {
	name := p.code + nameOff
	// MFD_NOEXEC_SEAL is demanded by some settings of vm.memfd_noexec; it is
	// unknown before Linux 6.3.
	for _, flags := range []uintptr{unix.MFD_NOEXEC_SEAL, 0} {
		fd, err = call(t, "memfd_create", unix.SYS_MEMFD_CREATE, name,
			unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|flags)
		if !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	if err != nil {
		return 0, err
	}
	if a.pidfd, err = unix.PidfdOpen(p.tid, 0); err != nil {
		return 0, fmt.Errorf("pidfd_open (needs Linux 5.3): %w", err)
	}
	// pidfd_getfd would do as well, but container runtimes refuse it.
	own, err := unix.Open(fmt.Sprintf("/proc/%d/fd/%d", p.tid, fd), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open the shared area: %w", err)
	}
	defer unix.Close(own)
	// Sized from here, where the program's RLIMIT_FSIZE does not reach, and
	// sealed, so that our side can never get SIGBUS.
	if err := unix.Ftruncate(own, areaSize); err != nil {
		return 0, fmt.Errorf("size the shared area: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(own), unix.F_ADD_SEALS,
		unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return 0, fmt.Errorf("seal the shared area: %w", err)
	}
	if a.area, a.raw, err = mapArea(own); err != nil {
		return 0, fmt.Errorf("map the shared area: %w", err)
	}
	p.area, err = call(t, "mmap", unix.SYS_MMAP, Hint(), areaSize, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED, fd, 0)
	if err != nil {
		p.area = 0
		return 0, err
	}
	// By us and not by the running agent: a Filter that the program has from
	// its parent reports this call, and the tracer is busy here.
	if _, err := call(t, "madvise", unix.SYS_MADVISE, p.area, areaSize, unix.MADV_DONTFORK); err != nil {
		return 0, err
	}
	a.addr = mem.Addr(p.area)
	a.ranges = []mem.Range{mem.MakeRange(mem.Addr(p.code), codeSize), mem.MakeRange(a.addr, areaSize)}
	return fd, nil
}

// settle has the running agent do the rest of its preparation by itself.
func (p *planting) settle(a *Agent, fd uintptr) error {
	ops := [...]Op{
		{NR: unix.SYS_PRCTL, Args: [6]uintptr{unix.PR_SET_NAME, p.code + nameOff}},
		{NR: unix.SYS_CLOSE, Args: [6]uintptr{fd}},
	}
	names := [...]string{"prctl(PR_SET_NAME)", "close"}
	if err := a.Run(ops[:]); err != nil {
		return err
	}
	for i := range ops {
		if err := ops[i].Err(); err != nil {
			return fmt.Errorf("%s: %w", names[i], err)
		}
	}
	return nil
}

// undo removes what an attempt has left in the program.
func (p *planting) undo() {
	for _, tid := range []int{p.tid, p.mid} {
		if tid != 0 {
			reap(tid)
		}
	}
	// Errors here mean that the program is gone, or refuses what it allowed
	// before; the first error is the one worth telling.
	_ = p.reapChild()
	if p.area != 0 {
		_, _ = p.s.Syscall(unix.SYS_MUNMAP, p.area, areaSize)
	}
	if p.code != 0 {
		_, _ = p.s.Syscall(unix.SYS_MUNMAP, p.code, codeSize)
	}
}

// call runs one injected call and names it in the error.
func call(s *Session, name string, nr uintptr, args ...uintptr) (uintptr, error) {
	v, err := s.Syscall(nr, args...)
	if err == nil {
		return v, nil
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EACCES) {
		if own, serr := HasFilter(s.tid); serr == nil && own {
			return 0, fmt.Errorf("%s: %w (the program has a seccomp filter, which may forbid it)", name, err)
		}
	}
	return 0, fmt.Errorf("%s: %w", name, err)
}
