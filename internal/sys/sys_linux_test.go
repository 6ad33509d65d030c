// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/uffd/uapi"
)

func TestMain(m *testing.M) {
	before := countOpen()
	status := m.Run()
	if now := countOpen(); now != before {
		println("descriptors before and after:", before, now)
		status = 1
	}
	os.Exit(status)
}

func countOpen() int {
	names, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		panic(err)
	}
	n := 0
	for _, name := range names {
		kind, _ := os.Readlink(name)
		// The runtime's poller comes with the first file that can be polled,
		// and the directory itself is open while it is listed.
		if kind != "" && kind != "anon_inode:[eventpoll]" && kind != "anon_inode:[eventfd]" {
			n++
		}
	}
	return n
}

// TestNumber holds uapi's number of the system call to that of this machine.
func TestNumber(t *testing.T) {
	want := map[string]int{"amd64": uapi.SYS_USERFAULTFD_AMD64, "arm64": uapi.SYS_USERFAULTFD_ARM64}[runtime.GOARCH]
	if unix.SYS_USERFAULTFD != want {
		t.Errorf("userfaultfd is system call %d, want %d", unix.SYS_USERFAULTFD, want)
	}
}

func openNull(t *testing.T) int {
	t.Helper()
	fd, err := OpenReadOnly("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// TestDescLastUse covers H8 step by step: the number is not free while a call
// that began before Close is in flight, and is thereafter.
func TestDescLastUse(t *testing.T) {
	d := MakeDesc(openNull(t))
	first, ok := d.Acquire()
	second, ok2 := d.Acquire()
	if !ok || !ok2 || first != d.Raw() || second != d.Raw() {
		t.Fatalf("Acquire = %d %v, %d %v", first, ok, second, ok2)
	}
	for range 2 {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if raw, ok := d.Acquire(); ok || raw != -1 || !d.Closed() {
		t.Errorf("Acquire after Close = %d, %v", raw, ok)
	}
	d.Release()
	if !isOpen(first) {
		t.Fatal("closed under the second call")
	}
	d.Release()
	if isOpen(first) {
		t.Fatal("still open after the last call")
	}
	// The number may now be anybody's: a late Close must leave it alone.
	other := openNull(t)
	defer CloseRaw(other)
	if other != first {
		t.Fatalf("number %d was not free: got %d", first, other)
	}
	if err := d.Close(); err != nil || !isOpen(other) {
		t.Errorf("late Close: %v; somebody's file is open: %v", err, isOpen(other))
	}
}

// TestDescConcurrent is for the race detector: many calls and closes.
func TestDescConcurrent(t *testing.T) {
	for range 200 {
		d := MakeDesc(openNull(t))
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					raw, ok := d.Acquire()
					if !ok {
						return
					}
					if !isOpen(raw) {
						t.Error("closed under a call")
					}
					d.Release()
				}
			})
		}
		for range 2 {
			wg.Go(func() {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if isOpen(d.Raw()) {
			t.Fatal("still open")
		}
	}
}

// TestEvent checks that a signal lasts until it is drained and that nothing
// happens after Close.
func TestEvent(t *testing.T) {
	e, err := NewEvent()
	if err != nil {
		t.Fatal(err)
	}
	if e.Drain() {
		t.Error("a new event is signalled")
	}
	e.Signal()
	e.Signal()
	if revents, errno := Poll(e.FD(), -1, 0); revents != PollIn || errno != 0 {
		t.Errorf("Poll = %#x, %v", revents, errno)
	}
	if !e.Drain() || e.Drain() {
		t.Error("two signals are not drained at once")
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	e.Signal()
	if e.Drain() || e.Close() != nil {
		t.Error("a closed event does something")
	}
}

// TestPollSignals checks that signals do not cut a wait short, nor restart
// its time. The signal that arrives is the one that the Go runtime uses.
func TestPollSignals(t *testing.T) {
	const timeout = 50 * time.Millisecond
	tid := make(chan int)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		to := <-tid
		for {
			select {
			case <-stop:
				return
			default:
				unix.Tgkill(os.Getpid(), to, unix.SIGURG)
			}
		}
	})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid <- unix.Gettid()
	begin := time.Now()
	revents, errno := Poll(-1, -1, timeout)
	took := time.Since(begin)
	close(stop)
	wg.Wait()
	if revents != 0 || errno != 0 || took < timeout || took > 100*timeout {
		t.Errorf("Poll = %#x, %v after %v, want nothing after %v", revents, errno, took, timeout)
	}
}

// TestRead checks the count of items, of both kinds of read.
func TestRead(t *testing.T) {
	for name, read := range map[string]func(int, []uint64) (int, syscall.Errno){
		"read": RawRead[uint64], "preadv2": RawReadNowait[uint64],
	} {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		items := make([]uint64, 4)
		if _, err := unix.Write(p[1], []byte{1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
		n, errno := read(p[0], items)
		if n != 2 || errno != 0 || items[0] != 1 || items[1] != 2 {
			t.Errorf("%s = %d, %v, %v", name, n, errno, items)
		}
		if name == "preadv2" {
			if n, errno := read(p[0], items); n != 0 || errno != unix.EAGAIN {
				t.Errorf("%s of nothing = %d, %v, want EAGAIN", name, n, errno)
			}
		}
		CloseAll(p[:])
		if n, errno := read(p[0], items); n != 0 || errno != unix.EBADF {
			t.Errorf("%s of a closed file = %d, %v", name, n, errno)
		}
	}
}

// TestAddress checks that the memory stays where it was while stacks move.
func TestAddress(t *testing.T) {
	var local [64]byte
	at := Address(local[:])
	grow(1000)
	if again := Address(local[:]); again != at {
		t.Errorf("memory moved from %#x to %#x", at, again)
	}
}

// grow makes the stack larger, which moves it.
func grow(n int) byte {
	var pad [512]byte
	if n == 0 {
		return pad[n]
	}
	pad[n%len(pad)] = grow(n - 1)
	return pad[n%7]
}

func TestFDs(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer CloseAll(pair[:])
	null := openNull(t)
	defer CloseRaw(null)
	many := make([]int, maxRights)
	for i := range many {
		many[i] = null
	}
	for _, fds := range [][]int{nil, {null}, {null, null, null}, many} {
		if n, err := SendFDs(pair[0], []byte("abc"), fds...); n != 3 || err != nil {
			t.Fatalf("SendFDs of %d = %d, %v", len(fds), n, err)
		}
		b := make([]byte, 10)
		n, got, err := RecvFDs(pair[1], b)
		if n != 3 || err != nil || len(got) != len(fds) {
			t.Fatalf("RecvFDs = %d, %d descriptors, %v, want 3, %d", n, len(got), err, len(fds))
		}
		for _, fd := range got {
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("descriptor %d: flags %#x, %v", fd, flags, err)
			}
			if kind, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)); kind != "/dev/null" {
				t.Errorf("descriptor %d is %s", fd, kind)
			}
		}
		CloseAll(got)
	}
	if err := SetNonblock(pair[1]); err != nil {
		t.Fatal(err)
	}
	if nonblock, err := Nonblocking(pair[1]); !nonblock || err != nil {
		t.Errorf("Nonblocking = %v, %v", nonblock, err)
	}
	if _, _, err := RecvFDs(pair[1], make([]byte, 1)); !Again(err) || Errno(err) != unix.EAGAIN {
		t.Errorf("RecvFDs of nothing: %v, want EAGAIN", err)
	}
	if Again(nil) || Errno(nil) != 0 {
		t.Error("no error has an errno")
	}
}

// TestSameFile: a duplicate is the same file, and a second one of the same name
// is not.
func TestSameFile(t *testing.T) {
	a, b := openNull(t), openNull(t)
	defer CloseAll([]int{a, b})
	c, err := unix.FcntlInt(uintptr(a), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer CloseRaw(c)
	pid := os.Getpid()
	for fd, want := range map[int]bool{a: true, b: false, c: true} {
		if same, err := SameFile(pid, a, pid, fd); err != nil || same != want {
			t.Errorf("%d and %d: %v, %v; want %v", a, fd, same, err, want)
		}
	}
	if same, err := SameFile(pid, a, pid, 1<<20); err == nil || same {
		t.Errorf("a descriptor that is closed: %v, %v", same, err)
	}
	if same, err := SameFiles(pid, unix.Gettid()); err != nil || !same {
		t.Errorf("two threads: %v, %v", same, err)
	}
	if same, err := SameFiles(pid, os.Getppid()); same {
		t.Errorf("our parent: %v, %v", same, err)
	}
}
