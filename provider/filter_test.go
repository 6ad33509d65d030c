// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/bpf/bpftest"
	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

func TestFilters(t *testing.T) {
	const base = 0x7f12_3400_0000
	window := mem.MakeRange(base, 1<<24)
	wide := mem.Range{Start: 0, End: 1 << 47}
	first, five, more := firstFilter(), numberFilter(5, true), numberFilter(6, false)
	changes, buffers, all := windowFilter(window, false), windowFilter(window, true), windowFilter(wide, true)
	for _, tc := range []struct {
		name string
		prog []unix.SockFilter
		nr   uint32
		args []uint64
		want uint32
	}{
		{"userfaultfd", first, unix.SYS_USERFAULTFD, nil, trap},
		{"pidfd_getfd", first, unix.SYS_PIDFD_GETFD, nil, trace},
		{"open for writing", first, unix.SYS_OPENAT, []uint64{3, 0, unix.O_RDWR | unix.O_CLOEXEC}, trace},
		{"open for reading", first, unix.SYS_OPENAT, []uint64{3, 0, unix.O_RDONLY}, allow},
		{"creation", first, unix.SYS_OPENAT, []uint64{3, 0, unix.O_RDWR | unix.O_CREAT}, allow},
		{"read", first, unix.SYS_READ, []uint64{5}, allow},

		{"read of it", five, unix.SYS_READ, []uint64{5}, trace},
		{"read of it, high bits", five, unix.SYS_READ, []uint64{1<<32 | 5}, trace},
		{"read of another", five, unix.SYS_READ, []uint64{6}, allow},
		{"pread64 of it", five, unix.SYS_PREAD64, []uint64{5}, trace},
		{"preadv2 of it", five, unix.SYS_PREADV2, []uint64{5}, trace},
		{"close of it", five, unix.SYS_CLOSE, []uint64{5}, trace},
		{"dup3 onto it", five, unix.SYS_DUP3, []uint64{9, 5}, trace},
		{"dup3 elsewhere", five, unix.SYS_DUP3, []uint64{9, 8}, allow},
		{"epoll on it", five, unix.SYS_EPOLL_CTL, []uint64{7, 1, 5}, trace},
		{"duplicate", five, unix.SYS_FCNTL, []uint64{5, unix.F_DUPFD_CLOEXEC, 10}, trace},
		{"flags read", five, unix.SYS_FCNTL, []uint64{5, unix.F_GETFL}, allow},
		{"request of it", five, unix.SYS_IOCTL, []uint64{5, uapi.UFFDIO_COPY}, trace},
		{"request of another", five, unix.SYS_IOCTL, []uint64{8, uapi.UFFDIO_COPY}, trace},
		{"terminal", five, unix.SYS_IOCTL, []uint64{0, unix.TCGETS}, allow},
		{"recvmsg", five, unix.SYS_RECVMSG, nil, trace},
		{"poll", five, unix.SYS_PPOLL, nil, trace},
		{"handler of SIGSEGV", five, unix.SYS_RT_SIGACTION, []uint64{uint64(unix.SIGSEGV)}, trace},
		{"handler of SIGINT", five, unix.SYS_RT_SIGACTION, []uint64{uint64(unix.SIGINT)}, allow},
		{"write", five, unix.SYS_WRITE, []uint64{5}, allow},
		{"read of the second", more, unix.SYS_READ, []uint64{6}, trace},
		{"recvmsg, which the first sees", more, unix.SYS_RECVMSG, nil, allow},

		{"munmap inside", changes, unix.SYS_MUNMAP, []uint64{base + 4096, 4096}, trace},
		{"munmap far below", changes, unix.SYS_MUNMAP, []uint64{base - 1<<30, 4096}, allow},
		{"munmap from far below", changes, unix.SYS_MUNMAP, []uint64{base - 1<<30, 1 << 31}, trace},
		{"munmap of more than 4 GiB", changes, unix.SYS_MUNMAP, []uint64{base - 1<<33, 1 << 34}, trace},
		{"munmap behind", changes, unix.SYS_MUNMAP, []uint64{base + 1<<24, 4096}, allow},
		{"mmap at a place", changes, unix.SYS_MMAP, []uint64{base, 4096, 0, unix.MAP_FIXED}, trace},
		{"mmap anywhere", changes, unix.SYS_MMAP, []uint64{base, 4096, 0, unix.MAP_PRIVATE}, allow},
		{"mremap onto", changes, unix.SYS_MREMAP, []uint64{4096, 4096, 4096, unix.MREMAP_FIXED, base}, trace},
		{"a buffer, not asked for", changes, unix.SYS_READ, []uint64{0, base, 64}, allow},

		{"buffer inside", buffers, unix.SYS_READ, []uint64{0, base, 64}, trace},
		{"buffer elsewhere", buffers, unix.SYS_READ, []uint64{0, base - 1<<40, 64}, allow},
		{"long buffer", buffers, unix.SYS_READ, []uint64{0, base - 1<<40, 1 << 21}, trace},
		{"vector", buffers, unix.SYS_READV, []uint64{0, 4096, 1}, trace},
		{"munmap inside, with buffers", buffers, unix.SYS_MUNMAP, []uint64{base, 4096}, trace},
		{"no memory at all", buffers, unix.SYS_GETPID, nil, allow},

		{"anywhere", all, unix.SYS_READ, []uint64{0, 1 << 20, 64}, trace},
		{"munmap anywhere", all, unix.SYS_MUNMAP, []uint64{1 << 46, 4096}, trace},
	} {
		if got, _ := bpftest.Run(t, tc.prog, bpftest.Data(auditArch, tc.nr, tc.args...)); got != tc.want {
			t.Errorf("%s: %#x, want %#x", tc.name, got, tc.want)
		}
	}
	if got, _ := bpftest.Run(t, first, bpftest.Data(auditArch+1, unix.SYS_USERFAULTFD)); got != allow {
		t.Errorf("userfaultfd of another architecture: %#x", got)
	}
}

