// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package watch

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/bpf/bpftest"
	"github.com/faultline-go/faultline/internal/collect"
	"github.com/faultline-go/faultline/uffd/uapi"
)

func TestFilters(t *testing.T) {
	base := filter{kind: kindBase}
	one := block(5, 0)
	eight := block(13, 3) // 8 to 15
	holder, receiver := filter{kind: kindHolder}, filter{kind: kindReceiver}
	for _, tc := range []struct {
		name   string
		f      filter
		nr     uint32
		args   []uint64
		report bool
	}{
		{"userfaultfd", base, unix.SYS_USERFAULTFD, nil, true},
		{"pidfd_getfd", base, unix.SYS_PIDFD_GETFD, nil, true},
		{"copy", base, unix.SYS_IOCTL, []uint64{3, uapi.UFFDIO_COPY}, true},
		{"wake, high bits", base, unix.SYS_IOCTL, []uint64{3, 1<<40 | uapi.UFFDIO_WAKE}, true},
		{"device", base, unix.SYS_IOCTL, []uint64{3, uapi.USERFAULTFD_IOC_NEW}, true},
		{"terminal", base, unix.SYS_IOCTL, []uint64{3, unix.TCGETS}, false},
		{"number alike, type not", base, unix.SYS_IOCTL, []uint64{3, 0xc02800aa}, false},
		{"read", base, unix.SYS_READ, []uint64{3}, false},
		{"recvmsg", base, unix.SYS_RECVMSG, nil, false},
		{"read of it", one, unix.SYS_READ, []uint64{5}, true},
		{"read of another", one, unix.SYS_READ, []uint64{4}, false},
		{"read of it, high bits", one, unix.SYS_READ, []uint64{1<<32 | 5}, true},
		{"preadv2 of it", one, unix.SYS_PREADV2, []uint64{5}, true},
		{"any ioctl on it", one, unix.SYS_IOCTL, []uint64{5, 0x541b}, true},
		{"close of it", one, unix.SYS_CLOSE, []uint64{5}, true},
		{"write to it", one, unix.SYS_WRITE, []uint64{5}, false},
		{"dup3 from it", one, unix.SYS_DUP3, []uint64{5, 9}, true},
		{"dup3 onto it", one, unix.SYS_DUP3, []uint64{9, 5}, true},
		{"dup3 elsewhere", one, unix.SYS_DUP3, []uint64{9, 8}, false},
		{"fcntl of it", one, unix.SYS_FCNTL, []uint64{5, 0}, true},
		{"first of the block", eight, unix.SYS_READ, []uint64{8}, true},
		{"last of the block", eight, unix.SYS_READ, []uint64{15}, true},
		{"before the block", eight, unix.SYS_READ, []uint64{7}, false},
		{"behind the block", eight, unix.SYS_READ, []uint64{16}, false},
		{"minus one", eight, unix.SYS_READ, []uint64{^uint64(0)}, false},
		{"sendmsg", holder, unix.SYS_SENDMSG, nil, true},
		{"sendmmsg", holder, unix.SYS_SENDMMSG, nil, true},
		{"close_range", holder, unix.SYS_CLOSE_RANGE, nil, true},
		{"sendto", holder, unix.SYS_SENDTO, nil, false},
		{"recvmsg", receiver, unix.SYS_RECVMSG, nil, true},
		{"recvmmsg", receiver, unix.SYS_RECVMMSG, nil, true},
		{"recvfrom", receiver, unix.SYS_RECVFROM, nil, false},
	} {
		want := uint32(unix.SECCOMP_RET_ALLOW)
		if tc.report {
			want = unix.SECCOMP_RET_TRACE
		}
		prog := tc.f.program()
		if got, _ := bpftest.Run(t, prog, bpftest.Data(nativeArch, tc.nr, tc.args...)); got != want {
			t.Errorf("%s: %#x, want %#x", tc.name, got, want)
		}
		if got, _ := bpftest.Run(t, prog, bpftest.Data(nativeArch+1, tc.nr, tc.args...)); got != unix.SECCOMP_RET_ALLOW {
			t.Errorf("%s, of another architecture: %#x", tc.name, got)
		}
		if x32 == 0 {
			continue
		}
		if got, _ := bpftest.Run(t, prog, bpftest.Data(nativeArch, tc.nr|x32, tc.args...)); got != unix.SECCOMP_RET_ALLOW {
			t.Errorf("%s, x32: %#x", tc.name, got)
		}
	}
}

// TestFiltersCostNothing: where no filter reports a call, whatever its
// arguments are, none of them looks at more than its number.
func TestFiltersCostNothing(t *testing.T) {
	looked := map[uint32]int{}
	for _, f := range []filter{{kind: kindBase}, block(5, 0), block(5, 4), {kind: kindHolder}, {kind: kindReceiver}} {
		for nr := range uint32(500) {
			got, constant := bpftest.Run(t, f.program(), bpftest.Data(nativeArch, nr))
			if !constant || got != unix.SECCOMP_RET_ALLOW {
				looked[nr]++
			}
			if _, named := collect.Reports(uintptr(nr)); !named && looked[nr] > 0 {
				t.Fatalf("call %d is looked at, and has no name", nr)
			}
		}
	}
	for nr := range uint32(500) {
		if name, named := collect.Reports(uintptr(nr)); named && looked[nr] == 0 {
			t.Errorf("%s is shown, and no filter looks at it", name)
		}
	}
}

// TestBlocks: whatever numbers come, few filters are enough.
func TestBlocks(t *testing.T) {
	for name, next := range map[string]func(i int) int{
		"in order": func(i int) int { return i },
		"in steps": func(i int) int { return i * 7 },
		"backward": func(i int) int { return 1<<20 - i },
	} {
		p := &process{}
		for i := range 5000 {
			p.filters = append(p.filters, p.lacking([]int{next(i)}, false)...)
		}
		if n := len(p.filters); n > 20 {
			t.Errorf("%s: %d filters", name, n)
		}
	}
	if f := block(1<<30+5, 100); !f.covers(1<<30+5) || f.covers(5) {
		t.Errorf("%+v", f)
	}
}
