// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// seccompData lays out struct seccomp_data.
func seccompData(arch, nr uint32, args ...uint64) []byte {
	b := make([]byte, 64)
	binary.LittleEndian.PutUint32(b[0:], nr)
	binary.LittleEndian.PutUint32(b[4:], arch)
	for i, a := range args {
		binary.LittleEndian.PutUint64(b[16+8*i:], a)
	}
	return b
}

// evaluate runs a filter. constant reports that it looked at nothing but
// architecture and number, which is what lets the kernel skip it.
func evaluate(t *testing.T, prog []unix.SockFilter, data []byte) (ret uint32, constant bool) {
	t.Helper()
	constant = true
	var a uint32
	for pc := 0; pc < len(prog); pc++ {
		in := prog[pc]
		jump := func(yes bool) {
			if yes {
				pc += int(in.Jt)
			} else {
				pc += int(in.Jf)
			}
		}
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = binary.LittleEndian.Uint32(data[in.K:])
			constant = constant && in.K < 8
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= in.K
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(a == in.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(a >= in.K)
		case unix.BPF_RET | unix.BPF_K:
			return in.K, constant
		default:
			t.Fatalf("instruction %d: unknown code %#x", pc, in.Code)
		}
	}
	t.Fatal("the filter runs off its end")
	return 0, false
}

func TestFilter(t *testing.T) {
	const (
		allow  = unix.SECCOMP_RET_ALLOW
		trace  = unix.SECCOMP_RET_TRACE
		anon   = unix.MAP_ANONYMOUS
		priv   = unix.MAP_PRIVATE
		shared = unix.MAP_SHARED
		high   = 1 << 32 // bits that the kernel ignores in flags
	)
	mmap := func(flags uint64) []byte {
		return seccompData(nativeArch, unix.SYS_MMAP, 0, 4096, 3, flags, ^uint64(0), 0)
	}
	madvise := func(advice uint64) []byte {
		return seccompData(nativeArch, unix.SYS_MADVISE, 0x1000, 4096, advice)
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
		{"brk", seccompData(nativeArch, unix.SYS_BRK, 0), trace | TraceBrk},
		{"dontfork", madvise(10), trace | TraceMadvise},
		{"dofork", madvise(11), trace | TraceMadvise},
		{"wipeonfork", madvise(18), trace | TraceMadvise},
		{"keeponfork", madvise(19), trace | TraceMadvise},
		{"guard install", madvise(102), trace | TraceMadvise},
		{"guard remove", madvise(103), trace | TraceMadvise},
		{"dontneed", madvise(unix.MADV_DONTNEED), allow},
		{"free", madvise(unix.MADV_FREE), allow},
		{"hugepage", madvise(unix.MADV_HUGEPAGE), allow},
		{"process_madvise guard", seccompData(nativeArch, unix.SYS_PROCESS_MADVISE, 3, 0, 1, 102), trace | TraceProcessMadvise},
		{"process_madvise cold", seccompData(nativeArch, unix.SYS_PROCESS_MADVISE, 3, 102, 1, 20), allow},
		{"read", seccompData(nativeArch, unix.SYS_READ), allow},
		{"munmap", seccompData(nativeArch, unix.SYS_MUNMAP), allow},
		{"minus one", seccompData(nativeArch, ^uint32(0)), allow},
		{"compat brk", seccompData(compatArch, 45), trace | TraceForeign},
		{"compat mmap2", seccompData(compatArch, 192), trace | TraceForeign},
		{"compat read", seccompData(compatArch, 3), allow},
		{"some other machine", seccompData(unix.AUDIT_ARCH_S390X, 45), allow},
	} {
		if got, _ := evaluate(t, prog, tc.data); got != tc.want {
			t.Errorf("%s: %#x, want %#x", tc.name, got, tc.want)
		}
	}
	if x32 != 0 {
		for nr, want := range map[uint32]uint32{unix.SYS_MMAP: trace | TraceForeign, unix.SYS_BRK: trace | TraceForeign, 0: allow} {
			if got, _ := evaluate(t, prog, seccompData(nativeArch, nr|x32)); got != want {
				t.Errorf("x32 call %d: %#x, want %#x", nr, got, want)
			}
		}
	}
	traced := map[uint32]bool{unix.SYS_MMAP: true, unix.SYS_BRK: true, unix.SYS_MADVISE: true, unix.SYS_PROCESS_MADVISE: true}
	for nr := range uint32(500) {
		ret, constant := evaluate(t, prog, seccompData(nativeArch, nr))
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
