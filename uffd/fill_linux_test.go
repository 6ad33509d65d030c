// SPDX-License-Identifier: Apache-2.0

package uffd_test

import (
	"bytes"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd"
	"github.com/faultline-go/faultline/uffd/uapi"
)

const missing = uapi.UFFDIO_REGISTER_MODE_MISSING

// TestCopy serves a fault in another process, and pins the result words of
// COPY (B.10; C.12, C.13, C.14, C.15; H3, H4).
func TestCopy(t *testing.T) {
	tg := newTarget(t)
	f, _ := tg.open(0)
	r := tg.mmap(8)
	if got := mustRegister(t, f, r, missing); got != 0x13c {
		t.Errorf("ioctls of anonymous memory = %v, want 0x13c", got)
	}

	// An ordinary fault. The source need not be aligned.
	want := pattern(1, 1)
	c := tg.touch(page(r, 0).Start, mem.PageSize)
	wantFault(t, f, page(r, 0).Start, 0)
	unaligned := append([]byte{0}, want...)[1:]
	wantDone(t, "COPY", did(f.Copy(page(r, 0).Start, unaligned, 0)), result{mem.PageSize, 0})
	if !bytes.Equal(tg.see(c, mem.PageSize), want) {
		t.Error("the thread saw other bytes")
	}

	// C.13, H3, H4.
	three := pattern(2, 3)
	wantDone(t, "COPY of a present page", did(f.Copy(page(r, 0).Start, want, 0)), result{0, unix.EEXIST})
	wantDone(t, "COPY of page 3", did(f.Copy(page(r, 3).Start, want, 0)), result{mem.PageSize, 0})
	wantDone(t, "COPY over a present page", did(f.Copy(page(r, 2).Start, three, 0)), result{mem.PageSize, unix.EAGAIN})
	wantDone(t, "its continuation", did(f.Copy(page(r, 3).Start, three[mem.PageSize:], 0)), result{0, unix.EEXIST})

	// C.15.
	wantDone(t, "COPY past the mapping", did(f.Copy(page(r, 7).Start, want, 0)), result{mem.PageSize, 0})
	wantDone(t, "COPY past the mapping", did(f.Copy(page(r, 6).Start, three, 0)), result{0, unix.ENOENT})
	wantDone(t, "COPY where nothing is", did(f.Copy(r.End, want, 0)), result{0, unix.ENOENT})

	// B.6, B.10: what leaves the result word alone.
	wantDone(t, "COPY of nothing", did(f.Copy(r.Start, nil, 0)), result{0, unix.EINVAL})
	wantDone(t, "COPY to an odd address", did(f.Copy(r.Start+1, want, 0)), result{0, unix.EINVAL})
	wantDone(t, "COPY with an unknown mode", did(f.Copy(page(r, 5).Start, want, 1<<7)), result{0, unix.EINVAL})
	wantDone(t, "COPY protected without registration", did(f.Copy(page(r, 5).Start, want, uapi.UFFDIO_COPY_MODE_WP)),
		result{0, unix.EINVAL})
}

// TestExistLeavesAsleep shows H3: a page that is there already does not end
// the wait of a thread whose wake-up was withheld. WAKE does.
func TestExistLeavesAsleep(t *testing.T) {
	tg := newTarget(t)
	f, _ := tg.open(0)
	r := tg.mmap(1)
	mustRegister(t, f, r, missing)
	want := pattern(3, 1)
	c := tg.touch(r.Start, mem.PageSize)
	wantFault(t, f, r.Start, 0)
	wantDone(t, "COPY without waking", did(f.Copy(r.Start, want, uapi.UFFDIO_COPY_MODE_DONTWAKE)), result{mem.PageSize, 0})
	done, errno := f.Copy(r.Start, want, 0)
	wantDone(t, "COPY again", result{done, errno}, result{0, unix.EEXIST})
	if o := uffd.OutcomeOf(errno); o != uffd.Raced {
		t.Errorf("EEXIST is %v, want raced", o)
	}
	info, err := f.Info()
	if err != nil || info.Total != 1 || info.Pending != 0 {
		t.Fatalf("Info = %+v, %v, want one thread asleep", info, err)
	}
	wantErrno(t, "WAKE", f.Wake(r), 0)
	if !bytes.Equal(tg.see(c, mem.PageSize), want) {
		t.Error("the thread saw other bytes")
	}
}

