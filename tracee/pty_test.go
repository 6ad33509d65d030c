// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
)

// driverName as the first argument makes the test binary a shell with job
// control that runs one job. It takes commands from descriptor 3 (fg, and
// "kill PID|0 SIGNAL" with 0 for the job's group, 1 for its leader) and
// reports changes of the job on descriptor 4.
const driverName = "tracee-job-driver"

func driverMain(args []string) {
	runtime.LockOSThread()
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	foreground := args[0] == "fg"
	path, err := exec.LookPath(args[1])
	if err != nil {
		path = args[1]
	}
	pid, err := syscall.ForkExec(path, args[1:], &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Setpgid: true, Foreground: foreground, Ctty: 0},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	signal.Ignore(unix.SIGTTOU) // to give the terminal away from the background
	go func() {
		sc := bufio.NewScanner(os.NewFile(3, "commands"))
		for sc.Scan() {
			var who, sig int
			if sc.Text() == "fg" {
				_ = unix.IoctlSetPointerInt(0, unix.TIOCSPGRP, pid)
				_ = unix.Kill(-pid, unix.SIGCONT)
			} else if n, _ := fmt.Sscanf(sc.Text(), "kill %d %d", &who, &sig); n == 2 {
				_ = unix.Kill([]int{-pid, pid}[who], unix.Signal(sig))
			}
		}
		_ = unix.Kill(-pid, unix.SIGKILL)
		os.Exit(1)
	}()
	report := os.NewFile(4, "report")
	for {
		var ws unix.WaitStatus
		_, err := unix.Wait4(pid, &ws, unix.WUNTRACED, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			os.Exit(1)
		case ws.Stopped():
			fmt.Fprintf(report, "stopped %d\n", ws.StopSignal())
		case ws.Signaled():
			fmt.Fprintf(report, "signaled %d\n", ws.Signal())
			os.Exit(0)
		default:
			fmt.Fprintf(report, "exited %d\n", ws.ExitStatus())
			os.Exit(0)
		}
	}
}

// terminal is the test's end of a pseudo-terminal on which a job runs.
type terminal struct {
	t        *testing.T
	master   *os.File
	commands io.WriteCloser
	lines    chan string // of the terminal
	reports  chan string // of the driver
}

func openTerminal(t *testing.T, how string, job ...string) *terminal {
	t.Helper()
	master, slave := testutil.Terminal(t)
	defer slave.Close()
	tt := &terminal{t: t, master: master}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	inR, inW, _ := os.Pipe()
	outR, outW, _ := os.Pipe()
	cmd := exec.Command(exe, append([]string{driverName, how}, job...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.ExtraFiles = []*os.File{inR, outW}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	inR.Close()
	outW.Close()
	tt.commands = inW
	tt.lines, tt.reports = lineChan(tt.master), lineChan(outR)
	t.Cleanup(func() {
		inW.Close() // ends the driver
		cmd.Wait()
		tt.master.Close()
		outR.Close()
	})
	return tt
}

// lineChan reads lines until the other side is closed.
func lineChan(r io.Reader) chan string {
	ch := make(chan string, 100)
	go func() {
		defer close(ch)
		for sc := bufio.NewScanner(r); sc.Scan(); {
			ch <- sc.Text()
		}
	}()
	return ch
}

// play runs a script: "<" the program prints this line next, ">" is typed,
// "!" is a command to the driver, "=" is its next report.
func (tt *terminal) play(script ...string) {
	tt.t.Helper()
	for i, step := range script {
		arg := step[1:]
		switch step[0] {
		case '<':
			if got := within(tt.t, step, tt.lines); got != arg {
				tt.t.Fatalf("step %d: the program prints %q, want %q", i, got, arg)
			}
		case '=':
			if got := within(tt.t, step, tt.reports); got != arg {
				tt.t.Fatalf("step %d: the shell sees %q, want %q", i, got, arg)
			}
		case '>':
			if _, err := tt.master.WriteString(arg); err != nil {
				tt.t.Fatal(err)
			}
		case '!':
			if _, err := io.WriteString(tt.commands, arg+"\n"); err != nil {
				tt.t.Fatal(err)
			}
		case 'w':
			ws := &unix.Winsize{Row: 30, Col: uint16(80 + i)}
			if err := unix.IoctlSetWinsize(int(tt.master.Fd()), unix.TIOCSWINSZ, ws); err != nil {
				tt.t.Fatal(err)
			}
		}
	}
}

// The same happens on the terminal, and the shell sees the same, whether
// the program runs alone or traced.
func TestTerminal(t *testing.T) {
	tty, sigs := tool(t, "tty"), tool(t, "sigs")
	for _, tc := range []struct {
		name   string
		how    string
		job    []string
		script []string
	}{
		{"read and stop", "fg", []string{tty}, []string{
			"<ready", ">hello\n", "<read: hello",
			">\x03", "<interrupted", ">once\n", "<read: once",
			">\x1a", "=stopped 20", "!fg", "<continued", ">again\n", "<read: again",
			">\x1a", "=stopped 20", "!fg", "<continued", ">\x03", "<interrupted",
			">quit\n", "=exited 6",
		}},
		{"interrupt", "fg", []string{"sh", "-c", "echo ready; exec sleep 100"}, []string{"<ready", ">\x03", "=signaled 2"}},
		{"quit", "fg", []string{"sh", "-c", "ulimit -c 0; echo ready; exec sleep 100"}, []string{"<ready", ">\x1c", "=signaled 3"}},
		{"pipeline", "fg", []string{"sh", "-c", "echo ready; cat | cat; exit 4"}, []string{
			"<ready", ">a\n", "<a", ">\x1a", "=stopped 20", "!fg", ">b\n", "<b", ">\x04", "=exited 4",
		}},
		{"background reader", "bg", []string{tty}, []string{
			"<ready", "=stopped 21", "!fg", "<continued", ">hello\n", "<read: hello", ">quit\n", "=exited 6",
		}},
		{"handlers", "fg", []string{sigs, "handler", "3"}, []string{
			"<#", ">\x03", "<got 2", "!kill 1 10", "<got 10", ">\x1c", "<got 3", "w", "<got 28", "!kill 1 12", "<got 12",
			">\x1a", "=stopped 20", "!fg", "<got 18", "!kill 1 10", "<got 10", "!kill 1 15", "<got 15", "=exited 0",
		}},
		{"sigwait", "fg", []string{sigs, "sigwait", "3"}, []string{
			"<#", ">\x03", "<got 2", "!kill 1 10", "<got 10", ">\x1c", "<got 3", "w", "<got 28", "!kill 1 12", "<got 12",
			"!kill 1 15", "<got 15", "=exited 0",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, job := range [][]string{tc.job, mini(t, tc.job...).Args} {
				tt := openTerminal(t, tc.how, job...)
				if tc.script[0] == "<#" {
					if line := within(t, "the program", tt.lines); !strings.HasPrefix(line, "ready ") {
						t.Fatal(line)
					}
					tt.play(tc.script[1:]...)
				} else {
					tt.play(tc.script...)
				}
			}
		})
	}
}
