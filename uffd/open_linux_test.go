// SPDX-License-Identifier: Apache-2.0

package uffd_test

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd"
	"github.com/faultline-go/faultline/uffd/uapi"
)

func TestOpen(t *testing.T) {
	need(t)
	for _, tc := range []struct {
		name string
		open func(uffd.Options) (*uffd.FD, error)
	}{
		{"any", uffd.Open}, {"device", uffd.OpenDevice}, {"syscall", uffd.OpenSyscall},
	} {
		for _, o := range []uffd.Options{{}, {NonBlock: true}, {UserModeOnly: true}, {NonBlock: true, UserModeOnly: true}} {
			f, err := tc.open(o)
			if err != nil {
				// One way may be closed where the other is open.
				t.Run(tc.name, func(t *testing.T) { testutil.Need(t, false, err.Error()) })
				continue
			}
			fl, err := unix.FcntlInt(uintptr(f.Raw()), unix.F_GETFL, 0)
			if err != nil || (fl&unix.O_NONBLOCK != 0) != o.NonBlock {
				t.Errorf("%s %+v: file flags %#x, %v", tc.name, o, fl, err)
			}
			if fd, err := unix.FcntlInt(uintptr(f.Raw()), unix.F_GETFD, 0); err != nil || fd != unix.FD_CLOEXEC {
				t.Errorf("%s %+v: not close-on-exec: %#x, %v", tc.name, o, fd, err)
			}
			if err := f.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	}
}

// TestHandshake covers B.4 and C.1, C.2: what fails leaves the descriptor
// usable, and the second handshake always fails.
func TestHandshake(t *testing.T) {
	need(t)
	f, err := uffd.Open(uffd.Options{NonBlock: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	// C.4: nothing works before.
	var msgs [1]uapi.Msg
	_, errno := f.Read(msgs[:])
	wantErrno(t, "Read before the handshake", errno, unix.EINVAL)
	_, errno = f.Wait(-1, 0)
	wantErrno(t, "Wait before the handshake", errno, unix.EINVAL)
	wantErrno(t, "WAKE before the handshake", f.Wake(mem.MakeRange(0, mem.PageSize)), unix.EINVAL)
	if info, err := f.Info(); err != nil || info.Initialized {
		t.Errorf("Info before the handshake = %+v, %v", info, err)
	}

	_, errno = f.API(0xab, 0)
	wantErrno(t, "another version", errno, unix.EINVAL)
	err = f.Handshake(1<<40 | uapi.UFFD_FEATURE_THREAD_ID)
	fe, ok := errors.AsType[*uffd.FeatureError](err)
	if !ok || fe.Name != "0x10000000000" || !errors.Is(err, uffd.ErrNotSupported) {
		t.Errorf("a feature of the future: %v", err)
	}
	if err := f.Handshake(uapi.UFFD_FEATURE_THREAD_ID); err != nil {
		t.Fatal(err)
	}
	info, err := f.Info()
	want := uffd.FDInfo{Initialized: true, Features: uapi.UFFD_FEATURE_THREAD_ID, Ioctls: info.Ioctls}
	if err != nil || info != want || !info.Ioctls.Has(uapi.UFFD_API_IOCTLS&^uapi.UFFDIO_BIT_API) {
		t.Errorf("Info = %+v, %v, want %+v", info, err, want)
	}
	err = f.Handshake(0)
	if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "one handshake") {
		t.Errorf("second handshake: %v", err)
	}
}

func TestProbe(t *testing.T) {
	got, err := uffd.Probe()
	if err != nil {
		testutil.Need(t, false, err.Error())
	}
	if got.API != uapi.UFFD_API || !got.Ioctls.Has(uapi.UFFD_API_IOCTLS) {
		t.Errorf("Probe = %+v", got)
	}
	again, err := uffd.Probe()
	if err != nil || again != got {
		t.Errorf("Probe = %+v, %v, and before %+v", again, err, got)
	}
}

// TestUnprivileged covers H18, B.3 and C.3 in a process of user nobody.
func TestUnprivileged(t *testing.T) {
	testutil.Need(t, os.Geteuid() == 0, "changing the user needs root")
	sysctl, err := os.ReadFile("/proc/sys/vm/unprivileged_userfaultfd")
	testutil.Need(t, err == nil && strings.TrimSpace(string(sysctl)) == "0", "vm.unprivileged_userfaultfd is not 0")
	node, err := os.Stat(uffd.Device)
	testutil.Need(t, err == nil && node.Mode().Perm()&0o006 == 0, uffd.Device+" is absent or open to all")

	tg := newTargetAs(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}})
	a := tg.await(tg.start("open", 1))
	for _, part := range []string{
		"/dev/userfaultfd: permission denied", "chgrp", "userfaultfd(2): operation not permitted",
		"vm.unprivileged_userfaultfd=1", "CAP_SYS_PTRACE", "seccomp",
	} {
		if !strings.Contains(a.Text, part) {
			t.Errorf("error %q does not say %q", a.Text, part)
		}
	}
	if got := tg.call("probe"); !uapi.Features(got).Has(uapi.UFFD_FEATURE_EVENT_UNMAP) {
		t.Errorf("Probe = %v", uapi.Features(got))
	}
	raw := tg.call("open", 3)
	a = tg.await(tg.start("handshake", raw, uint64(uapi.UFFD_FEATURE_EVENT_FORK)))
	if a.Errno != unix.EPERM || !strings.Contains(a.Text, "CAP_SYS_PTRACE") {
		t.Errorf("EVENT_FORK: %v %q, want EPERM and the capability", a.Errno, a.Text)
	}
	tg.call("handshake", raw, uint64(uapi.UFFD_FEATURE_EVENT_UNMAP))
}

// TestUserModeOnly covers C.32 and H17: a system call gets EFAULT, without a
// message. So it does with SIGBUS.
func TestUserModeOnly(t *testing.T) {
	for _, tc := range []struct {
		name     string
		options  uint64
		features uapi.Features
	}{
		{"user mode only", 3, 0},
		{"sigbus", 1, uapi.UFFD_FEATURE_SIGBUS},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tg := newTarget(t)
			f, err := uffd.FromProcess(tg.cmd.Process.Pid, int(tg.call("open", tc.options)))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Handshake(tc.features); err != nil {
				t.Fatal(err)
			}
			r := tg.mmap(1)
			mustRegister(t, f, r, missing)
			if a := tg.await(tg.touch(r.Start, 1)); a.Errno != unix.EFAULT {
				t.Errorf("touch: %v, want EFAULT", a.Errno)
			}
			if ready, errno := f.Wait(-1, 0); ready || errno != 0 {
				t.Errorf("Wait = %v, %v, want no message", ready, errno)
			}
		})
	}
}
