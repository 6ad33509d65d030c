// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package puppet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
)

// Process is a puppet.
type Process struct {
	area    *area
	root    *Process // who has mapped the area for the family; itself perhaps
	pid     int
	pidfd   int
	main    *Thread
	threads []*Thread
	// family holds every process that descends from a root, for its end.
	family []*Process
	child  bool // of ours, to be waited for
	dead   bool
}

// Start makes a puppet without relatives. It has no descriptors but
// /dev/null in 0, 1 and 2 and the area in 3.
func Start() (*Process, error) {
	prog, err := image()
	if err != nil {
		return nil, err
	}
	a, err := newArea()
	if err != nil {
		return nil, err
	}
	p := newRoot(a)
	if err := p.launch(prog, forkExec); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func newRoot(a *area) *Process {
	p := &Process{area: a, pidfd: -1}
	p.root = p
	p.family = []*Process{p}
	return p
}

// forkExec starts the program as a child of ours.
func forkExec(path string, argv []string, files []uintptr) (int, error) {
	return syscall.ForkExec(path, argv, &syscall.ProcAttr{
		Env:   []string{},
		Files: files,
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
}

// launch has the program started. The number that start returns is 0 if the
// process is not ours to wait for.
func (p *Process) launch(prog int, start func(path string, argv []string, files []uintptr) (int, error)) error {
	s, addr, index, err := p.area.take()
	if err != nil {
		return err
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", os.DevNull, err)
	}
	defer unix.Close(null)
	n := uintptr(null)
	path := fmt.Sprintf("/proc/self/fd/%d", prog)
	p.pid, err = start(path, []string{"puppet"}, []uintptr{n, n, n, uintptr(p.area.fd)})
	if err != nil {
		return fmt.Errorf("start of a puppet: %w", err)
	}
	p.child = p.pid != 0
	if p.child {
		if err := p.watch(); err != nil {
			return err
		}
	}
	return p.begin(&Thread{proc: p, slot: s, slotAddr: addr, index: index}, nil)
}

// watch notes how the end of the process is seen.
func (p *Process) watch() (err error) {
	if p.pidfd, err = unix.PidfdOpen(p.pid, 0); err != nil {
		return fmt.Errorf("pidfd_open of a puppet: %w", err)
	}
	return nil
}

// begin makes t, which comes to life by the hand of by, the main thread.
func (p *Process) begin(t, by *Thread) error {
	p.main, p.threads = t, []*Thread{t}
	if err := p.hello(t, by); err != nil {
		return err
	}
	if p.pidfd < 0 {
		p.pid = int(t.slot.pid)
		if err := p.watch(); err != nil {
			return err
		}
	}
	return t.settle()
}

// hello waits until t serves its slot. by is the thread that makes it.
func (p *Process) hello(t, by *Thread) error {
	for deadline := time.Now().Add(Budget); !t.slot.finished(); {
		if by != nil && by.Finished() && by.Result().Errno != 0 {
			return fmt.Errorf("clone: %w", by.Result().Errno)
		}
		if p.Exited() || time.Now().After(deadline) {
			return errors.New("a puppet does not come to life")
		}
		t.slot.wait(time.Millisecond)
	}
	return nil
}

// PID returns the kernel's number of the process.
func (p *Process) PID() int { return p.pid }

// Main returns the first thread.
func (p *Process) Main() *Thread { return p.main }

// Threads returns all threads that the process has had.
func (p *Process) Threads() []*Thread { return p.threads }

// Scratch returns the address of [ScratchSize] bytes that the family shares
// with us.
func (p *Process) Scratch() (mem.Addr, []byte) {
	return AreaStart + scratchOff, p.area.b[scratchOff:]
}

const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND |
	unix.CLONE_THREAD | unix.CLONE_SYSVSEM

// Spawn makes another thread by the hand of by, which must be idle.
func (p *Process) Spawn(by *Thread) (*Thread, error) {
	t, err := p.clone(by, threadFlags, p)
	if err != nil {
		return nil, err
	}
	if err := p.hello(t, by); err != nil {
		return nil, err
	}
	p.threads = append(p.threads, t)
	if _, err := by.Finish(); err != nil {
		return nil, err
	}
	return t, t.arm()
}

// clone begins to make a task.
func (p *Process) clone(by *Thread, flags uint64, owner *Process) (*Thread, error) {
	s, addr, index, err := p.area.take()
	if err != nil {
		return nil, err
	}
	by.Start(clone, 0, [6]uint64{flags, uint64(addr)})
	return &Thread{proc: owner, slot: s, slotAddr: addr, index: index}, nil
}

// Fork is a fork(2) that has begun.
type Fork struct {
	by, first *Thread
	child     *Process
}

// BeginFork begins to make another process by the hand of by. With an event
// the child does not run, and by sleeps, until that is read.
func (p *Process) BeginFork(by *Thread) (*Fork, error) {
	child := &Process{area: p.area, root: p.root, pidfd: -1}
	t, err := p.clone(by, uint64(syscall.SIGCHLD), child)
	return &Fork{by: by, first: t, child: child}, err
}

// Child waits for the child and returns it.
func (f *Fork) Child() (*Process, error) {
	child := f.child
	child.root.family = append(child.root.family, child)
	return child, child.begin(f.first, f.by)
}

// Exec replaces the program by a fresh copy of itself. It must be the main
// thread's turn, and takes the other threads away.
func (p *Process) Exec() error {
	t := p.main
	t.execve(t.index)
	r, err := t.Finish()
	if err != nil {
		return err
	}
	if r.Errno != 0 {
		return fmt.Errorf("execve: %w", r.Errno)
	}
	p.threads = p.threads[:1]
	return t.settle()
}

// execve begins to replace the program by a fresh copy, which serves slot
// index then.
func (t *Thread) execve(index int) {
	b, addr := t.tail()
	const arg = "puppet\x00/proc/self/exe\x00"
	copy(b, arg)
	argv := b[64:]
	n := index + 1
	for i := range n {
		put64(argv[8*i:], uint64(addr))
	}
	put64(argv[8*n:], 0)
	end := uint64(addr) + 64 + uint64(8*n)
	t.Start(Syscall, unix.SYS_EXECVE, [6]uint64{uint64(addr) + 7, uint64(addr) + 64, end})
}

// Take puts descriptor fd of another puppet into p's table, as SCM_RIGHTS
// would, and returns its number there. It is close-on-exec.
func (p *Process) Take(from *Process, fd int) (int, error) {
	pidfd, err := p.main.Do(unix.SYS_PIDFD_OPEN, uint64(from.pid), 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_open: %w", err)
	}
	n, err := p.main.Do(unix.SYS_PIDFD_GETFD, pidfd, uint64(fd), 0)
	if _, cerr := p.main.Do(unix.SYS_CLOSE, pidfd); err == nil {
		err = cerr
	}
	return int(n), named("pidfd_getfd", err)
}

// DropPrivilege makes the main thread, before there is another, somebody
// without capabilities.
func (p *Process) DropPrivilege() error {
	const nobody = 65534
	if _, err := p.main.Do(unix.SYS_SETRESUID, nobody, nobody, nobody); err != nil {
		return fmt.Errorf("setresuid: %w", err)
	}
	// The change has cleared it.
	_, err := p.main.Do(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uint64(syscall.SIGKILL))
	return named("prctl(PR_SET_PDEATHSIG)", err)
}

// Exited reports whether the process has ended, be it a zombie.
func (p *Process) Exited() bool {
	if p.dead || p.pidfd < 0 {
		return p.dead
	}
	return poll(p.pidfd, 0)
}

// Kill ends the process by SIGKILL and waits for its end.
func (p *Process) Kill() error {
	if p.dead || p.pidfd < 0 {
		return nil
	}
	if err := unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill of a puppet: %w", err)
	}
	if !poll(p.pidfd, Budget) {
		return fmt.Errorf("puppet %d does not die: its main thread is %s", p.pid, p.main.Describe())
	}
	p.dead = true
	if p.child {
		// A forked one is its parent's to reap, or init's.
		var ws unix.WaitStatus
		for {
			if _, err := unix.Wait4(p.pid, &ws, 0, nil); err != unix.EINTR {
				break
			}
		}
	}
	return nil
}

// Close ends the whole family of a root.
func (p *Process) Close() error {
	var errs []error
	for _, m := range p.family {
		errs = append(errs, m.Kill())
		if m.pidfd >= 0 {
			_ = unix.Close(m.pidfd)
			m.pidfd = -1
		}
	}
	p.area.close()
	return errors.Join(errs...)
}

// poll waits until fd is readable.
func poll(fd int, timeout time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	deadline := time.Now().Add(timeout)
	for {
		left := max(0, time.Until(deadline))
		n, err := unix.Poll(fds, int(left.Milliseconds()))
		if n > 0 || err != unix.EINTR {
			return n > 0
		}
	}
}

func put64(b []byte, words ...uint64) {
	for i, w := range words {
		binary.LittleEndian.PutUint64(b[8*i:], w)
	}
}

func named(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
