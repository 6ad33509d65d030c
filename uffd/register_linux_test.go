// SPDX-License-Identifier: Apache-2.0

package uffd_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// TestRegister covers C.16 to C.19: holes, parts, twice, and replaced modes.
func TestRegister(t *testing.T) {
	needFeatures(t, uapi.UFFD_FEATURE_PAGEFAULT_FLAG_WP)
	tg := newTarget(t)
	f, _ := tg.open(0)
	const wp = uapi.UFFDIO_REGISTER_MODE_WP
	r := tg.mmap(6)
	hole := page(r, 2)
	tg.munmap(hole)

	mustRegister(t, f, r, missing)              // across the hole
	mustRegister(t, f, pages(r, 2, 4), missing) // from the hole
	_, errno := f.Register(hole, missing)       // the hole only
	wantErrno(t, "REGISTER of a hole", errno, unix.EINVAL)
	_, errno = f.Register(r, 0) // no mode
	wantErrno(t, "REGISTER of no mode", errno, unix.EINVAL)
	_, errno = f.Register(r, 1<<3) // a mode of Linux 7.2
	wantErrno(t, "REGISTER of mode 8", errno, unix.EINVAL)
	_, errno = f.Register(mem.MakeRange(r.Start+1, mem.PageSize), missing)
	wantErrno(t, "REGISTER misaligned", errno, unix.EINVAL)
	_, errno = f.Register(mem.Range{}, missing)
	wantErrno(t, "REGISTER of nothing", errno, unix.EINVAL)

	if got := mustRegister(t, f, r, wp); got&uapi.UFFDIO_BIT_WRITEPROTECT == 0 {
		t.Errorf("ioctls of a replaced mode = %v", got)
	}
	wantErrno(t, "UNREGISTER of a part", f.Unregister(page(r, 0)), 0)
	wantDone(t, "COPY to that part", did(f.Copy(r.Start, pattern(1, 1), 0)), result{0, unix.ENOENT})
	wantDone(t, "COPY to the next", did(f.Copy(page(r, 1).Start, pattern(1, 1), 0)), result{mem.PageSize, 0})
	wantErrno(t, "UNREGISTER with holes", f.Unregister(r), 0)
	wantErrno(t, "UNREGISTER again", f.Unregister(r), 0)
	wantErrno(t, "UNREGISTER of a hole", f.Unregister(hole), unix.EINVAL)
}

// TestUnregisterWaiters covers C.22: who waits for a missing page is woken,
// who waits for a protection is not, until WAKE.
func TestUnregisterWaiters(t *testing.T) {
	needFeatures(t, uapi.UFFD_FEATURE_PAGEFAULT_FLAG_WP)
	tg := newTarget(t)
	f, _ := tg.open(0)
	r := tg.mmap(1)
	mustRegister(t, f, r, missing)
	c := tg.store(r.Start)
	wantFault(t, f, r.Start, uapi.UFFD_PAGEFAULT_FLAG_WRITE)
	wantErrno(t, "UNREGISTER", f.Unregister(r), 0)
	tg.await(c)

	mustRegister(t, f, r, uapi.UFFDIO_REGISTER_MODE_WP)
	wantErrno(t, "WRITEPROTECT", f.WriteProtect(r, uapi.UFFDIO_WRITEPROTECT_MODE_WP), 0)
	c = tg.store(r.Start)
	wantFault(t, f, r.Start, uapi.UFFD_PAGEFAULT_FLAG_WRITE|uapi.UFFD_PAGEFAULT_FLAG_WP)
	wantErrno(t, "UNREGISTER", f.Unregister(r), 0)
	if info, err := f.Info(); err != nil || info.Total != 1 {
		t.Fatalf("Info = %+v, %v, want one thread asleep", info, err)
	}
	wantErrno(t, "WAKE", f.Wake(r), 0)
	tg.await(c)
}

// TestWake covers C.10 and C.11: it needs no mapping, and a thread that is
// woken without a page comes back with a new message.
func TestWake(t *testing.T) {
	tg := newTarget(t)
	f, _ := tg.open(0)
	wantErrno(t, "WAKE of page zero", f.Wake(mem.MakeRange(0, mem.PageSize)), 0)
	wantErrno(t, "WAKE of nothing", f.Wake(mem.Range{}), unix.EINVAL)
	r := tg.mmap(1)
	mustRegister(t, f, r, missing)
	c := tg.touch(r.Start, mem.PageSize)
	for range 3 {
		wantFault(t, f, r.Start, 0)
		wantErrno(t, "WAKE", f.Wake(r), 0)
	}
	wantFault(t, f, r.Start, 0)
	wantDone(t, "ZEROPAGE without waking", did(f.Zeropage(r, uapi.UFFDIO_ZEROPAGE_MODE_DONTWAKE)), result{mem.PageSize, 0})
	wantErrno(t, "WAKE", f.Wake(r), 0)
	tg.see(c, mem.PageSize)
}

// TestRegisterReadOnlyFile checks EPERM: such a mapping can never be written.
func TestRegisterReadOnlyFile(t *testing.T) {
	tg := newTarget(t)
	f, _ := tg.open(0)
	file := tg.call("memfd", mem.PageSize)
	tg.syscall(unix.SYS_FCNTL, file, unix.F_ADD_SEALS, unix.F_SEAL_WRITE)
	at := tg.syscall(unix.SYS_MMAP, 0, mem.PageSize, unix.PROT_READ, unix.MAP_SHARED, file, 0)
	_, errno := f.Register(mem.MakeRange(mem.Addr(at), mem.PageSize), missing)
	wantErrno(t, "REGISTER", errno, unix.EPERM)
}
