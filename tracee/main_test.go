// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/faultline-go/faultline/internal/sandbox"
	"github.com/faultline-go/faultline/internal/testutil"
)

// budget is how long anything here may take before it counts as a hang.
const budget = 20 * time.Second

// miniName as the first argument makes the test binary a supervisor.
const miniName = "tracee-mini-supervisor"

func TestMain(m *testing.M) {
	sandbox.Main()
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case miniName:
			miniMain(os.Args[2:])
		case driverName:
			driverMain(os.Args[2:])
		}
	}
	testutil.DefaultSignals()
	code := m.Run()
	if toolDir != "" {
		os.RemoveAll(toolDir)
	}
	os.Exit(code)
}

// miniMain is a supervisor that does nothing but supervise: what the command
// does with a program whose memory is never short.
func miniMain(args []string) {
	fl := flag.NewFlagSet(miniName, flag.ExitOnError)
	report := fl.String("report", "", "write what is left of the tree to this `file`")
	whole := fl.Bool("whole", false, "wait for the whole tree")
	_ = fl.Parse(args)
	fail := func(code int, err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(code)
	}
	path, err := exec.LookPath(fl.Arg(0))
	if err != nil {
		path = fl.Arg(0)
	}
	h := &counter{}
	t, err := Start(Options{Path: path, Argv: fl.Args(), Env: os.Environ(), Handler: h})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		fail(127, err)
	case err != nil:
		fail(126, err)
	}
	t.Relay()
	t.Continue()
	s, err := t.Wait()
	if err != nil {
		fail(125, err)
	}
	if *whole || *report != "" {
		<-t.Done()
	}
	if *report != "" {
		left := fmt.Sprintf("%d threads, %d processes, %d parked, %d foreign; %s",
			len(t.threads), len(t.procs), len(t.parked), len(t.foreign), h.String())
		if err := os.WriteFile(*report, []byte(left), 0o600); err != nil {
			fail(125, err)
		}
	}
	MirrorExit(s)
}

// counter checks that callbacks come in pairs.
type counter struct {
	NopHandler
	execs, forks, spaces, gone, exits int
	live                              map[*Space]bool
	bad                               []string
}

func (c *counter) note(s *Space) {
	if c.live == nil {
		c.live = map[*Space]bool{}
	}
	if !c.live[s] {
		c.spaces++
		c.live[s] = true
	}
}

func (c *counter) Exec(p *Process, _ *Space) { c.execs++; c.note(p.Space()) }

func (c *counter) Fork(parent, child *Process) {
	c.forks++
	c.note(child.Space())
	if parent == child {
		c.bad = append(c.bad, "a process is its own parent")
	}
}

func (c *counter) SpaceGone(s *Space) {
	c.gone++
	if !c.live[s] {
		c.bad = append(c.bad, fmt.Sprintf("space %d is gone twice, or was never there", s.ID()))
	}
	delete(c.live, s)
}

func (c *counter) Exited(*Process, Status) { c.exits++ }

func (c *counter) String() string {
	return fmt.Sprintf("%d forks, %d unmatched exits, %d unmatched spaces%s",
		c.forks, c.exits-c.forks-1, c.spaces-c.gone, strings.Join(c.bad, "; "))
}

// clean is the report of a mini supervisor that has lost nothing.
func clean(forks int) string {
	return fmt.Sprintf("0 threads, 0 processes, 0 parked, 0 foreign; %d forks, 0 unmatched exits, 0 unmatched spaces", forks)
}

// mini returns the command that runs args under a supervisor.
func mini(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, append([]string{miniName}, args...)...)
	cmd.Stderr = os.Stderr
	timer := time.AfterFunc(budget, func() {
		t.Errorf("%v hangs", args)
		cmd.Process.Kill()
	})
	t.Cleanup(func() { timer.Stop() })
	return cmd
}

// tool compiles a C program of testdata and returns its path.
func tool(t testing.TB, name string) string {
	t.Helper()
	_, err := exec.LookPath("gcc")
	testutil.Need(t, err == nil, "needs gcc")
	toolMu.Lock()
	defer toolMu.Unlock()
	if toolDir == "" {
		if toolDir, err = os.MkdirTemp("", "tracee-test-"); err != nil {
			t.Fatal(err)
		}
	}
	bin := filepath.Join(toolDir, name)
	if _, err := os.Stat(bin); err == nil {
		return bin
	}
	out, err := exec.Command("gcc", "-O1", "-pthread", "-o", bin, filepath.Join("testdata", name+".c")).CombinedOutput()
	if err != nil {
		t.Fatalf("gcc %s.c: %v\n%s", name, err, out)
	}
	return bin
}

var (
	toolMu  sync.Mutex
	toolDir string
)
