// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package puppet

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
)

const arena = 0x20_0000_0000

func start(t *testing.T) *Process {
	t.Helper()
	p, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func do(t *testing.T, th *Thread, nr uintptr, args ...uint64) uint64 {
	t.Helper()
	v, err := th.Do(nr, args...)
	if err != nil {
		t.Fatalf("system call %d: %v", nr, err)
	}
	return v
}

func access(t *testing.T, th *Thread, op Op, args ...uint64) Result {
	t.Helper()
	var a [6]uint64
	copy(a[:], args)
	th.Start(op, 0, a)
	r, err := th.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAccess(t *testing.T) {
	p := start(t)
	th := p.Main()
	do(t, th, unix.SYS_MMAP, arena, 2*mem.PageSize, 3, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED, ^uint64(0), 0)
	access(t, th, Store64, arena+8, 0x1122334455667788)
	if r := access(t, th, Load64, arena+8); r.Value != 0x1122334455667788 {
		t.Errorf("load = %#x", r.Value)
	}
	if r := access(t, th, CAS64, arena+8, 1, 2); r.Value != 0x1122334455667788 {
		t.Errorf("failing cas = %#x", r.Value)
	}
	if r := access(t, th, CAS64, arena+8, 0x1122334455667788, 2); r.Value != 0x1122334455667788 {
		t.Errorf("cas = %#x", r.Value)
	}
	access(t, th, Store8, arena+9, 0xab)
	access(t, th, Copy, arena+mem.PageSize, arena, 16)
	if r := access(t, th, Load8, arena+mem.PageSize+9); r.Value != 0xab {
		t.Errorf("after copy: %#x", r.Value)
	}
	do(t, th, unix.SYS_MPROTECT, arena, mem.PageSize, 0)
	r := access(t, th, Load8, arena+5)
	if r.Signal != syscall.SIGSEGV || r.Code != 2 || r.Addr != arena+5 {
		t.Errorf("protected: %+v", r)
	}
	do(t, th, unix.SYS_MUNMAP, arena, mem.PageSize)
	r = access(t, th, Store8, arena+5, 1)
	if r.Signal != syscall.SIGSEGV || r.Code != 1 {
		t.Errorf("unmapped: %+v", r)
	}
	vmas, err := p.Maps(mem.MakeRange(arena, 4*mem.PageSize))
	if err != nil || len(vmas) != 1 || vmas[0].Perms != "rw-p" || vmas[0].Start != arena+mem.PageSize {
		t.Errorf("maps: %+v, %v", vmas, err)
	}
	if w, err := p.Pagemap(mem.MakeRange(arena+mem.PageSize, mem.PageSize)); err != nil || w[0]>>63 != 1 {
		t.Errorf("pagemap: %#x, %v", w, err)
	}
	_, err = th.Do(unix.SYS_CLOSE, 99)
	if !errors.Is(err, unix.EBADF) {
		t.Errorf("close(99): %v", err)
	}
}

// TestNothingStray: the puppet has the mappings that it must have.
func TestNothingStray(t *testing.T) {
	p := start(t)
	all, err := p.Maps(mem.Range{End: ^mem.Addr(0)})
	if err != nil {
		t.Fatal(err)
	}
	// Program, area, stack, and what the kernel adds to every process.
	if len(all) > 7 {
		t.Errorf("%d mappings: %+v", len(all), all)
	}
}

func TestThreadsForkExec(t *testing.T) {
	p := start(t)
	th, err := p.Spawn(p.Main())
	if err != nil {
		t.Fatal(err)
	}
	if got := do(t, th, unix.SYS_GETTID); int(got) != th.TID() || th.TID() == p.PID() {
		t.Errorf("thread %d says that it is %d", th.TID(), got)
	}
	do(t, th, unix.SYS_MMAP, arena, mem.PageSize, 3, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED, ^uint64(0), 0)
	access(t, p.Main(), Store64, arena, 7)
	fork, err := p.BeginFork(th)
	if err != nil {
		t.Fatal(err)
	}
	child, err := fork.Child()
	if err != nil {
		t.Fatal(err)
	}
	if r, err := th.Finish(); err != nil || int(r.Value) != child.PID() {
		t.Errorf("fork = %+v, %v", r, err)
	}
	access(t, p.Main(), Store64, arena, 8)
	if r := access(t, child.Main(), Load64, arena); r.Value != 7 {
		t.Errorf("the child reads %d", r.Value)
	}
	fd := do(t, p.Main(), unix.SYS_EVENTFD2, 0, 0)
	n, err := child.Take(p, int(fd))
	if err != nil {
		t.Fatal(err)
	}
	if l, err := child.Link(n); err != nil || l != "anon_inode:[eventfd]" {
		t.Errorf("took %q, %v", l, err)
	}
	if err := child.Exec(); err != nil {
		t.Fatal(err)
	}
	if r := access(t, child.Main(), Load64, arena); r.Signal != syscall.SIGSEGV {
		t.Errorf("after exec: %+v", r)
	}
	if err := child.Kill(); err != nil || !child.Exited() || p.Exited() {
		t.Errorf("kill of the child: %v, %v, %v", err, child.Exited(), p.Exited())
	}
}

// TestState: a thread that sleeps is seen asleep, a handler runs, and what is
// restarted goes on.
func TestState(t *testing.T) {
	p := start(t)
	th := p.Main()
	_, scratch := p.Scratch()
	addr, _ := p.Scratch()
	do(t, th, unix.SYS_PIPE2, uint64(addr), 0)
	r := scratch[0]
	for _, restart := range []bool{false, true} {
		if err := th.Handle(restart); err != nil {
			t.Fatal(err)
		}
		before := th.Handled()
		th.Start(Syscall, unix.SYS_READ, [6]uint64{uint64(r), uint64(addr) + 64, 1})
		await(t, func() bool { return th.State() == Asleep })
		if err := th.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		await(t, func() bool { return th.Handled() == before+1 })
		if restart {
			await(t, func() bool { return th.State() == Asleep })
			continue
		}
		if res, err := th.Finish(); err != nil || res.Errno != syscall.EINTR {
			t.Errorf("interrupted: %+v, %v", res, err)
		}
	}
	if err := p.Kill(); err != nil || th.State() != Gone {
		t.Errorf("after kill: %v, %v", err, th.State())
	}
}

func await(t *testing.T, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Budget); !f(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come")
		}
	}
}

func BenchmarkCommand(b *testing.B) {
	p, err := Start()
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	for b.Loop() {
		if _, err := p.Main().Do(unix.SYS_GETTID); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		p, err := Start()
		if err != nil {
			b.Fatal(err)
		}
		p.Close()
	}
}
