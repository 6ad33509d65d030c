// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/workload/measure"
	"github.com/faultline-go/faultline/runner/internal/runtest"
)

const (
	// atOnce bounds what has to happen at once. It is not what decides: what
	// does not happen at once does not happen at all.
	atOnce = 20 * time.Second
	// wrongStatus is that of a workload program which saw a wrong page.
	wrongStatus = 99
	// endurance is how long a program may go on after what was done to it. It does not
	// decide either: what hangs does so for ever.
	endurance = 60 * time.Second
)

// scene is what a test does something bad to.
type scene struct {
	limit uint64   // bytes
	store string   // a store URL
	args  []string // the program and its arguments
	stdin bool     // the program gets a pipe that victim.say writes to
	env   []string // besides the test's own
}

// victim is faultline with a program under it.
type victim struct {
	*runtest.Run
	program string // its file
	stderr  *os.File
	stdin   io.WriteCloser

	mu    sync.Mutex
	more  sync.Cond
	lines []string // of the program's stdout; protected by mu
	eof   bool     // nobody holds the program's stdout; protected by mu
	next  int      // number of the first line that expect has not seen
}

// start begins a scene. What is left of it when the test ends is killed.
func (s *scene) start(t *testing.T) *victim {
	t.Helper()
	bin := runtest.Command(t)
	args := append([]string{bin, "run", "--limit", fmt.Sprint(s.limit), "--store", s.store, "--json", "--stats", "--"}, s.args...)
	v := &victim{Run: runtest.New(t, args...), program: s.args[0]}
	v.more.L = &v.mu
	v.stderr = runtest.Create(t, t.TempDir(), "stderr")
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	v.Cmd.Stdout, v.Cmd.Stderr = in, v.stderr
	v.Cmd.Env = append(v.Cmd.Env, s.env...)
	if s.stdin {
		if v.stdin, err = v.Cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { v.stderr.Close() })
	v.Start(t)
	in.Close()
	go v.read(out)
	return v
}

func (v *victim) read(out *os.File) {
	in := bufio.NewScanner(out)
	for in.Scan() {
		v.mu.Lock()
		v.lines = append(v.lines, in.Text())
		v.mu.Unlock()
		v.more.Broadcast()
	}
	out.Close()
	v.mu.Lock()
	v.eof = true
	v.mu.Unlock()
	v.more.Broadcast()
}

// expect waits for the next line of the program that begins with prefix, and
// returns the number behind that. It fails the test if none comes.
func (v *victim) expect(t *testing.T, prefix string) (n int) {
	t.Helper()
	what := fmt.Sprintf("a line %q", prefix)
	v.await(t, what, func() bool {
		for ; v.next < len(v.lines); v.next++ {
			if rest, ok := strings.CutPrefix(v.lines[v.next], prefix+" "); ok {
				v.next++
				var err error
				if n, err = strconv.Atoi(rest); err != nil {
					t.Fatal(err)
				}
				return true
			}
		}
		if v.eof {
			v.missed(t, what)
		}
		return false
	})
	return n
}

// await returns when come does, which is called with v.mu held and again with each line of
// the program and at its end. It fails the test if that takes too long.
func (v *victim) await(t *testing.T, what string, come func() bool) {
	t.Helper()
	late := false
	timer := time.AfterFunc(endurance, func() {
		v.mu.Lock()
		late = true
		v.mu.Unlock()
		v.more.Broadcast()
	})
	defer timer.Stop()
	v.mu.Lock()
	defer v.mu.Unlock()
	for !come() {
		if late {
			v.missed(t, what)
		}
		v.more.Wait()
	}
}

// missed fails the test for what the program did not do. Preconditions: v.mu is held.
func (v *victim) missed(t *testing.T, what string) {
	t.Helper()
	t.Fatalf("%s did not come; lines %q, stderr:\n%s\n%s",
		what, v.lines[max(0, len(v.lines)-20):], runtest.Tail(runtest.Contents(t, v.stderr)), v.PostMortem())
}

// numbers returns what stands behind prefix in the lines of the program.
func (v *victim) numbers(prefix string) (list []uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, line := range v.lines {
		if rest, ok := strings.CutPrefix(line, prefix+" "); ok {
			if n, err := strconv.ParseUint(rest, 10, 64); err == nil {
				list = append(list, n)
			}
		}
	}
	return list
}

// say writes a line to the program.
func (v *victim) say(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(v.stdin, line+"\n"); err != nil {
		t.Fatal(err)
	}
}

func comm(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(b))
}

// agents lists those that live: tasks of our name that have the memory of a
// program.
func (v *victim) agents() (list []int) {
	all := v.Processes()
	for _, pid := range all {
		if pid == v.PID() || comm(pid) != measure.AgentName {
			continue
		}
		if slices.ContainsFunc(all, func(o int) bool { return comm(o) != measure.AgentName && measure.SharesMemory(o, pid) }) {
			list = append(list, pid)
		}
	}
	return list
}

