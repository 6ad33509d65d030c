// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider_test

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/internal/workload/measure"
)

// built is the command, made once for all tests.
var built struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// command returns the path of faultline.
func command(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "faultline-provider-"); built.err == nil {
			built.path, built.err = measure.Faultline(t.Context(), built.dir)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

func TestMain(m *testing.M) {
	flag.Parse()
	status := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(status)
}

// TestProgram runs a C program that knows nothing of us, and that ends with an
// error where a page is not what its own handler gave: faults, copies of one and
// of many pages, reads beside registered memory.
func TestProgram(t *testing.T) {
	program := workload.Build(t, "provide")
	faultline := command(t)
	for _, args := range [][]string{{"fault", "2000"}, {"copy", "2000"}, {"bulk", "6400"}, {"reads", "2000"}, {"alone", "2000"}, {"work", "1"}} {
		t.Run(args[0], func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			out, err := exec.CommandContext(ctx, faultline, append([]string{"provide", "--", program}, args...)...).CombinedOutput()
			if err != nil {
				t.Errorf("%v: %v\n%s", args, err, out)
			}
		})
	}
}

// TestOdd has what went wrong once, each in a program that ends well on the
// kernel's own call: a child that was never let go from a read or a poll; a
// request for a range that cannot be, which kept us busy for ever; a vector in a
// missing page; holes, which left zeros, the more so if threads fault meanwhile; memory that is given up while threads
// fault in it; the program's own handler of SIGSEGV; another process with the
// same table of descriptors, which read from a pipe, and the other way round, for
// each of whose messages a tenth of a second was waited; the vDSO, of which parts
// were to lose their permissions; a descriptor that was taken by a process that
// had none, which read from a pipe; a process_vm_readv of a process that dies, which
// slept for ever; and a request's argument that is missing,
// which the message said was written.
func TestOdd(t *testing.T) {
	program := workload.Build(t, "uffdodd")
	faultline := command(t)
	for _, name := range []string{"forkread", "forkpoll", "malformed", "vector", "hole", "holes", "unwatched", "leave", "signal", "table", "many", "vdso", "taken", "bereft", "argument"} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if out, err := exec.CommandContext(ctx, faultline, "provide", "--", program, name).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// TestStatus passes the program's status on.
func TestStatus(t *testing.T) {
	faultline := command(t)
	for script, want := range map[string]int{"exit 7": 7, "exit 0": 0} {
		cmd := exec.CommandContext(t.Context(), faultline, "provide", "--", "/bin/sh", "-c", script)
		_ = cmd.Run() // the status tells
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("%q ended with %d", script, got)
		}
	}
	out, err := exec.CommandContext(t.Context(), faultline, "provide", "--", "/no/such/program").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "not found") {
		t.Errorf("a program that does not exist: %v %s", err, out)
	}
}