// TestZeropage covers C.33: the page is writable although its range is
// registered for write protection.
func TestZeropage(t *testing.T) {
	needFeatures(t, uapi.UFFD_FEATURE_PAGEFAULT_FLAG_WP)
	tg := newTarget(t)
	f, _ := tg.open(0)
	r := tg.mmap(2)
	mustRegister(t, f, r, missing|uapi.UFFDIO_REGISTER_MODE_WP)
	c := tg.touch(r.Start, mem.PageSize)
	wantFault(t, f, r.Start, 0)
	wantDone(t, "ZEROPAGE", did(f.Zeropage(r, 0)), result{2 * mem.PageSize, 0})
	if !bytes.Equal(tg.see(c, mem.PageSize), make([]byte, mem.PageSize)) {
		t.Error("the thread saw other bytes")
	}
	if a := tg.await(tg.store(r.Start)); a.Errno != 0 {
		t.Errorf("store: %v", a.Errno)
	}
	wantDone(t, "ZEROPAGE of a present page", did(f.Zeropage(page(r, 0), uapi.UFFDIO_ZEROPAGE_MODE_DONTWAKE)),
		result{0, unix.EEXIST})
	wantDone(t, "ZEROPAGE with an unknown mode", did(f.Zeropage(r, 2)), result{0, unix.EINVAL})
}

// TestWriteProtect covers installing and protecting in one step (H16), the
// message of a protected page, and lifting.
func TestWriteProtect(t *testing.T) {
	needFeatures(t, uapi.UFFD_FEATURE_PAGEFAULT_FLAG_WP)
	tg := newTarget(t)
	f, _ := tg.open(uapi.UFFD_FEATURE_PAGEFAULT_FLAG_WP)
	r := tg.mmap(2)
	if got := mustRegister(t, f, r, missing|uapi.UFFDIO_REGISTER_MODE_WP); got != 0x17c {
		t.Errorf("ioctls = %v, want 0x17c", got)
	}
	wantDone(t, "COPY protected", did(f.Copy(r.Start, pattern(4, 1), uapi.UFFDIO_COPY_MODE_WP)), result{mem.PageSize, 0})
	c := tg.store(r.Start)
	wantFault(t, f, r.Start, uapi.UFFD_PAGEFAULT_FLAG_WRITE|uapi.UFFD_PAGEFAULT_FLAG_WP)
	wantErrno(t, "lift", f.WriteProtect(page(r, 0), 0), 0)
	if a := tg.await(c); a.Errno != 0 || a.R != 1 {
		t.Errorf("store = %d, %v", a.R, a.Errno)
	}
	wantErrno(t, "protect again", f.WriteProtect(page(r, 0), uapi.UFFDIO_WRITEPROTECT_MODE_WP), 0)
	c = tg.store(r.Start)
	wantFault(t, f, r.Start, uapi.UFFD_PAGEFAULT_FLAG_WRITE|uapi.UFFD_PAGEFAULT_FLAG_WP)
	wantErrno(t, "lift without waking", f.WriteProtect(page(r, 0), uapi.UFFDIO_WRITEPROTECT_MODE_DONTWAKE), 0)
	wantErrno(t, "WAKE", f.Wake(page(r, 0)), 0)
	tg.await(c)
	wantErrno(t, "both modes", f.WriteProtect(r, uapi.UFFDIO_WRITEPROTECT_MODE_WP|uapi.UFFDIO_WRITEPROTECT_MODE_DONTWAKE),
		unix.EINVAL)
	wantErrno(t, "no mapping", f.WriteProtect(mem.MakeRange(r.End, mem.PageSize), 0), unix.ENOENT)
}

