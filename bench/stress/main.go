// SPDX-License-Identifier: Apache-2.0

// Command stress runs programs under `faultline provide` for long, and looks
// whether anything becomes more that should not: memory, descriptors and threads
// of faultline, processes and descriptors of the program.
//
//	go run ./bench/stress [-for DURATION] [-faultline PATH]
//
// One program is the userfaultfd stressor of stress-ng, which checks what it gets;
// the other is torn, of internal/workload, every page of which verifies itself.
// Each has the whole time. It prints Markdown. The status is 0 if both have ended
// with 0 and nothing has grown.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/internal/workload/measure"
)

func main() {
	// The death of this thread kills what is started.
	runtime.LockOSThread()
	span := flag.Duration("for", 10*time.Minute, "how long each program runs")
	binary := flag.String("faultline", "", "`path` of the faultline command; built from the source if empty")
	flag.Parse()
	if *span < 10*time.Second || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "stress: -for must be 10s at least")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := measure.TempDir(func(dir string) error { return run(ctx, dir, *binary, *span) })
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "stress:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir, binary string, span time.Duration) error {
	if binary == "" {
		built, err := measure.Faultline(ctx, dir)
		if err != nil {
			return err
		}
		binary = built
	}
	torn, err := workload.Compile(ctx, dir, "torn")
	if err != nil {
		return err
	}
	seconds := fmt.Sprintf("%d", int(span.Seconds()))
	if err := measure.Machine(os.Stdout); err != nil {
		return err
	}
	fmt.Print("\n| program, ", span, " | status | what it says |\n|---|---|---|\n")
	var grown []series
	for _, p := range []struct {
		name string
		args []string
		says func(output []byte) string
	}{
		{"stress-ng --userfaultfd 2", []string{"stress-ng", "--userfaultfd", "2", "--timeout", seconds + "s", "--verify", "--metrics"}, stressor},
		{"torn", []string{torn, seconds}, lastLine},
	} {
		s, output, err := observe(ctx, append([]string{binary, "provide", "--"}, p.args...), span)
		status := "0"
		if err != nil {
			status = err.Error()
		}
		fmt.Printf("| %s | %s | %s |\n", p.name, status, p.says(output))
		s.name = p.name
		grown = append(grown, s)
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", p.name, err, output)
		}
	}
	return report(os.Stdout, grown)
}

// stressor returns the bogus operations that stress-ng counts.
func stressor(output []byte) string {
	for line := range strings.Lines(string(output)) {
		f := strings.Fields(line)
		for i, word := range f {
			if word == "userfaultfd" && i+1 < len(f) && strings.Trim(f[i+1], "0123456789") == "" {
				return f[i+1] + " operations"
			}
		}
	}
	return ""
}

func lastLine(output []byte) string {
	lines := bytes.Split(bytes.TrimSpace(output), []byte{'\n'})
	return "`" + string(lines[len(lines)-1]) + "`"
}

// observe runs a command and looks at it every second.
func observe(ctx context.Context, args []string, span time.Duration) (s series, output []byte, err error) {
	// A program that hangs does not end by itself.
	ctx, cancel := context.WithTimeout(ctx, span+2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return s, nil, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if ctx.Err() != nil {
				err = errors.Join(err, context.Cause(ctx))
			}
			return s, out.Bytes(), err
		case <-tick.C:
			s.add(look(cmd.Process.Pid))
		}
	}
}

// report prints what there was at first and at the end, and returns an error if
// something has grown.
func report(w io.Writer, all []series) error {
	text := "\n| what | first | last | most |\n|---|---|---|---|\n"
	var errs []error
	for _, s := range all {
		for _, c := range s.compare() {
			text += fmt.Sprintf("| %s: %s | %d | %d | %d |\n", s.name, c.what, c.first, c.last, c.most)
			if c.grows() {
				errs = append(errs, fmt.Errorf("%s: %s: from %d to %d", s.name, c.what, c.first, c.last))
			}
		}
	}
	if _, err := io.WriteString(w, text); err != nil {
		return err
	}
	return errors.Join(errs...)
}
