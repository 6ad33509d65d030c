// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sandbox

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/bpf/bpftest"
	"github.com/faultline-go/faultline/internal/testutil"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func TestContainerFilter(t *testing.T) {
	prog := container()
	for _, tc := range []struct {
		nr   uint32
		arg  uint64
		want syscall.Errno
	}{
		{unix.SYS_READ, 0, 0},
		{unix.SYS_PTRACE, 0, 0},
		{unix.SYS_PROCESS_VM_READV, 0, 0},
		{unix.SYS_SECCOMP, 0, 0},
		{unix.SYS_REMOVEXATTRAT, 0, 0},
		{unix.SYS_USERFAULTFD, 0, unix.EPERM},
		{unix.SYS_PIDFD_GETFD, 0, unix.EPERM},
		{unix.SYS_KCMP, 0, unix.EPERM},
		{unix.SYS_PERF_EVENT_OPEN, 0, unix.EPERM},
		{unix.SYS_CLONE3, 0, unix.ENOSYS},
		{unix.SYS_REMOVEXATTRAT + 1, 0, unix.ENOSYS},
		{unix.SYS_CLONE, unix.CLONE_VM | unix.CLONE_THREAD, 0},
		{unix.SYS_CLONE, unix.CLONE_NEWUSER, unix.EPERM},
		{unix.SYS_SOCKET, unix.AF_UNIX, 0},
		{unix.SYS_SOCKET, unix.AF_VSOCK, unix.EPERM},
		{unix.SYS_SOCKET, 46, unix.EPERM},
		{unix.SYS_PERSONALITY, 0xffffffff, 0},
		{unix.SYS_PERSONALITY, 0x40000, unix.EPERM},
	} {
		want := uint32(unix.SECCOMP_RET_ALLOW)
		if tc.want != 0 {
			want = answer(tc.want)
		}
		if got, _ := bpftest.Run(t, prog, bpftest.Data(auditArch, tc.nr, tc.arg)); got != want {
			t.Errorf("call %d, argument %#x: %#x, want %#x", tc.nr, tc.arg, got, want)
		}
	}
}

// TestCommand looks at the surroundings from within.
func TestCommand(t *testing.T) {
	testutil.Need(t, os.Geteuid() == 0, "only root can become somebody else")
	for name, tc := range map[string]struct {
		o    Options
		want []string
	}{
		"nothing": {Options{}, []string{"NoNewPrivs:\t0"}},
		"refused": {Options{Refuse: []Refusal{{unix.SYS_USERFAULTFD, unix.EPERM}}}, []string{
			"Uid:\t0\t0\t0\t0", "NoNewPrivs:\t0", "Seccomp:\t2"}},
		"container": {Options{Container: true}, []string{
			"Uid:\t0\t0\t0\t0", "CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "NoNewPrivs:\t0", "Seccomp:\t2"}},
		"nobody": {Options{User: Nobody}, []string{
			"Uid:\t65534\t65534\t65534\t65534", "Groups:\t \n", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"}},
		"nobody in a container": {Options{User: Nobody, Container: true}, []string{
			"Uid:\t65534\t65534\t65534\t65534", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"}},
	} {
		t.Run(name, func(t *testing.T) {
			cmd, err := Command(t.Context(), tc.o, "/bin/cat", "/proc/self/status")
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, want := range tc.want {
				if !strings.Contains(string(out), want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
		})
	}
}
