// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provided

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/internal/workload/measure"
)

// TestWalk has a C program go through each request, mode and event once, and find
// the same on the kernel's call as on ours.
func TestWalk(t *testing.T) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	testutil.Need(t, errno == 0, "userfaultfd: "+errno.Error())
	_ = unix.Close(int(fd))
	program := workload.Build(t, "uffdwalk")
	faultline, err := measure.Faultline(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	kernel := output(t, program)
	ours := output(t, faultline, "provide", "--", program)
	if d := cmp.Diff(kernel, ours); d != "" {
		t.Errorf("kernel and ours differ:\n%s", d)
	}
}

func output(t *testing.T, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Logf("%s", exit.Stderr)
		}
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}
