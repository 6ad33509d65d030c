// SPDX-License-Identifier: Apache-2.0

package uffd

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/faultline-go/faultline/uffd/uapi"
)

const fdinfo = "pos:\t0\nflags:\t02004002\nmnt_id:\t15\nino:\t2068\n" +
	"pending:\t2\ntotal:\t5\nAPI:\taa:80000101:80000000000001ff\n"

func TestParseInfo(t *testing.T) {
	got, err := parseInfo([]byte(fdinfo))
	want := FDInfo{
		Pending: 2, Total: 5, Initialized: true,
		Features: uapi.UFFD_FEATURE_THREAD_ID | uapi.UFFD_FEATURE_PAGEFAULT_FLAG_WP, Ioctls: 0x80000000000001ff,
	}
	if err != nil || got != want {
		t.Errorf("parseInfo = %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{
		"", "pos:\t0\n", strings.Replace(fdinfo, "aa:", "", 1), strings.Replace(fdinfo, "80000101", "x", 1),
		strings.Replace(fdinfo, "\t2\n", "\t-2\n", 1), strings.Replace(fdinfo, "total", "sum", 1),
	} {
		if got, err := parseInfo([]byte(bad)); err == nil {
			t.Errorf("parseInfo(%q) = %+v", bad, got)
		}
	}
}

func FuzzParseInfo(f *testing.F) {
	f.Add([]byte(fdinfo))
	f.Add([]byte("API:\taa:0:8000000000000003"))
	f.Add([]byte("pending:\ntotal\n:::"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if info, err := parseInfo(b); err != nil && info != (FDInfo{}) {
			t.Errorf("%+v with error %v", info, err)
		} else if err == nil && info.Features&initialized != 0 {
			t.Errorf("the mark of the handshake is among the features: %v", info.Features)
		}
	})
}

// TestMissing checks that each feature is named with the kernel it needs, on
// one line, and that unknown ones do not hide known ones.
func TestMissing(t *testing.T) {
	if err := Missing(uapi.UFFD_API_FEATURES, uapi.UFFD_FEATURE_MOVE); err != nil {
		t.Error(err)
	}
	err := Missing(uapi.UFFD_FEATURE_SIGBUS, uapi.UFFD_FEATURE_SIGBUS|uapi.UFFD_FEATURE_MOVE|uapi.UFFD_FEATURE_POISON|1<<50)
	if !errors.Is(err, ErrNotSupported) {
		t.Fatalf("%v does not match ErrNotSupported", err)
	}
	for _, part := range []string{"MOVE", "6.8", "POISON", "6.6", "0x4000000000000"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	if strings.Contains(err.Error(), "SIGBUS") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%q", err)
	}
}

// TestRemedies checks that each closed gate says how to open it (H18).
func TestRemedies(t *testing.T) {
	for _, tc := range []struct {
		remedy func(syscall.Errno) string
		errno  syscall.Errno
		want   string
	}{
		{deviceRemedy, syscall.EACCES, "chgrp"},
		{deviceRemedy, syscall.EPERM, "--device"},
		{deviceRemedy, syscall.ENOENT, "6.1"},
		{deviceRemedy, syscall.EMFILE, "ulimit -n"},
		{syscallRemedy, syscall.EPERM, "vm.unprivileged_userfaultfd=1"},
		{syscallRemedy, syscall.EPERM, "CAP_SYS_PTRACE"},
		{syscallRemedy, syscall.EPERM, "seccomp"},
		{syscallRemedy, syscall.ENOSYS, "CONFIG_USERFAULTFD"},
		{syscallRemedy, syscall.EINVAL, "5.11"},
		{syscallRemedy, syscall.EIO, "userfaultfd(2)"},
	} {
		if got := tc.remedy(tc.errno); !strings.Contains(got, tc.want) {
			t.Errorf("%v: %q does not say %q", tc.errno, got, tc.want)
		}
	}
	err := error(&OpenError{
		Device:  &GateError{Gate: Device, Err: syscall.ENOENT},
		Syscall: &GateError{Gate: "userfaultfd(2)", Err: syscall.EPERM},
	})
	if !errors.Is(err, syscall.EPERM) || !errors.Is(err, syscall.ENOENT) {
		t.Errorf("%v hides a reason", err)
	}
}
