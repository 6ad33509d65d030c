// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/sandbox"
)

// Tasks made in every way: the program's own checks hold, and nothing is
// left in the tracer.
func TestTasks(t *testing.T) {
	bin := tool(t, "tasks")
	for _, tc := range []struct {
		what  string
		forks int // -1: differs from run to run
	}{
		{"fork", 200}, {"many", 1000}, {"vfork", 2}, {"spawn", 2}, {"clone", 8}, {"threads", 0},
		{"exec", 1}, {"execleader", 1}, {"leader", 1}, {"killed", -1}, {"stops", 1}, {"queued", 0},
	} {
		t.Run(tc.what, func(t *testing.T) {
			report := filepath.Join(t.TempDir(), "report")
			cmd := mini(t, "-report", report, bin, tc.what)
			out, err := cmd.Output()
			if err != nil || string(out) != "ok\n" {
				t.Fatalf("%q, %v", out, err)
			}
			got, err := os.ReadFile(report)
			if err != nil {
				t.Fatal(err)
			}
			want := clean(tc.forks)
			if tc.forks < 0 {
				_, got, _ = bytes.Cut(got, []byte(" forks"))
				_, wantTail, _ := bytes.Cut([]byte(want), []byte(" forks"))
				want = string(wantTail)
			}
			if string(got) != want {
				t.Errorf("left: %s\nwant: %s", got, want)
			}
		})
	}
}

// spaces records which processes share memory.
type spaces struct {
	NopHandler
	shared, copied int
	old            []bool // for each exec: whether the old space lives on
}

func (s *spaces) Fork(parent, child *Process) {
	if parent.Space() == child.Space() {
		s.shared++
	} else {
		s.copied++
	}
}

func (s *spaces) Exec(p *Process, old *Space) {
	if old != nil {
		s.old = append(s.old, old.Pid() != 0)
	}
}

func TestSharedSpaces(t *testing.T) {
	bin := tool(t, "tasks")
	for what, want := range map[string]spaces{
		"fork":  {copied: 200},
		"vfork": {shared: 2, old: []bool{true}},
		"spawn": {shared: 2, old: []bool{true}},
		"exec":  {copied: 1, old: []bool{false}},
		// Of the eight, two are made with CLONE_VM.
		"clone": {shared: 2, copied: 6},
	} {
		h := &spaces{}
		tr := launched(t, h, bin, what)
		if s := ended(t, tr); s.Code() != 0 {
			t.Fatal(what, s)
		}
		if h.shared != want.shared || h.copied != want.copied || len(h.old) != len(want.old) ||
			len(h.old) > 0 && h.old[0] != want.old[0] {
			t.Errorf("%s: %+v, want %+v", what, *h, want)
		}
	}
}

// TestSharedSpacesWithoutKcmp is TestSharedSpaces in a container, where kcmp(2)
// is refused: a child that was made with CLONE_VM had a space of its own.
func TestSharedSpacesWithoutKcmp(t *testing.T) {
	tool(t, "tasks") // or there is nothing to run
	cmd, err := sandbox.Command(t.Context(), sandbox.Options{Refuse: []sandbox.Refusal{{Call: unix.SYS_KCMP, Errno: unix.EPERM}}},
		"/proc/self/exe", "-test.run=^TestSharedSpaces$", "-test.v")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Dir = "" // the test compiles its program
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestSharedSpaces")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// A daemon that outlives the root program is followed to its own end.
func TestDaemon(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	h := &statuses{}
	tr := launched(t, h, tool(t, "tree"), "daemon", fifo)
	if s := ended(t, tr); s.Code() != 3 {
		t.Fatal(s)
	}
	// Opening succeeds only when the daemon, traced and alive, opens it too.
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-tr.Done():
		t.Fatal("done before the daemon")
	default:
	}
	if n := len(tr.Processes()); n == 0 {
		t.Error("no process is known any more")
	}
	f.Close()
	within(t, "the daemon's end", tr.Done())
	slices.Sort(h.codes) // the process in between may end before or after the daemon
	if !slices.Equal(h.codes, []int{0, 3, 4}) {
		t.Errorf("statuses %v", h.codes)
	}
}

type statuses struct {
	NopHandler
	codes []int
}

func (s *statuses) Exited(_ *Process, st Status) { s.codes = append(s.codes, st.Code()) }

// H7: with the supervisor dies every process and thread of the tree, at once.
func TestSupervisorKilled(t *testing.T) {
	bin := tool(t, "tree")
	for range 20 {
		cmd := mini(t, bin)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		// Each process of the tree holds the pipe open.
		closed := make(chan error, 1)
		go func() {
			_, err := io.ReadAll(out)
			closed <- err
		}()
		if err := within(t, "the tree to die", closed); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
	}
}

func TestKill(t *testing.T) {
	h := &statuses{}
	tr := launched(t, h, "/bin/sh", "-c", "while :; do (sleep 100 & sleep 100 & /bin/true) & done")
	tr.Continue()
	for tr.spacesMade() < 100 {
	}
	tr.Kill()
	within(t, "the tree to die", tr.Done())
	if s, _ := tr.Wait(); s.Signal() != unix.SIGKILL {
		t.Error(s)
	}
}

func (t *Tracer) spacesMade() (n uint64) {
	t.Do(func() { n = t.spaces })
	return n
}

// calls counts what the filter of testdata/filter.c reports.
type calls struct {
	NopHandler
	t           *testing.T
	enter, exit []Call
}

func (c *calls) SyscallEnter(th *Thread) bool {
	call, err := th.Call()
	if err != nil {
		c.t.Error(err)
	}
	c.enter = append(c.enter, call)
	return len(c.enter) > 1
}

func (c *calls) SyscallExit(th *Thread) {
	call, err := th.Call()
	if err != nil {
		c.t.Error(err)
	}
	c.exit = append(c.exit, call)
}

func TestTracedCalls(t *testing.T) {
	h := &calls{t: t}
	if s := ended(t, launched(t, h, tool(t, "filter"))); s.Code() != 0 {
		t.Fatal(s)
	}
	if len(h.enter) != 2 || len(h.exit) != 1 {
		t.Fatalf("%d enters and %d exits", len(h.enter), len(h.exit))
	}
	e, x := h.enter[1], h.exit[0]
	if e.Nr != unix.SYS_GETPRIORITY || e.Args[0] != 12345 || e.Args[1] != 678 || e.Data != 77 || !e.Native {
		t.Errorf("enter: %+v", e)
	}
	if x.Errno != unix.EINVAL || !x.Native {
		t.Errorf("exit: %+v", x)
	}
}
