// SPDX-License-Identifier: Apache-2.0

package model

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/vkernel"
)

// memoryKind is the kind of memory that a map step names.
func memoryKind(st *step) string {
	for _, o := range st.opts {
		if slices.Contains(memoryKinds, o) {
			return o
		}
	}
	return memoryKinds[0]
}

func checkMap(p *parser, st *step) error {
	r, n, most := st.args[0].region, st.args[1].n, maxPages
	if strings.HasSuffix(memoryKind(st), "hugetlb") {
		r.unit, most = vkernel.HugePageSize, maxHuge
	}
	if n == 0 || n > uint64(most) {
		return fmt.Errorf("%s has %d pages; it may have 1 to %d", r.name, n, most)
	}
	p.sizes[r.name] = int(n)
	return nil
}

func checkAlias(p *parser, st *step) error {
	r, of := st.args[0].region, st.args[1].region
	r.unit = of.unit
	p.sizes[r.name] = p.sizes[of.name]
	st.args[1].n = uint64(p.sizes[of.name])
	return nil
}

// checkMremap finds the size of the new region: that of the old if none is
// given.
func checkMremap(p *parser, st *step) error {
	r, old := st.args[1].region, st.args[0]
	r.unit = old.region.unit
	if len(st.args) == 2 {
		st.args = append(st.args, operand{n: old.r.Len() / r.unit})
	}
	if n := st.args[2].n; n == 0 || n > regionGap/r.unit {
		return fmt.Errorf("%s has %d pages; it may have 1 to %d", r.name, n, regionGap/r.unit)
	}
	p.sizes[r.name] = int(st.args[2].n)
	return nil
}

// errnoOnly is the result of a call that returns nothing else.
func errnoOnly(e syscall.Errno) (int64, error) {
	if e != 0 {
		return 0, e
	}
	return 0, nil
}

// call starts a system call of t and tells its result.
func (m *machine) call(t *task, name string, f func() (int64, error)) {
	m.callThen(t, name, f, func(*result) string { return "" })
}

// callThen is call, and after the result then says more of it.
func (m *machine) callThen(t *task, name string, f func() (int64, error), then func(*result) string) {
	m.last, m.asked = result{}, t
	m.begin(t, func() func() {
		n, err := f()
		return func() {
			errno, _ := errors.AsType[syscall.Errno](err)
			r := &result{call: name, errno: errno, value: n}
			t.out = outcome{}
			e := Event{Kind: KindCall, Thread: t.name}
			switch {
			case t.proc.p.Dead():
				e.Text = fmt.Sprintf("%s: %s: the process is killed", t.name, name)
				e.Signal, t.out.errno = "SIGKILL", "SIGKILL"
			case errno != 0:
				e.Errno, t.out.errno = vkernel.ErrnoName(errno), vkernel.ErrnoName(errno)
				e.Text = fmt.Sprintf("%s: %s: %s%s", t.name, name, e.Errno, then(r))
			default:
				e.Text = fmt.Sprintf("%s: %s: ok%s", t.name, name, then(r))
			}
			e.Result = &n
			m.say(e)
			for _, text := range r.read {
				m.say(Event{Kind: KindMessage, Thread: t.name, Text: "  " + text})
			}
			if m.asked == t {
				m.last = *r
			}
		}
	})
}

// fileName is what the descriptor of a region's file is kept by. No
// descriptor of a script can have that name.
func fileName(r *region) string { return "file of " + r.name }

func doMap(m *machine, t *task, st *step) {
	r, n, kind := st.args[0].region, st.args[1].n, memoryKind(st)
	prot, flags, fd := vkernel.ProtRead|vkernel.ProtWrite, vkernel.MapFixed, -1
	if st.has("read-only") {
		prot = vkernel.ProtRead
	}
	if st.has("populate") {
		flags |= vkernel.MapPopulate
	}
	switch kind {
	case "shmem", "hugetlb":
		flags |= vkernel.MapShared
	case "anon":
		flags |= vkernel.MapPrivate | vkernel.MapAnonymous
	default:
		flags |= vkernel.MapPrivate
	}
	if kind != "anon" {
		fd = m.file(t, r, n*r.unit)
	}
	m.call(t, "mmap", func() (int64, error) {
		_, errno := t.th.Mmap(r.base, n*r.unit, prot, flags, fd, 0)
		return errnoOnly(errno)
	})
}

// file makes the file of a region. Making one does not wait for anything.
func (m *machine) file(t *task, r *region, size uint64) int {
	flags := 0
	if r.unit > mem.PageSize {
		flags = vkernel.MfdHugetlb
	}
	fd, errno := t.th.MemfdCreate(r.name, flags)
	if errno == 0 {
		errno = t.th.Ftruncate(fd, size)
	}
	if errno != 0 {
		m.fail("no file for %s: %s", r.name, vkernel.ErrnoName(errno))
	}
	m.fds[fileName(r)] = fd
	return fd
}

func doAlias(m *machine, t *task, st *step) {
	r, of := st.args[0].region, st.args[1]
	fd, ok := m.fds[fileName(of.region)]
	if !ok {
		m.fail("%s maps no file, of which there could be an alias", of.name)
	}
	m.fds[fileName(r)] = fd
	m.call(t, "mmap", func() (int64, error) {
		_, errno := t.th.Mmap(r.base, of.n*r.unit, vkernel.ProtRead|vkernel.ProtWrite, vkernel.MapShared|vkernel.MapFixed, fd, 0)
		return errnoOnly(errno)
	})
}

