// SPDX-License-Identifier: Apache-2.0

package uffd_test

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/sys"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// descriptor is what a page fault handler needs of an FD, in the terms that
// other packages declare for themselves.
type descriptor interface {
	Read(msgs []uapi.Msg) (n int, errno syscall.Errno)
	Wait(wake int, timeout time.Duration) (ready bool, errno syscall.Errno)
	Copy(dst mem.Addr, src []byte, mode uapi.CopyMode) (done int, errno syscall.Errno)
	Zeropage(r mem.Range, mode uapi.ZeropageMode) (done int, errno syscall.Errno)
	Wake(r mem.Range) syscall.Errno
	Poison(r mem.Range, mode uapi.PoisonMode) (done int, errno syscall.Errno)
	Register(r mem.Range, mode uapi.RegisterMode) (uapi.Ioctls, syscall.Errno)
	Unregister(r mem.Range) syscall.Errno
	Changing() bool
	Close() error
}

var _ descriptor = (*uffd.FD)(nil)

// here maps n pages of this process, which nothing ever touches, and
// registers them: no fault can happen.
func here(t *testing.T, f *uffd.FD, n int, mode uapi.RegisterMode) mem.Range {
	t.Helper()
	size := uintptr(n * mem.PageSize)
	at, err := unix.MmapPtr(-1, 0, nil, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.MunmapPtr(at, size); err != nil {
			t.Error(err)
		}
	})
	r := mem.MakeRange(mem.Addr(uintptr(at)), uint64(size))
	mustRegister(t, f, r, mode)
	return r
}

// TestNoAllocation holds every method of the hot path to no allocation.
func TestNoAllocation(t *testing.T) {
	need(t)
	const runs = 50
	needFeatures(t, uapi.UFFD_FEATURE_MOVE|uapi.UFFD_FEATURE_POISON)
	f := openHere(t)
	if err := f.Handshake(0); err != nil {
		t.Fatal(err)
	}
	r := here(t, f, 4*(runs+1), missing|uapi.UFFDIO_REGISTER_MODE_WP)
	next := 0
	fresh := func() mem.Range { next++; return page(r, next-1) }
	src := pattern(1, 1)
	msgs := make([]uapi.Msg, 16)
	wake, err := sys.NewEvent()
	if err != nil {
		t.Fatal(err)
	}
	defer wake.Close()

	var failed error
	check := func(op string, done int, errno syscall.Errno) {
		if err := uffd.Check(op, r, done, errno); err != nil && failed == nil {
			failed = err
		}
	}
	var from mem.Range
	for _, tc := range []struct {
		name string
		run  func()
	}{
		{"Copy", func() { from = fresh(); n, e := f.Copy(from.Start, src, 0); check("COPY", n, e) }},
		{"Move", func() {
			// Copy has left pages behind; each goes on to a fresh one.
			to := fresh()
			n, e := f.Move(to.Start, from.Start, mem.PageSize, 0)
			check("MOVE", n, e)
			from = to
		}},
		{"Zeropage", func() { n, e := f.Zeropage(fresh(), 0); check("ZEROPAGE", n, e) }},
		{"Poison", func() { n, e := f.Poison(fresh(), 0); check("POISON", n, e) }},
		{"Continue", func() { f.Continue(r, 0) }},
		{"WriteProtect", func() { check("WRITEPROTECT", 0, f.WriteProtect(r, uapi.UFFDIO_WRITEPROTECT_MODE_WP)) }},
		{"Wake", func() { check("WAKE", 0, f.Wake(r)) }},
		{"Changing", func() { f.Changing() }},
		{"Read", func() { f.Read(msgs) }},
		{"Wait", func() { _, e := f.Wait(wake.FD(), 0); check("poll", 0, e) }},
		{"Signal", func() { wake.Signal(); wake.Drain() }},
		{"Register", func() {
			check("UNREGISTER", 0, f.Unregister(r))
			_, e := f.Register(r, missing)
			check("REGISTER", 0, e)
		}},
	} {
		if n := testing.AllocsPerRun(runs, tc.run); n != 0 {
			t.Errorf("%s allocates %v times", tc.name, n)
		}
		if failed != nil {
			t.Fatalf("%s: %v", tc.name, failed)
		}
	}
}

// TestWait checks what ends a Wait: time, a wake-up, one that came before,
// and a message.
func TestWait(t *testing.T) {
	tg := newTarget(t)
	f, _ := tg.open(0)
	wake, err := sys.NewEvent()
	if err != nil {
		t.Fatal(err)
	}
	defer wake.Close()

	begin := time.Now()
	if ready, errno := f.Wait(wake.FD(), 20*time.Millisecond); ready || errno != 0 || time.Since(begin) < 20*time.Millisecond {
		t.Errorf("Wait = %v, %v after %v, want nothing after 20ms", ready, errno, time.Since(begin))
	}
	wake.Signal()
	if ready, errno := f.Wait(wake.FD(), -1); ready || errno != 0 {
		t.Errorf("Wait with an early wake-up = %v, %v", ready, errno)
	}
	if !wake.Drain() || wake.Drain() {
		t.Error("Drain does not take the signal once")
	}
	woken := make(chan bool)
	go func() {
		ready, errno := f.Wait(wake.FD(), -1)
		woken <- !ready && errno == 0
	}()
	wake.Signal()
	select {
	case ok := <-woken:
		if !ok {
			t.Error("a woken Wait reports a message or an error")
		}
	case <-time.After(budget):
		t.Fatal("Wait does not end when it is woken")
	}
	wake.Drain()
	r := tg.mmap(1)
	mustRegister(t, f, r, missing)
	c := tg.touch(r.Start, 1)
	wantFault(t, f, r.Start, 0)
	wantDone(t, "ZEROPAGE", did(f.Zeropage(r, 0)), result{mem.PageSize, 0})
	tg.see(c, 1)
}