// What a managed program must not do fails from its start on.
func TestEarlyFilterRefuses(t *testing.T) {
	for _, nr := range []uint32{unix.SYS_IO_URING_SETUP, unix.SYS_IO_SETUP, unix.SYS_MSEAL, unix.SYS_USERFAULTFD} {
		want := unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
		if got, _ := bpftest.Run(t, earlyFilter(), bpftest.Data(auditArch, nr)); got != want {
			t.Errorf("call %d: %#x, want %#x", nr, got, want)
		}
	}
}

// Our agents change the memory of a window and wait for nobody.
func TestFilterKnowsAgents(t *testing.T) {
	window := mem.MakeRange(0x7f12_3400_0000, 1<<24)
	for _, buffers := range []bool{false, true} {
		data := bpftest.Data(auditArch, unix.SYS_MPROTECT, uint64(window.Start), 4096)
		prog := windowFilter(window, buffers)
		if got, _ := bpftest.Run(t, prog, data); got != trace {
			t.Errorf("the program's own call: %#x", got)
		}
		binary.LittleEndian.PutUint64(data[8:], uint64(inject.Home().Start+4096))
		if got, _ := bpftest.Run(t, prog, data); got != allow {
			t.Errorf("an agent's call: %#x", got)
		}
	}
}

// What a program calls often without memory, or on small numbers, is looked at
// in no filter but by its number: for that the kernel runs none at all.
func TestFiltersCostNothing(t *testing.T) {
	for _, nr := range []uint32{unix.SYS_GETPID, unix.SYS_SCHED_YIELD, unix.SYS_GETTID} {
		for name, prog := range map[string][]unix.SockFilter{"first": firstFilter(), "number": numberFilter(5, true)} {
			if got, constant := bpftest.Run(t, prog, bpftest.Data(auditArch, nr)); got != allow || !constant {
				t.Errorf("%s filter, call %d: %#x, constant: %v", name, nr, got, constant)
			}
		}
	}
}
