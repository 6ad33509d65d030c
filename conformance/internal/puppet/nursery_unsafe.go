// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package puppet

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Nursery is a puppet that makes puppets, for when the first of them has to be
// started by somebody else: they do not descend from us then, but from it.
type Nursery struct {
	p      *Process
	sees   func(tid int) (State, bool)
	reader *Process // nil until something was to be read
}

// StartNursery has start run a program with an environment that is empty, and
// with files as its descriptors. What a thread that sleeps by the doing of who
// has started it is at, sees says, if it does: the kernel does not know.
func StartNursery(start func(path string, argv []string, files []uintptr) error, sees func(tid int) (State, bool)) (*Nursery, error) {
	prog, err := image()
	if err != nil {
		return nil, err
	}
	a, err := newArea()
	if err != nil {
		return nil, err
	}
	n := &Nursery{p: newRoot(a), sees: sees}
	a.eyes = n
	err = n.p.launch(prog, func(path string, argv []string, files []uintptr) (int, error) {
		return 0, start(path, argv, files)
	})
	if err == nil {
		// It waits for nobody.
		err = n.p.main.ignore(syscall.SIGCHLD)
	}
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Alive reports whether it can be used still.
func (n *Nursery) Alive() bool { return !n.p.Exited() }

// Close ends it, but none of those that were asked for.
func (n *Nursery) Close() error {
	var err error
	if n.reader != nil {
		err = n.reader.Close()
	}
	return errors.Join(err, n.p.Close())
}

func (n *Nursery) state(tid int) (State, bool) { return n.sees(tid) }

// read has a puppet read: what is shown to programs is seen by programs.
func (n *Nursery) read(path string, off int64, most int) ([]byte, error) {
	if n.reader == nil {
		p, err := n.Start()
		if err != nil {
			return nil, err
		}
		n.reader = p
		// Who never calls it may be left alone, and is shown nothing.
		fd, err := p.main.Do(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|userModeOnly)
		if err == nil {
			_, err = p.main.Do(unix.SYS_CLOSE, fd)
		}
		if err != nil {
			return nil, fmt.Errorf("userfaultfd: %w", err)
		}
	}
	th := n.reader.main
	fd, err := th.Do(unix.SYS_OPENAT, atFDCWD, th.Text(append([]byte(path), 0)), unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open of %s: %w", path, err)
	}
	b, err := th.readAll(fd, off, most)
	if _, cerr := th.Do(unix.SYS_CLOSE, fd); err == nil {
		err = cerr
	}
	return b, named("read of "+path, err)
}

// userModeOnly is a flag of userfaultfd(2).
const userModeOnly = 1

// readAll reads up to n bytes of a file from off on, by way of the scratch memory.
func (t *Thread) readAll(fd uint64, off int64, n int) (all []byte, err error) {
	at, b := t.proc.Scratch()
	for len(all) < n {
		got, err := t.Do(unix.SYS_PREAD64, fd, uint64(at), uint64(min(len(b), n-len(all))), uint64(off)+uint64(len(all)))
		if got == 0 || err != nil {
			return all, err
		}
		all = append(all, b[:got]...)
	}
	return all, nil
}

// Start makes a puppet as [Start] does.
func (n *Nursery) Start() (*Process, error) {
	a, err := newArea()
	if err != nil {
		return nil, err
	}
	a.eyes = n
	p := newRoot(a)
	if err := n.bear(p); err != nil {
		p.Close()
		return nil, fmt.Errorf("start of a puppet by another: %w", err)
	}
	return p, nil
}

// bear forks the nursery, and has the child execute the program anew with the
// area of p. A slot of the nursery's area is used for that, and used again.
func (n *Nursery) bear(p *Process) error {
	f, err := n.p.BeginFork(n.p.main)
	if err != nil {
		return err
	}
	child, err := f.Child()
	if err != nil {
		return err
	}
	// From here on it is p's to end.
	n.p.family = n.p.family[:1]
	p.pid, p.pidfd = child.pid, child.pidfd
	if _, err := n.p.main.Finish(); err != nil {
		return err
	}
	s, addr, index, err := p.area.take()
	if err != nil {
		return err
	}
	t := child.main
	if err := t.replace(areaFD, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), p.area.fd)); err != nil {
		return err
	}
	t.execve(index)
	if err := p.begin(&Thread{proc: p, slot: s, slotAddr: addr, index: index}, t); err != nil {
		return err
	}
	n.p.area.giveBack(t)
	return p.main.heed(syscall.SIGCHLD)
}

const atFDCWD = 1<<64 - 100 // AT_FDCWD

// replace makes fd be another file.
func (t *Thread) replace(fd uint64, path string) error {
	n, err := t.Do(unix.SYS_OPENAT, atFDCWD, t.Text(append([]byte(path), 0)), unix.O_RDWR)
	if err == nil && n != fd {
		if _, err = t.Do(unix.SYS_DUP3, n, fd, 0); err == nil {
			_, err = t.Do(unix.SYS_CLOSE, n)
		}
	}
	return named("open of "+path, err)
}

// ignore and heed set what a signal does that has no handler.
func (t *Thread) ignore(sig syscall.Signal) error { return t.disposition(sig, 1) }
func (t *Thread) heed(sig syscall.Signal) error   { return t.disposition(sig, 0) }

func (t *Thread) disposition(sig syscall.Signal, what uint64) error {
	b, addr := t.tail()
	put64(b, what, 0, 0, 0)
	_, err := t.Do(unix.SYS_RT_SIGACTION, uint64(sig), uint64(addr), 0, 8)
	return named("rt_sigaction", err)
}

// giveBack makes the slot of t, which is the last that was taken and which
// nobody serves any more, be given out again.
func (a *area) giveBack(t *Thread) {
	a.used--
	clear(a.b[t.index*slotSize:][:unsafe.Sizeof(slot{})])
}
