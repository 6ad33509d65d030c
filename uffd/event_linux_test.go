// SPDX-License-Identifier: Apache-2.0

package uffd_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd"
	"github.com/faultline-go/faultline/uffd/uapi"
)

const layoutEvents = uapi.UFFD_FEATURE_EVENT_REMAP | uapi.UFFD_FEATURE_EVENT_REMOVE | uapi.UFFD_FEATURE_EVENT_UNMAP

// pendingEvent waits until an event is queued and checks H2 while it is: the
// fills fail with EAGAIN, REGISTER and WAKE do not (B.13). It then reads it.
func pendingEvent(t *testing.T, f *uffd.FD, r, elsewhere mem.Range) uapi.Event {
	t.Helper()
	if ready, errno := f.Wait(-1, budget); !ready || errno != 0 {
		t.Fatalf("Wait = %v, %v", ready, errno)
	}
	if !f.Changing() {
		t.Error("an event is queued, and Changing says no")
	}
	done, errno := f.Copy(elsewhere.Start, pattern(1, 1), 0)
	wantDone(t, "COPY with an event outstanding", result{done, errno}, result{0, unix.EAGAIN})
	if err := uffd.Check("UFFDIO_COPY", elsewhere, done, errno); !errors.Is(err, uffd.ErrAgain) {
		t.Errorf("%v does not match ErrAgain", err)
	}
	wantDone(t, "ZEROPAGE with an event outstanding", did(f.Zeropage(elsewhere, 0)), result{0, unix.EAGAIN})
	wantErrno(t, "WRITEPROTECT with an event outstanding", f.WriteProtect(elsewhere, 0), unix.EAGAIN)
	wantErrno(t, "WAKE with an event outstanding", f.Wake(r), 0)
	mustRegister(t, f, elsewhere, missing)
	return next(t, f)
}

// settle waits until the thread that raised an event has gone on.
func settle(t *testing.T, tg *target, f *uffd.FD, c chan answer) uint64 {
	t.Helper()
	a := tg.await(c)
	if a.Errno != 0 {
		t.Fatalf("target: %v", a.Errno)
	}
	if f.Changing() {
		t.Error("the operation is over, and Changing says yes")
	}
	return a.R
}

// TestLayoutEvents covers REMOVE, REMAP and UNMAP as typed values (B.13,
// C.28), EAGAIN while one is outstanding (H2), and that Changing has no side
// effect on the memory.
func TestLayoutEvents(t *testing.T) {
	tg := newTarget(t)
	f, _ := tg.open(layoutEvents)
	r, elsewhere := tg.mmap(4), tg.mmap(1)
	mustRegister(t, f, r, missing)
	mustRegister(t, f, elsewhere, missing)
	if f.Changing() {
		t.Error("nothing has happened, and Changing says yes")
	}
	want := pattern(2, 4)
	wantDone(t, "COPY", did(f.Copy(r.Start, want, 0)), result{len(want), 0})

	hole := pages(r, 1, 3)
	c := tg.start("syscall", unix.SYS_MADVISE, uint64(hole.Start), hole.Len(), unix.MADV_DONTNEED)
	if got := pendingEvent(t, f, r, elsewhere); got != (uapi.Remove{Range: hole}) {
		t.Errorf("message %v, want REMOVE of %v", got, hole)
	}
	settle(t, tg, f, c)

	const mayMove = unix.MREMAP_MAYMOVE | unix.MREMAP_FIXED
	room := tg.mmap(4)
	c = tg.start("syscall", unix.SYS_MREMAP, uint64(r.Start), r.Len(), r.Len(), mayMove, uint64(room.Start))
	if got := pendingEvent(t, f, r, elsewhere); got != (uapi.Remap{From: r.Start, To: room.Start, Len: r.Len()}) {
		t.Errorf("message %v, want REMAP of %v to %v", got, r, room.Start)
	}
	// With both features a move ends with an UNMAP of the place it left.
	if got := next(t, f); got != (uapi.Unmap{Range: r}) {
		t.Errorf("message %v, want UNMAP of %v", got, r)
	}
	settle(t, tg, f, c)
	if got := tg.see(tg.touch(room.Start, mem.PageSize), mem.PageSize); !bytes.Equal(got, want[:mem.PageSize]) {
		t.Error("the moved page has other bytes")
	}

	tail := pages(room, 2, 4)
	c = tg.start("syscall", unix.SYS_MUNMAP, uint64(tail.Start), tail.Len())
	if got := pendingEvent(t, f, room, elsewhere); got != (uapi.Unmap{Range: tail}) {
		t.Errorf("message %v, want UNMAP of %v", got, tail)
	}
	settle(t, tg, f, c)
	wantDone(t, "COPY to what is unmapped", did(f.Copy(tail.Start, want[:mem.PageSize], 0)), result{0, unix.ENOENT})
	wantDone(t, "COPY elsewhere, untouched so far", did(f.Copy(elsewhere.Start, want[:mem.PageSize], 0)),
		result{mem.PageSize, 0})
}

