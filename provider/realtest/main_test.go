// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package realtest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/sandbox"
	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/workload/measure"
)

// budget is how long a program may take before it counts as a hang.
const budget = time.Minute

// public is a directory that everybody may enter and write to, as t.TempDir is
// not.
var public string

func TestMain(m *testing.M) {
	sandbox.Main()
	testutil.DefaultSignals()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if public, err = os.MkdirTemp("", "faultline-real-"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(public)
	if err := os.Chmod(public, 0o1777); err != nil {
		panic(err)
	}
	return m.Run()
}

var build = sync.OnceValues(func() (string, error) { return measure.Faultline(context.Background(), public) })

// The surroundings that a program may be in.
var (
	refusedEPERM  = sandbox.Options{Refuse: []sandbox.Refusal{{Call: unix.SYS_USERFAULTFD, Errno: unix.EPERM}}}
	refusedENOSYS = sandbox.Options{Refuse: []sandbox.Refusal{{Call: unix.SYS_USERFAULTFD, Errno: unix.ENOSYS}}}
	container     = sandbox.Options{Container: true}
	user          = sandbox.Options{User: sandbox.Nobody}
	userContainer = sandbox.Options{User: sandbox.Nobody, Container: true}
)

var surroundings = []struct {
	name string
	o    sandbox.Options
}{
	{"EPERM", refusedEPERM},
	{"ENOSYS", refusedENOSYS},
	{"container", container},
	{"user", user},
	{"user in a container", userContainer},
}

// command returns a command that runs a program in surroundings, and there
// under faultline provide unless bare is set.
func command(t *testing.T, o sandbox.Options, bare bool, path string, args ...string) *exec.Cmd {
	t.Helper()
	testutil.Need(t, os.Geteuid() == 0 || !o.Container && o.User == 0, "only root can give up what it has")
	if !bare {
		faultline, err := build()
		if err != nil {
			t.Fatal(err)
		}
		path, args = faultline, append([]string{"provide", "--", path}, args...)
	}
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	t.Cleanup(cancel)
	cmd, err := sandbox.Command(ctx, o, path, args...)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Dir = public
	return cmd
}

// copied returns a copy of a program where everybody can run it.
func copied(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(public, filepath.Base(path))
	// Written by a process that makes no others meanwhile, or one of them
	// would have it open for writing when it is run.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(to, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return to
}

// installed returns the path of a program that a Debian package has.
func installed(t *testing.T, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	testutil.Need(t, err == nil, name+" is not installed: apt install "+debian)
	return path
}