func doMremap(m *machine, t *task, st *step) {
	old, to, n := st.args[0].r, st.args[1].region, st.args[2].n
	flags := vkernel.MremapMayMove | vkernel.MremapFixed
	if st.has("DONTUNMAP") {
		flags |= vkernel.MremapDontUnmap
	}
	m.call(t, "mremap", func() (int64, error) {
		_, errno := t.th.Mremap(old.Start, old.Len(), n*to.unit, flags, to.base)
		return errnoOnly(errno)
	})
}

// doMremapOver puts pages where other memory was.
func doMremapOver(m *machine, t *task, st *step) {
	old, to := st.args[0].r, st.args[1].r
	m.call(t, "mremap", func() (int64, error) {
		_, errno := t.th.Mremap(old.Start, old.Len(), to.Len(), vkernel.MremapMayMove|vkernel.MremapFixed, to.Start)
		return errnoOnly(errno)
	})
}

func doMprotect(m *machine, t *task, st *step) {
	r := st.args[0].r
	prot := int(bit(st, "read", vkernel.ProtRead) | bit(st, "write", vkernel.ProtWrite))
	m.call(t, "mprotect", func() (int64, error) { return errnoOnly(t.th.Mprotect(r.Start, r.Len(), prot)) })
}

func doMadvise(m *machine, t *task, st *step) {
	r, n := st.args[0].r, 0
	for _, a := range advice {
		if st.opts[0] == a.name {
			n = a.n
		}
	}
	t.write = n == vkernel.MadvPopulateWrite
	m.call(t, "madvise", func() (int64, error) { return errnoOnly(t.th.Madvise(r.Start, r.Len(), n)) })
}

func doFork(m *machine, t *task, st *step) {
	name := st.args[0].name
	var child *vkernel.Process
	m.callThen(t, "fork", func() (int64, error) {
		c, errno := t.th.Fork()
		child = c
		return errnoOnly(errno)
	}, func(r *result) string {
		if r.errno == 0 {
			m.addTask(name, m.addProc(name, child))
		}
		return ""
	})
}

// checkLoad sees to it that a load has a length.
func checkLoad(_ *parser, st *step) error {
	if len(st.args) == 1 {
		st.args = append(st.args, operand{n: 16})
	}
	if n := st.args[1].n; n == 0 || n > 4*mem.PageSize {
		return fmt.Errorf("%d bytes cannot be loaded; 1 to %d can", n, 4*mem.PageSize)
	}
	return nil
}

func doLoad(m *machine, t *task, st *step) {
	a, b := st.args[0].r.Start, make([]byte, st.args[1].n)
	m.access(t, false, a, b, func() error { return t.th.Load(context.Background(), a, b) })
}

func doStore(m *machine, t *task, st *step) {
	a, b := st.args[0].r.Start, []byte(st.args[1].text)
	m.access(t, true, a, b, func() error { return t.th.Store(context.Background(), a, b) })
}

// access starts a touch of memory in user mode and tells how it ends.
func (m *machine) access(t *task, write bool, a mem.Addr, b []byte, touch func() error) {
	t.write = write
	m.begin(t, func() func() {
		err := touch()
		return func() { m.ended(t, "user", a, b, err) }
	})
	t.mode = "user"
}

// syscallTouch is a touch of memory by a system call, as the calls read and
// write make it.
func (m *machine) syscallTouch(t *task, write bool, a mem.Addr, b []byte, touch func() error) {
	t.write = write
	m.begin(t, func() func() {
		err := touch()
		return func() { m.ended(t, "kernel", a, b, err) }
	})
}

func doSyscallLoad(m *machine, t *task, st *step) {
	a, b := st.args[0].r.Start, make([]byte, st.args[1].n)
	m.syscallTouch(t, false, a, b, func() error {
		_, err := t.th.CopyIn(context.Background(), a, b)
		return err
	})
}

func doSyscallStore(m *machine, t *task, st *step) {
	a, b := st.args[0].r.Start, []byte(st.args[1].text)
	m.syscallTouch(t, true, a, b, func() error {
		_, err := t.th.CopyOut(context.Background(), a, b)
		return err
	})
}

// ended tells how a touch of memory ended.
func (m *machine) ended(t *task, mode string, a mem.Addr, b []byte, err error) {
	e := Event{Kind: KindAccess, Thread: t.name, Addr: a.String(), Access: "read", Mode: mode}
	what := "reads"
	if t.write {
		e.Access, what = "write", "writes"
	}
	t.out = outcome{}
	sig, isSignal := errors.AsType[*vkernel.Signal](err)
	errno, isErrno := errors.AsType[syscall.Errno](err)
	switch {
	case err == nil:
		text := trimmed(b)
		t.out = outcome{text: text, loaded: !t.write}
		e.Value = &text
		shown := fmt.Sprintf("%q", text)
		if text == "" {
			shown = "zeros"
		}
		e.Text = fmt.Sprintf("%s %s %s at %s", t.name, what, shown, m.place(a))
	case isSignal:
		e.Signal = map[int]string{vkernel.SIGBUS: "SIGBUS", vkernel.SIGSEGV: "SIGSEGV"}[sig.Signo]
		e.Text = fmt.Sprintf("%s would die of %s at %s", t.name, e.Signal, m.place(sig.Addr))
		t.out.errno = e.Signal
	case isErrno && !t.proc.p.Dead():
		e.Errno = vkernel.ErrnoName(errno)
		e.Text = fmt.Sprintf("%s: the call's %s at %s: %s", t.name, e.Access, m.place(a), e.Errno)
		t.out.errno = e.Errno
	default:
		e.Signal, t.out.errno = "SIGKILL", "SIGKILL"
		e.Text = t.name + " is killed"
	}
	m.say(e)
}
