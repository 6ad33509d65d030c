// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package realtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/runner/internal/runtest"
)

// terminal is a shell on a pseudo-terminal, and what it has printed.
type terminal struct {
	t      *testing.T
	r      *runtest.Run
	master *os.File
	chunks chan []byte
	text   bytes.Buffer // all that came
	seen   int          // how much of it was expected
}

// openTerminal starts a command as the leader of a session on a new terminal
// that does not echo.
func openTerminal(t *testing.T, env []string, args ...string) *terminal {
	t.Helper()
	master, slave := testutil.Terminal(t)
	t.Cleanup(func() { master.Close() })
	defer slave.Close()
	r := runtest.New(t, args...)
	r.Cmd.Stdin, r.Cmd.Stdout, r.Cmd.Stderr = slave, slave, slave
	r.Cmd.Env = append(append(r.Cmd.Env, "PS1=", "HISTFILE="), env...)
	r.Cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	r.Start(t)
	tt := &terminal{t: t, r: r, master: master, chunks: make(chan []byte, 16)}
	go func() {
		defer close(tt.chunks)
		for {
			b := make([]byte, 4096)
			n, err := master.Read(b)
			if err != nil {
				return
			}
			tt.chunks <- b[:n]
		}
	}()
	return tt
}

// play types the first text of each step and waits until the second has been
// printed after what the steps before it have waited for. Its time is for a
// hang alone.
func (tt *terminal) play(steps [][2]string) {
	tt.t.Helper()
	timer := time.NewTimer(60 * time.Second)
	defer timer.Stop()
	for i, s := range steps {
		if _, err := tt.master.WriteString(s[0]); err != nil {
			tt.t.Fatal(err)
		}
		for {
			if at := bytes.Index(tt.text.Bytes()[tt.seen:], []byte(s[1])); at >= 0 {
				tt.seen += at + len(s[1])
				break
			}
			select {
			case chunk, ok := <-tt.chunks:
				if !ok {
					tt.t.Fatalf("step %d, %q: the terminal is closed after %q", i, s[0], &tt.text)
				}
				tt.text.Write(chunk)
			case <-timer.C:
				tt.t.Fatalf("step %d, %q: %q does not come after %q\n%s", i, s[0], s[1], &tt.text, tt.r.PostMortem())
			}
		}
	}
}

