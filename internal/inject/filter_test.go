// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/bpf/bpftest"
)

func TestFilter(t *testing.T) {
	const (
		allow   = unix.SECCOMP_RET_ALLOW
		trace   = unix.SECCOMP_RET_TRACE
		invalid = unix.SECCOMP_RET_ERRNO | uint32(unix.EINVAL)
		anon    = unix.MAP_ANONYMOUS
		priv    = unix.MAP_PRIVATE
		shared  = unix.MAP_SHARED
		high    = 1 << 32 // bits that the kernel ignores in flags
	)
	mmap := func(flags uint64) []byte {
		return bpftest.Data(nativeArch, unix.SYS_MMAP, 0, 4096, 3, flags, ^uint64(0), 0)
	}
	madvise := func(advice uint64) []byte {
		return bpftest.Data(nativeArch, unix.SYS_MADVISE, 0x1000, 4096, advice)
	}
	prog := Filter()
	for _, tc := range []struct {
		name string
		data []byte
		want uint32
	}{
		{"private anonymous", mmap(anon | priv), trace | TraceMmap},
		{"fixed, stack, noreserve", mmap(anon | priv | unix.MAP_FIXED | unix.MAP_STACK | unix.MAP_NORESERVE), trace | TraceMmap},
		{"grows down, populate, hugetlb", mmap(anon | priv | unix.MAP_GROWSDOWN | unix.MAP_POPULATE | unix.MAP_HUGETLB), trace | TraceMmap},
		{"high bits set", mmap(anon | priv | high), trace | TraceMmap},
		{"shared anonymous", mmap(anon | shared), allow},
		{"shared validate anonymous", mmap(anon | unix.MAP_SHARED_VALIDATE), allow},
		{"private file", mmap(priv), allow},
		{"shared file", mmap(shared), allow},
		{"anonymous of no type", mmap(anon), allow},
		{"brk", bpftest.Data(nativeArch, unix.SYS_BRK, 0), trace | TraceBrk},
		{"dontfork", madvise(10), trace | TraceMadvise},
		{"dofork", madvise(11), trace | TraceMadvise},
		{"wipeonfork", madvise(18), trace | TraceMadvise},
		{"keeponfork", madvise(19), trace | TraceMadvise},
		{"guard install", madvise(102), trace | TraceMadvise},
		{"guard remove", madvise(103), trace | TraceMadvise},
		{"dontneed", madvise(unix.MADV_DONTNEED), allow},
		{"free", madvise(unix.MADV_FREE), invalid},
		{"process_madvise free", bpftest.Data(nativeArch, unix.SYS_PROCESS_MADVISE, 3, 0, 1, 8), invalid},
		{"hugepage", madvise(unix.MADV_HUGEPAGE), allow},
		{"process_madvise guard", bpftest.Data(nativeArch, unix.SYS_PROCESS_MADVISE, 3, 0, 1, 102), trace | TraceProcessMadvise},
		{"process_madvise cold", bpftest.Data(nativeArch, unix.SYS_PROCESS_MADVISE, 3, 102, 1, 20), allow},
		{"register", bpftest.Data(nativeArch, unix.SYS_IOCTL, 3, 0xc020aa00, 0x1000), trace | TraceRegister},
		{"register, high bits set", bpftest.Data(nativeArch, unix.SYS_IOCTL, 3, high|0xc020aa00, 0x1000), trace | TraceRegister},
		{"unregister", bpftest.Data(nativeArch, unix.SYS_IOCTL, 3, 0x8010aa01, 0x1000), allow},
		{"pread of a file", bpftest.Data(nativeArch, unix.SYS_PREAD64, 3, 0x1000, 8, 0x7fffffffff), allow},
		{"pread of memory", bpftest.Data(nativeArch, unix.SYS_PREAD64, 3, 0x1000, 8, 0x7f0000001000), trace | TraceMem},
		{"pread of Go's heap", bpftest.Data(nativeArch, unix.SYS_PREAD64, 3, 0x1000, 8, 0xc000000000), trace | TraceMem},
		{"pwrite to memory", bpftest.Data(nativeArch, unix.SYS_PWRITE64, 3, 0x1000, 8, 0x550000001000), trace | TraceMem},
		{"pwrite to a file", bpftest.Data(nativeArch, unix.SYS_PWRITE64, 3, 0x7f0000001000, 8, 0x1000), allow},
		{"read", bpftest.Data(nativeArch, unix.SYS_READ), allow},
		{"munmap", bpftest.Data(nativeArch, unix.SYS_MUNMAP), allow},
		{"minus one", bpftest.Data(nativeArch, ^uint32(0)), allow},
		{"compat brk", bpftest.Data(compatArch, 45), trace | TraceForeign},
		{"compat mmap2", bpftest.Data(compatArch, 192), trace | TraceForeign},
		{"compat read", bpftest.Data(compatArch, 3), allow},
		{"some other machine", bpftest.Data(unix.AUDIT_ARCH_S390X, 45), allow},
	} {
		if got, _ := bpftest.Run(t, prog, tc.data); got != tc.want {
			t.Errorf("%s: %#x, want %#x", tc.name, got, tc.want)
		}
	}
	if x32 != 0 {
		for nr, want := range map[uint32]uint32{unix.SYS_MMAP: trace | TraceForeign, unix.SYS_BRK: trace | TraceForeign, 0: allow} {
			if got, _ := bpftest.Run(t, prog, bpftest.Data(nativeArch, nr|x32)); got != want {
				t.Errorf("x32 call %d: %#x, want %#x", nr, got, want)
			}
		}
	}
	traced := map[uint32]bool{unix.SYS_MMAP: true, unix.SYS_BRK: true, unix.SYS_MADVISE: true, unix.SYS_PROCESS_MADVISE: true, unix.SYS_IOCTL: true,
		unix.SYS_PREAD64: true, unix.SYS_PWRITE64: true}
	for nr := range uint32(500) {
		ret, constant := bpftest.Run(t, prog, bpftest.Data(nativeArch, nr))
		if !traced[nr] && (ret != allow || !constant) {
			t.Errorf("call %d: %#x, constant %v; want it to be allowed by its number alone", nr, ret, constant)
		}
	}
}

