// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package realtest

import (
	"bytes"
	"regexp"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/sandbox"
	"github.com/faultline-go/faultline/internal/workload"
)

var stressed = regexp.MustCompile(`metrc: \[\d+\] userfaultfd +(\d+) `)

// TestStress has the stressor of somebody else find no wrong page. Without us
// it finds that there is no such call, which shows that the surroundings are
// what they are said to be.
//
// In a container it once ended well and had not had a single page: its child,
// made by clone(2) with CLONE_VM, was taken for one with a memory of its own,
// as kcmp(2) is refused there.
func TestStress(t *testing.T) {
	stress := installed(t, "stress-ng", "stress-ng")
	for _, s := range surroundings {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			args := []string{"--userfaultfd", "2", "--timeout", "1", "--verify", "--metrics-brief"}
			out, _ := command(t, s.o, true, stress, args...).CombinedOutput()
			if n := pages(out); n != 0 {
				t.Fatalf("%d pages without us\n%s", n, out)
			}
			args[3] = "3"
			out, err := command(t, s.o, false, stress, args...).CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte("successful run completed")) || pages(out) == 0 {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// pages returns how many operations stress-ng has counted.
func pages(out []byte) int {
	m := stressed.FindSubmatch(out)
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(string(m[1])) // digits
	return n
}

// TestChecked runs the programs of the tests of package provider where least
// is allowed. They end with an error where a page is not what it should be.
func TestChecked(t *testing.T) {
	for program, runs := range map[string][][]string{
		"provide": {{"fault", "500"}, {"copy", "500"}, {"bulk", "1600"}, {"reads", "500"}, {"alone", "500"}},
		"uffdodd": {{"forkread"}, {"forkpoll"}, {"malformed"}, {"vector"}, {"hole"}, {"leave"}, {"signal"}},
	} {
		path := copied(t, workload.Build(t, program))
		for _, args := range runs {
			t.Run(program+" "+args[0], func(t *testing.T) {
				if out, err := command(t, userContainer, false, path, args...).CombinedOutput(); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
}

// TestOwnStatus refuses what we cannot do without: that is a failure of ours,
// which names the remedy. It was said to be a program that cannot be executed.
func TestOwnStatus(t *testing.T) {
	program := workload.Build(t, "provide")
	for name, nr := range map[string]uint32{
		"ptrace": unix.SYS_PTRACE, "seccomp": unix.SYS_SECCOMP, "memfd_create": unix.SYS_MEMFD_CREATE,
		"process_vm_writev": unix.SYS_PROCESS_VM_WRITEV, "pidfd_open": unix.SYS_PIDFD_OPEN,
	} {
		t.Run(name, func(t *testing.T) {
			cmd := command(t, sandbox.Options{Refuse: []sandbox.Refusal{{Call: nr, Errno: unix.EPERM}}}, false, program, "fault", "1")
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != 125 || !bytes.Contains(out, []byte("allow "+name+" in the seccomp profile")) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