// TestFaultsBeforeEvents covers C.9 and H5: a batch has its faults first, so
// an UNMAP that happened earlier stands behind them.
func TestFaultsBeforeEvents(t *testing.T) {
	tg := newTarget(t)
	f, _ := tg.open(layoutEvents)
	r := tg.mmap(4)
	mustRegister(t, f, r, missing)
	removed := tg.start("syscall", unix.SYS_MADVISE, uint64(r.Start), mem.PageSize, unix.MADV_DONTNEED)
	if ready, errno := f.Wait(-1, budget); !ready || errno != 0 {
		t.Fatalf("Wait = %v, %v", ready, errno)
	}
	touched := tg.touch(page(r, 3).Start, mem.PageSize)
	awaitPending(t, f, 1)
	var msgs [8]uapi.Msg
	n, errno := f.Read(msgs[:])
	if n != 2 || errno != 0 || msgs[0].Event != uapi.UFFD_EVENT_PAGEFAULT || msgs[1].Event != uapi.UFFD_EVENT_REMOVE {
		t.Fatalf("Read = %d, %v, %v, want a fault and a REMOVE", n, errno, msgs[:2])
	}
	if got, want := msgs[1].Range(), page(r, 0); got != want {
		t.Errorf("REMOVE of %v, want %v", got, want)
	}
	tg.await(removed)
	wantDone(t, "ZEROPAGE", did(f.Zeropage(page(r, 3), 0)), result{mem.PageSize, 0})
	tg.see(touched, mem.PageSize)
}

// TestFork covers C.25, C.27, H14: the message brings a descriptor that
// drives the child, and is kept if there is no number free for it.
func TestFork(t *testing.T) {
	tg := newTarget(t)
	f, _ := tg.open(uapi.UFFD_FEATURE_EVENT_FORK)
	r, elsewhere := tg.mmap(2), tg.mmap(1)
	mustRegister(t, f, r, missing)
	mustRegister(t, f, elsewhere, missing)
	c := tg.start("fork", uint64(r.Start), mem.PageSize)
	if ready, errno := f.Wait(-1, budget); !ready || errno != 0 {
		t.Fatalf("Wait = %v, %v", ready, errno)
	}
	if !f.Changing() {
		t.Error("a fork is outstanding, and Changing says no")
	}
	withoutDescriptors(t, func() {
		var msgs [1]uapi.Msg
		n, errno := f.Read(msgs[:])
		wantDone(t, "Read with no number free", result{n, errno}, result{0, unix.EMFILE})
	})
	ev, ok := next(t, f).(uapi.Fork)
	if !ok {
		t.Fatalf("message %v, want FORK", ev)
	}
	child := uffd.Take(int(ev.FD))
	defer child.Close()
	pid := int(settle(t, tg, f, c))

	info, err := child.Info()
	if err != nil || !info.Initialized || info.Features != uapi.UFFD_FEATURE_EVENT_FORK {
		t.Errorf("Info of the child's descriptor = %+v, %v", info, err)
	}
	_, errno := child.API(uapi.UFFD_API, 0)
	wantErrno(t, "handshake on the child's descriptor", errno, unix.EINVAL)
	if flags, err := unix.FcntlInt(uintptr(child.Raw()), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the child's descriptor is not close-on-exec: %#x, %v", flags, err)
	}
	wantFault(t, child, r.Start, 0)
	want := pattern(9, 1)
	wantDone(t, "COPY into the child", did(child.Copy(r.Start, want, 0)), result{mem.PageSize, 0})
	if !bytes.Equal(tg.output(mem.PageSize), want) {
		t.Error("the child saw other bytes")
	}
	if a := tg.await(tg.start("syscall", unix.SYS_WAIT4, uint64(pid), 0, 0, 0)); a.Errno != 0 {
		t.Errorf("wait for the child: %v", a.Errno)
	}
	wantDone(t, "COPY into the dead child", did(child.Copy(page(r, 1).Start, want, 0)), result{0, unix.ESRCH})
	wantDone(t, "COPY into the parent", did(f.Copy(r.Start, want, 0)), result{mem.PageSize, 0})
}

// withoutDescriptors runs do while this process can open nothing.
func withoutDescriptors(t *testing.T, do func()) {
	t.Helper()
	probe, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	lowest := probe.Fd()
	probe.Close()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	tight := unix.Rlimit{Cur: uint64(lowest), Max: old.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &tight); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
	}()
	do()
}

// TestThreadID checks the last word of a fault message.
func TestThreadID(t *testing.T) {
	tg := newTarget(t)
	f, _ := tg.open(uapi.UFFD_FEATURE_THREAD_ID | uapi.UFFD_FEATURE_EXACT_ADDRESS)
	r := tg.mmap(1)
	mustRegister(t, f, r, missing)
	c := tg.touch(r.Start+100, 8)
	ev, ok := next(t, f).(uapi.PageFault)
	if !ok || ev.Addr != r.Start+100 || ev.TID == 0 {
		t.Fatalf("message %v, want a fault at %v with a thread", ev, r.Start+100)
	}
	if _, err := os.Stat(threadPath(tg, ev.TID)); err != nil {
		t.Errorf("thread %d is not the target's: %v", ev.TID, err)
	}
	wantDone(t, "ZEROPAGE", did(f.Zeropage(r, 0)), result{mem.PageSize, 0})
	tg.see(c, 8)
}