// TestFilterEvents installs the filter in a program and reads what its calls
// report. TestEveryStop runs it with everything else.
func TestFilterEvents(t *testing.T) {
	v, _ := start(t, "everything")
	v.blocked()
	v.interrupt()
	s := v.open()
	if err := s.InstallFilter(); err != nil {
		t.Fatal(err)
	}
	if own, err := HasFilter(v.pid); !own || err != nil {
		t.Errorf("no filter is in force: %v, %v", own, err)
	}
	closeSession(t, s)
	v.in.Write([]byte("g"))
	v.cont(0)
	seen := make(map[uintptr]int)
	v.follow(func(tid, code int) (int, bool) {
		if code>>8 == unix.PTRACE_EVENT_SECCOMP {
			msg, _ := eventMsg(tid)
			seen[msg]++
		}
		return 0, false
	}, unix.PTRACE_CONT)
	if got := v.rest(); got != "ok\n" {
		t.Errorf("program printed %q", got)
	}
	for _, want := range []uintptr{TraceMmap, TraceBrk, TraceMadvise} {
		if seen[want] == 0 {
			t.Errorf("event %#x did not come; seen %v", want, seen)
		}
	}
}

// TestFilterDiverged refuses a program one of whose threads has a filter that
// the others have not.
func TestFilterDiverged(t *testing.T) {
	v, _ := start(t, "diverged")
	v.blocked()
	v.interrupt()
	s := v.open()
	if err := s.InstallFilter(); !errors.Is(err, ErrFiltered) {
		t.Errorf("install: %v", err)
	}
	if own, err := HasFilter(v.pid); own || err != nil {
		t.Errorf("the filter was installed: %v, %v", own, err)
	}
	closeSession(t, s)
}