// TestContinue maps a page of the page cache (B.10).
func TestContinue(t *testing.T) {
	needFeatures(t, uapi.UFFD_FEATURE_MINOR_SHMEM)
	tg := newTarget(t)
	f, _ := tg.open(uapi.UFFD_FEATURE_MINOR_SHMEM)
	file := tg.call("memfd", 4*mem.PageSize)
	shared := func() mem.Range {
		at := tg.syscall(unix.SYS_MMAP, 0, 4*mem.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED, file, 0)
		return mem.MakeRange(mem.Addr(at), 4*mem.PageSize)
	}
	served, alias := shared(), shared()
	if got := mustRegister(t, f, served, uapi.UFFDIO_REGISTER_MODE_MINOR); got != 0x1bc {
		t.Errorf("ioctls = %v, want 0x1bc", got)
	}
	tg.syscall(unix.SYS_GETRANDOM, uint64(alias.Start), mem.PageSize, 0) // a page in the cache
	want := tg.see(tg.touch(alias.Start, mem.PageSize), mem.PageSize)
	c := tg.touch(served.Start, mem.PageSize)
	wantFault(t, f, served.Start, uapi.UFFD_PAGEFAULT_FLAG_MINOR)
	wantDone(t, "CONTINUE", did(f.Continue(pages(served, 0, 2), 0)), result{mem.PageSize, unix.EAGAIN})
	wantDone(t, "CONTINUE without a page", did(f.Continue(page(served, 1), 0)), result{0, unix.EFAULT})
	wantDone(t, "CONTINUE again", did(f.Continue(page(served, 0), 0)), result{0, unix.EEXIST})
	if !bytes.Equal(tg.see(c, mem.PageSize), want) {
		t.Error("the thread saw other bytes")
	}
	anon := tg.mmap(1)
	mustRegister(t, f, anon, missing)
	wantDone(t, "CONTINUE of anonymous memory", did(f.Continue(anon, 0)), result{0, unix.EINVAL})
	_, errno := f.Register(tg.mmap(1), uapi.UFFDIO_REGISTER_MODE_MINOR)
	wantErrno(t, "minor faults of anonymous memory", errno, unix.EINVAL)
}

// TestPoison covers B.10 and C.32: the waiting thread is woken and sees the
// error, and what would hide the poison is refused.
func TestPoison(t *testing.T) {
	needFeatures(t, uapi.UFFD_FEATURE_POISON)
	tg := newTarget(t)
	f, _ := tg.open(0)
	r := tg.mmap(2)
	mustRegister(t, f, r, missing)
	c := tg.touch(r.Start, mem.PageSize)
	wantFault(t, f, r.Start, 0)
	wantDone(t, "POISON", did(f.Poison(r, 0)), result{2 * mem.PageSize, 0})
	if a := tg.await(c); a.Errno != unix.EFAULT {
		t.Errorf("the thread saw %d bytes, %v, want EFAULT", a.R, a.Errno)
	}
	wantDone(t, "POISON again", did(f.Poison(page(r, 0), uapi.UFFDIO_POISON_MODE_DONTWAKE)), result{0, unix.EEXIST})
	wantDone(t, "ZEROPAGE", did(f.Zeropage(page(r, 0), 0)), result{0, unix.EEXIST})
}

// TestMove covers the extra rules of MOVE (B.10), done by the process itself
// and refused to us (C.29).
func TestMove(t *testing.T) {
	needFeatures(t, uapi.UFFD_FEATURE_MOVE)
	tg := newTarget(t)
	f, raw := tg.open(0)
	r, window := tg.mmap(4), tg.mmap(4)
	mustRegister(t, f, r, missing)
	mustRegister(t, f, window, missing)
	want := pattern(5, 2)
	wantDone(t, "COPY", did(f.Copy(r.Start, want, 0)), result{len(want), 0})

	move := func(dst, src mem.Range, mode uapi.MoveMode) result {
		t.Helper()
		a := tg.await(tg.start("move", raw, uint64(dst.Start), uint64(src.Start), src.Len(), uint64(mode)))
		return result{int(a.R), a.Errno}
	}
	wantDone(t, "MOVE from outside", did(f.Move(window.Start, r.Start, mem.PageSize, 0)), result{0, unix.EINVAL})
	wantDone(t, "MOVE", move(window, page(r, 0), 0), result{mem.PageSize, 0})
	wantDone(t, "MOVE of a hole", move(page(window, 1), page(r, 0), 0), result{0, unix.ENOENT})
	wantDone(t, "MOVE to a present page", move(window, page(r, 1), 0), result{0, unix.EEXIST})
	wantDone(t, "MOVE up to a hole", move(page(window, 1), pages(r, 1, 3), 0), result{mem.PageSize, unix.EAGAIN})
	wantDone(t, "MOVE with holes", move(pages(r, 0, 4), window, uapi.UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES),
		result{4 * mem.PageSize, 0})
	if !bytes.Equal(tg.see(tg.touch(r.Start, len(want)), len(want)), want) {
		t.Error("the pages came back with other bytes")
	}
	c := tg.touch(window.Start, mem.PageSize)
	wantFault(t, f, window.Start, 0)
	wantDone(t, "ZEROPAGE", did(f.Zeropage(page(window, 0), 0)), result{mem.PageSize, 0})
	tg.see(c, mem.PageSize)
}

