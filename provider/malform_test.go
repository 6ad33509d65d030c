// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/workload"
)

var (
	seeds    = flag.Int("seeds", 12, "how many runs of malformed calls to compare")
	seed     = flag.Int("seed", 1, "the seed of the first")
	malforms = flag.Int("calls", 400, "how many calls there are in each")
)

// TestMalformed makes malformed calls at random, the same on the kernel's call as
// on ours, and holds that they come to the same. Where they do not, the kernel is
// right: with a third argument, a list of indices, the program makes only some of
// its calls.
//
//	go test ./provider -run TestMalformed -args -seeds 300 -seed 1000 -calls 800
//
// One seed in some hundreds differs by what only the kernel knows: which pages a
// read has brought in around it where memory is registered for protection or MINOR
// alone, whether a file in memory has a page of zeros where a private mapping was
// given one of its own, whether memory with poison in it that nobody has registered
// any more is one mapping, and that the processor reads what may only be written.
func TestMalformed(t *testing.T) {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	testutil.Need(t, err == nil && strings.HasPrefix(string(release), "6.18."), "vkernel is like Linux 6.18, and this is "+string(release))
	needCall(t)
	program := workload.Build(t, "malform")
	faultline := command(t)
	for s := *seed; s < *seed+*seeds; s++ {
		args := []string{program, strconv.Itoa(s), strconv.Itoa(*malforms)}
		kernel := trace(t, args)
		provided := trace(t, append([]string{faultline, "provide", "--"}, args...))
		if diff := firstDifference(kernel, provided); diff != "" {
			t.Errorf("%v:\n%s", args[1:], diff)
		}
	}
}

// needCall skips the test where the kernel has not got the call for us.
func needCall(t *testing.T) {
	t.Helper()
	testutil.Need(t, os.Geteuid() == 0, "the kernel's call needs root")
	_, err := os.Stat("/dev/userfaultfd")
	testutil.Need(t, err == nil, "there is no /dev/userfaultfd")
}

// trace returns what a program has printed.
func trace(t *testing.T, args []string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%v: %v\n%s", args, err, &stderr)
	}
	return out
}

// firstDifference returns where two traces part, with some lines before.
func firstDifference(kernel, provided []byte) string {
	if bytes.Equal(kernel, provided) {
		return ""
	}
	k, p := strings.Split(string(kernel), "\n"), strings.Split(string(provided), "\n")
	i := 0
	for i < len(k)-1 && i < len(p)-1 && k[i] == p[i] {
		i++
	}
	return fmt.Sprintf("%s\nthe kernel's call:\n%s\nprovided:\n%s",
		strings.Join(k[max(i-5, 0):i], "\n"), k[i], p[i])
}
