// SPDX-License-Identifier: Apache-2.0

package uffd_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// budget is how long anything in a test may take before it counts as hung.
const budget = 5 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(targetEnv) != "" {
		targetMain()
	}
	// The runtime's poller has descriptors of its own from first use on.
	r, w, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	r.Close()
	w.Close()
	before := descriptors()
	status := m.Run()
	for fd, what := range descriptors() {
		if _, ok := before[fd]; !ok {
			fmt.Fprintf(os.Stderr, "leaked descriptor %s: %s\n", fd, what)
			status = 1
		}
	}
	os.Exit(status)
}

// descriptors maps the open descriptors of the process to what they are.
func descriptors() map[string]string {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(0)
	if err != nil {
		panic(err)
	}
	open := map[string]string{}
	for _, name := range names {
		if name == fmt.Sprint(dir.Fd()) {
			continue
		}
		open[name], _ = os.Readlink(filepath.Join("/proc/self/fd", name))
	}
	return open
}

// target is the test's side of a process that faults.
type target struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   *json.Encoder
	sock *net.UnixConn // the other end of targetSocket
	pipe *os.File      // the other end of targetPipe

	mu      sync.Mutex
	last    int                 // protected by mu
	waiting map[int]chan answer // protected by mu
}

// need skips the test where no unrestricted descriptor can be had.
func need(t *testing.T) {
	t.Helper()
	f, err := uffd.Open(uffd.Options{})
	if err != nil {
		testutil.Need(t, false, err.Error())
	}
	f.Close()
}

// needFeatures skips the test where the kernel lacks features.
func needFeatures(t *testing.T, want uapi.Features) {
	t.Helper()
	got, err := uffd.Probe()
	if err == nil {
		err = uffd.Missing(got.Features, want)
	}
	if err != nil {
		testutil.Need(t, false, err.Error())
	}
}

func newTarget(t *testing.T) *target {
	t.Helper()
	need(t)
	return newTargetAs(t, nil)
}

func newTargetAs(t *testing.T, attr *syscall.SysProcAttr) *target {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	ours.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), targetEnv+"=1")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs, w}
	cmd.SysProcAttr = attr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	tg := &target{t: t, cmd: cmd, in: json.NewEncoder(stdin), sock: conn.(*net.UnixConn), pipe: r,
		waiting: map[int]chan answer{}}
	ready := tg.expect(0)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	w.Close()
	var done sync.WaitGroup
	done.Go(func() { tg.receive(stdout) })
	t.Cleanup(func() {
		cmd.Process.Kill()
		done.Wait()
		cmd.Wait()
		conn.Close()
		r.Close()
	})
	tg.await(ready)
	return tg
}

func (tg *target) expect(id int) chan answer {
	tg.mu.Lock()
	defer tg.mu.Unlock()
	c := make(chan answer, 1)
	tg.waiting[id] = c
	return c
}

func (tg *target) receive(r io.Reader) {
	for dec := json.NewDecoder(r); ; {
		var a answer
		if dec.Decode(&a) != nil {
			return
		}
		tg.mu.Lock()
		c := tg.waiting[a.ID]
		delete(tg.waiting, a.ID)
		tg.mu.Unlock()
		if c != nil {
			c <- a
		}
	}
}

// start gives an order and returns where the answer will come.
func (tg *target) start(op string, args ...uint64) chan answer {
	tg.t.Helper()
	tg.mu.Lock()
	tg.last++
	id := tg.last
	tg.mu.Unlock()
	c := tg.expect(id)
	if err := tg.in.Encode(request{id, op, args}); err != nil {
		tg.t.Fatal(err)
	}
	return c
}

func (tg *target) await(c chan answer) answer {
	tg.t.Helper()
	select {
	case a := <-c:
		return a
	case <-time.After(budget):
		states, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", tg.cmd.Process.Pid))
		for _, s := range states {
			b, _ := os.ReadFile(s)
			tg.t.Logf("%s: %s", s, b)
		}
		tg.t.Fatal("the target does not answer")
		panic("unreachable")
	}
}

// call gives an order that must succeed and returns its result.
func (tg *target) call(op string, args ...uint64) uint64 {
	tg.t.Helper()
	a := tg.await(tg.start(op, args...))
	if a.Errno != 0 {
		tg.t.Fatalf("target: %s %#x: %v %s", op, args, a.Errno, a.Text)
	}
	return a.R
}

func (tg *target) syscall(nr int, args ...uint64) uint64 {
	tg.t.Helper()
	return tg.call("syscall", append([]uint64{uint64(nr)}, args...)...)
}

// mmap maps n pages of private anonymous memory in the target, with a page on
// each side that nothing is mapped to.
func (tg *target) mmap(n int) mem.Range {
	tg.t.Helper()
	size := uint64(n+2) * mem.PageSize
	at := tg.syscall(unix.SYS_MMAP, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE, ^uint64(0), 0)
	tg.munmap(mem.MakeRange(mem.Addr(at), mem.PageSize))
	tg.munmap(mem.MakeRange(mem.Addr(at+size-mem.PageSize), mem.PageSize))
	return mem.MakeRange(mem.Addr(at+mem.PageSize), uint64(n)*mem.PageSize)
}