// wrapper makes a directory with a command named run, which runs its
// arguments: under faultline, or alone if bin is empty. So both are the same
// to the shell that starts it.
func wrapper(t *testing.T, bin string) string {
	t.Helper()
	dir := t.TempDir()
	text := "#!/bin/sh\nexec \"$@\"\n"
	if bin != "" {
		text = "#!/bin/sh\nexec " + bin + " run --limit 2MiB --store mem: --progress none -- \"$@\"\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "run"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// grow has a bash use some MiB, and so be engaged.
const grow = `a=$(seq 400000)`

// sitter is a program that holds memory, waits for a signal, and can be
// stopped, continued and killed at any time once it has said so. What is typed
// before it says so may be discarded by the control character behind it. It
// makes no processes: one that is stopped in vfork hangs its parent.
func sitter(t *testing.T) string {
	return runtest.Tool(t, "python3") + ` -c 'import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); ` +
		`signal.signal(signal.SIGCONT, lambda *_: print("back", flush=True)); ` +
		`b = bytearray(16 << 20); b[::4096] = b"x" * 4096; print("ready", flush=True)` + "\n" +
		`while 1: time.sleep(0.01)'`
}

// TestTerminal holds that on a terminal the same happens with and without
// faultline: where it is the job of a shell with job control, and where the
// shell is the program.
func TestTerminal(t *testing.T) {
	bash := runtest.Tool(t, "bash")
	reader := `run bash -c '` + grow + `; echo ready; ` +
		`while read -r line; do echo "read: $line ${#a}"; done; exit 6'` + "\n"
	for _, c := range []struct {
		name  string
		inner bool // the shell is the program
		steps [][2]string
	}{
		{"job", false, [][2]string{
			{reader, "ready\n"},
			{"hello\n", "read: hello 2688894\n"},
			{"\x1a", "Stopped"},
			{"fg\n", ""},
			{"again\n", "read: again 2688894\n"},
			{"\x1a", "Stopped"},
			{"echo $?\n", "148\n"},
			{"bg\n", "&\n"}, // and stops at its next read
			{"while [ \"$(jobs -s)\" = '' ]; do sleep 0.01; done; echo tt''in\n", "ttin\n"},
			{"fg\n", ""},
			{"more\n", "read: more 2688894\n"},
			{"\x04", ""},
			{"echo $?\n", "6\n"},
			{"exit\n", "exit\n"},
		}},
		{"fatal keys", false, [][2]string{
			{"ulimit -c 0; run " + sitter(t) + "\n", "ready\n"},
			{"\x03", ""},
			{"echo status $?\n", "status 130\n"},
			{"run " + sitter(t) + "\n", "ready\n"},
			{"\x1c", ""},
			{"echo status $?\n", "status 131\n"},
			{"run bash -c '" + grow + "; echo ready; cat | cat; exit 4'\n", "ready\n"},
			{"a\n", "a\n"},
			{"b\n", "b\n"},
			{"\x04", ""},
			{"echo status $?\n", "status 4\n"},
			{"exit\n", "exit\n"},
		}},
		{"shell", true, [][2]string{
			{grow + "; echo ${#a}\n", "2688894\n"},
			{sitter(t) + "\n", "ready\n"},
			{"\x1a", "Stopped"},
			{"jobs; echo $?\n", "0\n"},
			{"fg\n", "back\n"},
			{"\x1a", "Stopped"},
			{"fg\n", "back\n"},
			{"\x03", ""},
			{"echo status $? ${#a}\n", "status 130 2688894\n"},
			{"sleep 100 & cat | cat\n", ""},
			{"typed\n", "typed\n"},
			{"\x04", ""},
			{"kill %1; wait %1; echo status $?\n", "status 143\n"},
			{"(echo \"$a\" | sort -n -S 64M | tail -1; exit 9); echo status $?\n", "400000\nstatus 9\n"},
			{"exit 5\n", "exit\n"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bin := runtest.Command(t)
			var alone string
			for _, under := range []string{"", bin} {
				args := []string{bash, "--norc", "--noprofile", "--noediting", "-i"}
				if c.inner && under != "" {
					args = append([]string{under, "run", "--limit", "2MiB", "--store", "mem:", "--progress", "none", "--"}, args...)
				}
				tt := openTerminal(t, []string{"PATH=" + wrapper(t, under) + ":" + os.Getenv("PATH")}, args...)
				tt.play(c.steps)
				tt.r.Await(t, 20*time.Second)
				for chunk := range tt.chunks {
					tt.text.Write(chunk)
				}
				tt.r.NothingLeft(t)
				text := fmt.Sprintf("%s%v", settle(tt.text.String()), tt.r.Cmd.ProcessState)
				if under == "" {
					alone = text
				} else if text != alone {
					t.Errorf("the terminal shows\n%s\nand alone\n%s", text, alone)
				}
			}
		})
	}
}

// settle leaves out of a transcript what depends on time: process ids in
// "[1] 1234", when it is told that a job has stopped or ended, empty lines; and
// what faultline itself says.
func settle(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		var job, pid int
		n, _ := fmt.Sscanf(line, "[%d] %d", &job, &pid)
		switch {
		case n == 2, strings.TrimSpace(line) == "", strings.HasPrefix(line, "faultline: "),
			strings.HasPrefix(line, "[") && (strings.Contains(line, "Stopped") || strings.Contains(line, "Terminated")):
			continue
		}
		b.WriteString(line)
	}
	return b.String()
}

// TestFatalSignals kills engaged programs by each signal that can kill, from
// within: whoever waits for faultline sees the same as for the program.
func TestFatalSignals(t *testing.T) {
	bash := runtest.Tool(t, "bash")
	bin := runtest.Command(t)
	for sig := 1; sig <= 64; sig++ {
		if sig == 32 || sig == 33 { // the C library's own
			continue
		}
		if sig > 34 && sig < 64 && sig%10 != 0 && runtest.Smaller(0, 1) == 1 {
			continue // one real-time signal is as another
		}
		p := runtest.Program{Limit: 2 * runtest.MiB}
		args := []string{bash, "-c", "ulimit -c 0; " + grow + fmt.Sprintf("; kill -%d $$; kill -CONT $$; echo alive ${#a}", sig)}
		if sig >= 19 && sig <= 22 {
			continue // these stop; see TestStopped
		}
		alone := p.Run(t, args)
		o := p.Run(t, append([]string{bin, "run", "--limit", "2MiB", "--store", "mem:", "--stats", "--json", "--"}, args...))
		o.Split(t)
		if o.Status != alone.Status || !bytes.Equal(o.Stdout, alone.Stdout) {
			t.Errorf("signal %d: status %#x, %q; alone %#x, %q", sig, o.Status, o.Stdout, alone.Status, alone.Stdout)
		}
		if o.Stats == nil || o.Stats.Engaged == 0 {
			t.Errorf("signal %d: not engaged: %+v, %s", sig, o.Stats, o.Stderr)
		}
	}
}

// TestStopped stops and continues a program many times while its pages go out
// and in.
func TestStopped(t *testing.T) {
	python := runtest.Tool(t, "python3")
	runtest.Same(t, runtest.Program{
		Args:  []string{python, script(t, "lists.py"), "60000"},
		Limit: 4 * runtest.MiB, Stores: []string{"mem:"}, Stderr: true, Group: true,
		While: func(t *testing.T, r *runtest.Run) {
			// SIGSTOP in the middle of a vfork(2) would leave the parent there, which
			// does not stop then.
			awaitProgram(t, r, python)
			for i := range 30 {
				if !stopJob(t, r.PID(), []syscall.Signal{unix.SIGTSTP, unix.SIGSTOP}[i%2]) {
					return
				}
				time.Sleep(5 * time.Millisecond) // so that something happens
			}
		},
	})
}

// TestStoppedWhileStarting stops the job before the program's first
// instruction. A child that is stopped on its way to exec holds its parent in
// vfork(2), where that does not stop: the shell would wait for ever.
func TestStoppedWhileStarting(t *testing.T) {
	bin, program := runtest.Command(t), runtest.Tool(t, "true")
	for range 10 {
		cmd := exec.Command(bin, "run", "--limit", "16MiB", "--", program)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for stopJob(t, cmd.Process.Pid, unix.SIGTSTP) {
			if t.Failed() {
				_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
				break
			}
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
	}
}

// awaitProgram returns when a process of the run has program as its own.
func awaitProgram(t *testing.T, r *runtest.Run, program string) {
	t.Helper()
	program, err := filepath.EvalSymlinks(program)
	if err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(runtest.Patience); time.Now().Before(until); time.Sleep(time.Millisecond) {
		for _, pid := range r.Processes() {
			if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); exe == program {
				return
			}
		}
		select {
		case <-r.Ended:
			return
		default:
		}
	}
	t.Errorf("%s has not been started", program)
}

// stopJob stops a process group and continues it when its leader is stopped.
// It reports false if the leader has ended.
func stopJob(t *testing.T, leader int, sig syscall.Signal) bool {
	t.Helper()
	if unix.Kill(-leader, sig) != nil {
		return false
	}
	// It does not decide: a job that does not stop at once does not stop at all.
	const atOnce = 20 * time.Second
	state := "R"
	for until := time.Now().Add(atOnce); state != "T"; time.Sleep(time.Millisecond) {
		var err error
		if state, err = stateOf(leader); err != nil || state == "Z" {
			return false
		}
		if time.Now().After(until) {
			t.Errorf("signal %d does not stop the job: state %s", sig, state)
			break
		}
	}
	if err := unix.Kill(-leader, unix.SIGCONT); err != nil {
		t.Error(err)
	}
	return true
}

// stateOf returns the state of a process, proc_pid_stat(5).
func stateOf(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return rest[:1], nil
}