// TestCopyFromMissing covers C.35 and H9: a source that is itself missing
// raises a fault of its own, which another thread can serve.
func TestCopyFromMissing(t *testing.T) {
	tg := newTarget(t)
	f, raw := tg.open(0)
	r := tg.mmap(2)
	mustRegister(t, f, r, missing)
	dst, src := page(r, 0), page(r, 1)
	c := tg.start("copy", raw, uint64(dst.Start), uint64(src.Start), mem.PageSize)
	wantFault(t, f, src.Start, 0)
	want := pattern(6, 1)
	wantDone(t, "COPY", did(f.Copy(src.Start, want, 0)), result{mem.PageSize, 0})
	if a := tg.await(c); a.Errno != 0 || a.R != mem.PageSize {
		t.Fatalf("COPY in the target: %d, %v", int64(a.R), a.Errno)
	}
	if !bytes.Equal(tg.see(tg.touch(dst.Start, mem.PageSize), mem.PageSize), want) {
		t.Error("the page has other bytes")
	}
}

// TestOtherDescriptor covers C.20: a fill works through any descriptor of the
// address space, but wakes only its own waiters.
func TestOtherDescriptor(t *testing.T) {
	tg := newTarget(t)
	owner, _ := tg.open(0)
	other, _ := tg.open(0)
	r := tg.mmap(1)
	mustRegister(t, owner, r, missing)
	_, errno := other.Register(r, missing)
	wantErrno(t, "REGISTER of another's range", errno, unix.EBUSY)
	wantErrno(t, "UNREGISTER of another's range", other.Unregister(r), unix.EINVAL)
	c := tg.touch(r.Start, mem.PageSize)
	wantFault(t, owner, r.Start, 0)
	wantDone(t, "COPY through the other", did(other.Copy(r.Start, pattern(7, 1), 0)), result{mem.PageSize, 0})
	if info, err := owner.Info(); err != nil || info.Total != 1 {
		t.Fatalf("Info = %+v, %v, want one thread asleep", info, err)
	}
	wantErrno(t, "WAKE", owner.Wake(r), 0)
	tg.see(c, mem.PageSize)
}

// TestGone covers C.29 and C.30: what each call says of a process that has
// executed another program.
func TestGone(t *testing.T) {
	tg := newTarget(t)
	f, _ := tg.open(0)
	r := tg.mmap(2)
	mustRegister(t, f, r, missing)
	ready := tg.expect(0)
	tg.start("exec")
	tg.await(ready)
	_, errno := f.Copy(r.Start, pattern(8, 1), 0)
	if wantErrno(t, "COPY", errno, unix.ESRCH); uffd.OutcomeOf(errno) != uffd.Gone {
		t.Error("ESRCH is not the outcome gone")
	}
	wantDone(t, "ZEROPAGE", did(f.Zeropage(r, 0)), result{0, unix.ESRCH})
	wantErrno(t, "WRITEPROTECT", f.WriteProtect(r, 0), unix.ESRCH)
	_, errno = f.Register(r, missing)
	wantErrno(t, "REGISTER", errno, unix.ENOMEM)
	wantErrno(t, "UNREGISTER", f.Unregister(r), unix.ENOMEM)
	wantErrno(t, "WAKE", f.Wake(r), 0)
	var msgs [1]uapi.Msg
	_, errno = f.Read(msgs[:])
	wantErrno(t, "Read", errno, syscall.EAGAIN)
	if f.Changing() {
		t.Error("the layout of no process is changing")
	}
}