// TestCloseInFlight covers H8: while a Wait is in flight the number stays
// taken although Close was called, so that no other file can get it.
func TestCloseInFlight(t *testing.T) {
	need(t)
	f := openHere(t)
	if err := f.Handshake(0); err != nil {
		t.Fatal(err)
	}
	wake, err := sys.NewEvent()
	if err != nil {
		t.Fatal(err)
	}
	defer wake.Close()
	tid, ended := make(chan int, 1), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid <- unix.Gettid()
		if ready, errno := f.Wait(wake.FD(), -1); ready || errno != 0 {
			t.Errorf("Wait = %v, %v", ready, errno)
		}
	}()
	awaitSyscall(t, <-tid, unix.SYS_PPOLL)
	for range 2 {
		if err := f.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	link := "/proc/self/fd/" + strconv.Itoa(f.Raw())
	if kind, err := os.Readlink(link); err != nil || !strings.Contains(kind, "userfaultfd") {
		t.Errorf("with a call in flight descriptor %d is %q, %v", f.Raw(), kind, err)
	}
	wantErrno(t, "WAKE", f.Wake(mem.MakeRange(0, mem.PageSize)), unix.EBADF)
	wake.Signal()
	<-ended
	if kind, err := os.Readlink(link); err == nil {
		t.Errorf("after the last call descriptor %d is still %q", f.Raw(), kind)
	}
}

// awaitSyscall waits until a thread of this process is in a system call.
func awaitSyscall(t *testing.T, tid, nr int) {
	t.Helper()
	var b []byte
	for end := time.Now().Add(budget); time.Now().Before(end); time.Sleep(time.Millisecond) {
		b, _ = os.ReadFile("/proc/self/task/" + strconv.Itoa(tid) + "/syscall")
		if strings.HasPrefix(string(b), strconv.Itoa(nr)+" ") {
			return
		}
	}
	t.Fatalf("thread %d is not in system call %d but: %s", tid, nr, b)
}

// TestCloseConcurrent is for the race detector: calls end with EBADF, and
// several may close.
func TestCloseConcurrent(t *testing.T) {
	need(t)
	for range 10 {
		f := openHere(t)
		if err := f.Handshake(0); err != nil {
			t.Fatal(err)
		}
		var started, all sync.WaitGroup
		for range 4 {
			started.Add(1)
			all.Go(func() {
				page := mem.MakeRange(0x1000, mem.PageSize)
				errno := f.Wake(page)
				started.Done()
				for errno == 0 {
					errno = f.Wake(page)
				}
				if errno != unix.EBADF {
					t.Errorf("WAKE: %v", errno)
				}
			})
		}
		started.Wait()
		for range 3 {
			all.Go(func() {
				if err := f.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
		}
		all.Wait()
		if kind, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(f.Raw())); strings.Contains(kind, "userfaultfd") {
			t.Fatalf("descriptor %d is still open", f.Raw())
		}
	}
}

func TestClosed(t *testing.T) {
	f := openHere(t)
	for range 2 {
		if err := f.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	r := mem.MakeRange(0x1000, mem.PageSize)
	wantErrno(t, "WAKE", f.Wake(r), unix.EBADF)
	_, errno := f.Read(make([]uapi.Msg, 1))
	wantErrno(t, "Read", errno, unix.EBADF)
	_, errno = f.Wait(-1, 0)
	wantErrno(t, "Wait", errno, unix.EBADF)
	if _, err := f.Info(); !errors.Is(err, unix.EBADF) {
		t.Errorf("Info: %v", err)
	}
	if err := f.Handshake(0); !errors.Is(err, unix.EBADF) {
		t.Errorf("Handshake: %v", err)
	}
	if err := f.SetNonblock(); !errors.Is(err, unix.EBADF) {
		t.Errorf("SetNonblock: %v", err)
	}
	if f.Changing() {
		t.Error("a closed descriptor says that the layout is changing")
	}
}

// TestTake checks that a descriptor from anywhere becomes close-on-exec.
func TestTake(t *testing.T) {
	f := openHere(t)
	raw, err := unix.Dup(f.Raw())
	if err != nil {
		t.Fatal(err)
	}
	taken := uffd.Take(raw)
	defer taken.Close()
	if flags, err := unix.FcntlInt(uintptr(taken.Raw()), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %v", flags, err)
	}
}
