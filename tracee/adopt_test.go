// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
)

// agents kills the agent when its space is gone, or it would keep the memory
// alive.
type agents struct {
	NopHandler
	a     *inject.Agent
	forks int
}

func (h *agents) SpaceGone(*Space) {
	if h.a != nil {
		h.a.Kill()
	}
}

func (h *agents) Fork(_, _ *Process) { h.forks++ }

// An adopted task is no process of the tree, does not stop or die with the
// signals of the program's group, and its death is reported.
func TestAdopt(t *testing.T) {
	file := filepath.Join(t.TempDir(), "result")
	h := &agents{}
	tr := launched(t, h, tool(t, "sleeper"), "nanosleep", file)
	tr.Continue()
	exited := make(chan Status, 1)
	err := tr.Stopped(t.Context(), tr.Root().Space(), func(th *Thread) error {
		s, err := inject.Open(th.Tid())
		if err != nil {
			return err
		}
		if h.a, err = inject.Plant(s); err == nil {
			tr.Adopt(h.a.Tid(), func(st Status) {
				h.a.Exited()
				exited <- st
			})
		}
		return errors.Join(err, s.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
	defer h.a.Release()
	for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGTSTP, unix.SIGTERM, unix.SIGINT, unix.SIGCONT, unix.SIGUSR1} {
		if err := unix.Kill(h.a.Tid(), sig); err != nil {
			t.Fatal(err)
		}
		if pid, err := h.a.Call(unix.SYS_GETPID); err != nil || int(pid) != h.a.Tid() {
			t.Fatalf("after %v: %d, %v", sig, pid, err)
		}
	}
	if n := len(tr.Processes()); n != 1 {
		t.Errorf("%d processes", n)
	}
	ended(t, tr)
	if s := within(t, "the agent's death", exited); s.Signal() != unix.SIGKILL {
		t.Error(s)
	}
	within(t, "the end", tr.Done())
	if got, _ := os.ReadFile(file); string(got) != "0 0 0" || h.forks != 0 {
		t.Errorf("%q, %d forks", got, h.forks)
	}
}