func (tg *target) munmap(r mem.Range) {
	tg.t.Helper()
	tg.syscall(unix.SYS_MUNMAP, uint64(r.Start), r.Len())
}

// open makes a descriptor in the target and takes it by pidfd_getfd. It
// returns our FD and the target's number.
func (tg *target) open(features uapi.Features) (*uffd.FD, uint64) {
	tg.t.Helper()
	needFeatures(tg.t, features)
	raw := tg.call("open", 1)
	f, err := uffd.FromProcess(tg.cmd.Process.Pid, int(raw))
	if err != nil {
		tg.t.Fatal(err)
	}
	tg.t.Cleanup(func() { f.Close() })
	if err := f.Handshake(features); err != nil {
		tg.t.Fatal(err)
	}
	return f, raw
}

// touch starts a write of n bytes at addr to the pipe: it faults if they are
// missing, and see returns them.
func (tg *target) touch(addr mem.Addr, n int) chan answer {
	tg.t.Helper()
	return tg.start("syscall", unix.SYS_WRITE, targetPipe, uint64(addr), uint64(n))
}

// store starts a write of one byte of zero at addr in the target.
func (tg *target) store(addr mem.Addr) chan answer {
	tg.t.Helper()
	// getrandom(2) writes to user memory and needs no file.
	return tg.start("syscall", unix.SYS_GETRANDOM, uint64(addr), 1, 0)
}

// see waits for a touch and returns what the thread saw.
func (tg *target) see(c chan answer, n int) []byte {
	tg.t.Helper()
	if a := tg.await(c); a.Errno != 0 || a.R != uint64(n) {
		tg.t.Fatalf("touch: %d bytes, errno %v", a.R, a.Errno)
	}
	return tg.output(n)
}

func (tg *target) output(n int) []byte {
	tg.t.Helper()
	tg.pipe.SetReadDeadline(time.Now().Add(budget))
	b := make([]byte, n)
	if _, err := io.ReadFull(tg.pipe, b); err != nil {
		tg.t.Fatal(err)
	}
	return b
}

// next returns the next message of f.
func next(t *testing.T, f *uffd.FD) uapi.Event {
	t.Helper()
	ready, errno := f.Wait(-1, budget)
	if errno != 0 || !ready {
		t.Fatalf("Wait = %v, %v", ready, errno)
	}
	var msgs [1]uapi.Msg
	if n, errno := f.Read(msgs[:]); n != 1 || errno != 0 {
		t.Fatalf("Read = %d, %v", n, errno)
	}
	return msgs[0].Typed()
}

// wantFault checks that the next message is a fault at addr.
func wantFault(t *testing.T, f *uffd.FD, addr mem.Addr, flags uapi.FaultFlags) {
	t.Helper()
	if got := next(t, f); got != (uapi.PageFault{Addr: addr, Flags: flags}) {
		t.Fatalf("message %v, want a fault at %v with flags %v", got, addr, flags)
	}
}

func wantErrno(t *testing.T, what string, got, want syscall.Errno) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
}

// result is what a fill returns.
type result struct {
	done  int
	errno syscall.Errno
}

func did(done int, errno syscall.Errno) result { return result{done, errno} }

func (r result) String() string { return fmt.Sprintf("%d bytes, errno %d", r.done, int(r.errno)) }

func wantDone(t *testing.T, what string, got, want result) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
}

func mustRegister(t *testing.T, f *uffd.FD, r mem.Range, mode uapi.RegisterMode) uapi.Ioctls {
	t.Helper()
	ioctls, errno := f.Register(r, mode)
	wantErrno(t, "Register", errno, 0)
	return ioctls
}

// pattern is n pages of bytes that depend on seed and place.
func pattern(seed byte, n int) []byte {
	b := make([]byte, n*mem.PageSize)
	for i := range b {
		b[i] = seed + byte(i) + byte(i>>8)*7
	}
	return b
}

func page(r mem.Range, i int) mem.Range {
	return mem.MakeRange(r.Start+mem.Addr(i*mem.PageSize), mem.PageSize)
}

func pages(r mem.Range, from, to int) mem.Range {
	return mem.Range{Start: page(r, from).Start, End: page(r, to).Start}
}

// awaitPending waits until n faults are queued.
func awaitPending(t *testing.T, f *uffd.FD, n uint64) {
	t.Helper()
	for end := time.Now().Add(budget); ; time.Sleep(time.Millisecond) {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Pending == n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("Info = %+v, want %d pending", info, n)
		}
	}
}

func threadPath(tg *target, tid uint32) string {
	return fmt.Sprintf("/proc/%d/task/%d", tg.cmd.Process.Pid, tid)
}