// target returns the program's first process, once that runs. Faultline has
// had other children before.
func (v *victim) target(t *testing.T) int {
	t.Helper()
	for until := time.Now().Add(atOnce); time.Now().Before(until); time.Sleep(time.Millisecond) {
		for _, pid := range measure.Tree(v.PID()) {
			argv, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if name, _, _ := strings.Cut(string(argv), "\x00"); name == v.program {
				return pid
			}
		}
	}
	t.Fatalf("there is no program: %s", v.PostMortem())
	return 0
}

// agent waits until there is one that is none of old, and returns it, or 0 if
// the program has ended.
func (v *victim) agent(t *testing.T, old ...int) int {
	t.Helper()
	for until := time.Now().Add(endurance); time.Now().Before(until); time.Sleep(time.Millisecond) {
		for _, pid := range v.agents() {
			if !slices.Contains(old, pid) {
				return pid
			}
		}
		select {
		case <-v.Ended:
			return 0
		default:
		}
	}
	t.Fatalf("no agent has come; stderr:\n%s\n%s", runtest.Tail(runtest.Contents(t, v.stderr)), v.PostMortem())
	return 0
}

// death is a task that is expected to die.
type death struct {
	pid, fd int
	comm    string
}

// everybody opens all that lives of the run, so that its death can be told
// from that of another which was given its number.
func (v *victim) everybody() (list []death) {
	for _, pid := range v.Processes() {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			list = append(list, death{pid, fd, comm(pid)})
		}
	}
	return list
}

// mustDie holds that all of them die at once, and returns how long the last
// one took.
func (v *victim) mustDie(t *testing.T, list []death) time.Duration {
	t.Helper()
	began := time.Now()
	for _, d := range list {
		p := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(p, int(time.Until(began.Add(atOnce)).Milliseconds()))
			if err == unix.EINTR {
				continue
			}
			if n != 1 || err != nil {
				t.Errorf("%d %s lives on: %v\n%s", d.pid, d.comm, err, v.PostMortem())
			}
			break
		}
		unix.Close(d.fd)
	}
	return time.Since(began)
}

// kill sends a signal to one process of the run.
func (v *victim) kill(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil && err != syscall.ESRCH {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

// finish waits for the end and holds what must be true of every end: nobody
// saw a wrong page, and nothing is left. It returns the outcome.
func (v *victim) finish(t *testing.T) *runtest.Outcome {
	t.Helper()
	v.Await(t, endurance)
	v.NothingLeft(t)
	v.mu.Lock()
	timer := time.AfterFunc(atOnce, func() { v.more.Broadcast() })
	for began := time.Now(); !v.eof && time.Since(began) < atOnce; {
		v.more.Wait()
	}
	if !v.eof {
		t.Error("somebody holds the program's stdout")
	}
	v.mu.Unlock()
	timer.Stop()
	o := &runtest.Outcome{Stderr: runtest.Contents(t, v.stderr)}
	o.Status, _ = v.Cmd.ProcessState.Sys().(syscall.WaitStatus)
	o.Split(t)
	if len(o.Stderr) > 0 || o.Status.ExitStatus() == wrongStatus {
		t.Errorf("%v: status %#x, stderr:\n%s", v.Cmd.Args, o.Status, runtest.Tail(o.Stderr))
	}
	return o
}

// quiet holds that faultline had nothing to say, except that for a moment
// nothing could leave: a fork makes pages unmovable until they are copied.
func quiet(t *testing.T, o *runtest.Outcome) {
	t.Helper()
	for _, n := range o.Notes {
		if strings.Contains(n, "memory grows past the limit") || strings.Contains(n, "can leave memory again") {
			t.Log(n)
			continue
		}
		t.Errorf("it says: %s", n)
	}
}

// mustExit is finish, and holds that the status is code and no page was lost.
func (v *victim) mustExit(t *testing.T, code int) *runtest.Outcome {
	t.Helper()
	o := v.finish(t)
	if o.Status.ExitStatus() != code {
		t.Errorf("%v: status %#x, want %d; notes:\n%s", v.Cmd.Args, o.Status, code, strings.Join(o.Notes, "\n"))
	}
	if o.Stats == nil || o.Stats.Pages.Lost != 0 || o.Stats.Pages.Out == 0 {
		t.Errorf("%v: %+v", v.Cmd.Args, o.Stats)
	}
	return o
}

// statusOf returns the lines of proc_pid_status(5).
func statusOf(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			fields[key] = strings.TrimSpace(value)
		}
	}
	return fields
}

func countFiles(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
