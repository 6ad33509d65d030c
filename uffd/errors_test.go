// SPDX-License-Identifier: Apache-2.0

package uffd

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/faultline-go/faultline/mem"
)

func TestCheck(t *testing.T) {
	r := mem.MakeRange(0x7000, 0x2000)
	if err := Check("UFFDIO_COPY", r, 0x2000, 0); err != nil {
		t.Errorf("no errno is the error %v", err)
	}
	err := fmt.Errorf("serve: %w", Check("UFFDIO_COPY", r, 0x1000, syscall.EAGAIN))
	oe, ok := errors.AsType[*OpError](err)
	if !ok || oe.Op != "UFFDIO_COPY" || oe.Range != r || oe.Done != 0x1000 {
		t.Fatalf("%#v", oe)
	}
	if !errors.Is(err, ErrAgain) || !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("%v matches neither ErrAgain nor EAGAIN", err)
	}
	for _, part := range []string{"UFFDIO_COPY [0x7000+0x2000]", "4096 bytes", "read the queued messages"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	for _, errno := range []syscall.Errno{syscall.EEXIST, syscall.ESRCH, syscall.EBADF, syscall.ENOENT, syscall.EBUSY,
		syscall.EPERM, syscall.EFAULT, syscall.EINVAL, syscall.ENOMEM} {
		err := Check("UFFDIO_MOVE", r, 0, errno)
		if errors.Is(err, ErrAgain) {
			t.Errorf("%v matches ErrAgain", err)
		}
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), " (") {
			t.Errorf("%v explains nothing", err)
		}
	}
}

func TestOutcome(t *testing.T) {
	for errno, want := range map[syscall.Errno]string{
		0: "done", syscall.EEXIST: "raced", syscall.EAGAIN: "deferred", syscall.ESRCH: "gone",
		syscall.ENOENT: "changed", syscall.EFAULT: "failed", syscall.EINVAL: "failed",
	} {
		if got := OutcomeOf(errno).String(); got != want {
			t.Errorf("%v is %s, want %s", errno, got, want)
		}
	}
}

func TestFeatureError(t *testing.T) {
	err := error(&FeatureError{Name: "MOVE", Since: "6.8"})
	if !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "MOVE") || !strings.Contains(err.Error(), "6.8") {
		t.Errorf("%v", err)
	}
	if err := error(&FeatureError{Name: "0x20000"}); strings.Contains(err.Error(), "Linux") {
		t.Errorf("%v names a kernel that it does not know", err)
	}
}
