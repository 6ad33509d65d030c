// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/doctor"
	"github.com/faultline-go/faultline/internal/sandbox"
	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd"
)

func TestMain(m *testing.M) {
	sandbox.Main()
	testscript.Main(m, map[string]func(){
		"faultline": func() { os.Exit(Main(os.Args, os.Stdin, os.Stdout, os.Stderr)) },
		"wakes":     wakes,
		"refused":   refused,
	})
}

// refused runs a program for a user without privilege whom the kernel refuses
// userfaultfd(2), as in a container.
func refused() {
	o := sandbox.Options{Refuse: []sandbox.Refusal{{Call: unix.SYS_USERFAULTFD, Errno: unix.EPERM}}}
	if os.Geteuid() == 0 {
		o.User = sandbox.Nobody // who may not open the device
	}
	path, err := exec.LookPath(os.Args[1])
	if err == nil {
		var cmd *exec.Cmd
		if cmd, err = sandbox.Command(context.Background(), o, path, os.Args[2:]...); err == nil {
			cmd.Dir = ""
			cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
			err = cmd.Run()
		}
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// wakes is a program for scripts, which makes two calls on a userfaultfd.
func wakes() {
	fd, err := uffd.Open(uffd.Options{UserModeOnly: true})
	if err == nil {
		err = fd.Handshake(0)
	}
	if err == nil && fd.Wake(mem.MakeRange(mem.PageSize, mem.PageSize)) != 0 {
		err = errors.New("wake")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("woken")
	os.Exit(3)
}

// TestScript runs the command line as users do. Beside testscript's own
// commands there are
//
//	status N COMMAND...   run a command that must end with status N
//	oneline FILE          FILE must be one line that begins "faultline: "
//	json FILE SCHEMA      FILE must be JSON with that schema
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			// What CI demands of tests is not for the tested program.
			e.Setenv(testutil.RequireEnv, "")
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "run":
				return doctor.CheckRun() == nil, nil
			case "userfaultfd":
				fd, err := uffd.Open(uffd.Options{UserModeOnly: true})
				if err == nil {
					err = fd.Close()
				}
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status":  scriptStatus,
			"oneline": scriptOneLine,
			"json":    scriptJSON,
		},
	})
}

func scriptStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("status %d, want %d", got, want)
	}
}

func scriptOneLine(ts *testscript.TestScript, neg bool, args []string) {
	text := ts.ReadFile(args[0])
	ok := strings.HasPrefix(text, "faultline: ") && strings.Count(text, "\n") == 1 && strings.HasSuffix(text, "\n")
	if ok == neg {
		ts.Fatalf("not one line: %q", text)
	}
}

func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	var v struct{ Schema string }
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
	err := dec.Decode(&v)
	ok := err == nil && !dec.More() && v.Schema == args[1]
	if ok == neg {
		ts.Fatalf("%v, schema %q", err, v.Schema)
	}
}

// TestReport pins how an error becomes a status and a line.
func TestReport(t *testing.T) {
	root := &cobra.Command{Use: "faultline"}
	plain := &cobra.Command{Use: "plain"}
	own := &cobra.Command{Use: "own", Annotations: map[string]string{ownStatus: strconv.Itoa(ExitOwn)}}
	root.AddCommand(plain, own)
	missing := &doctor.RunError{Missing: []doctor.Result{{Name: "move", Found: "gone", Fix: "boot"}}}
	for _, tc := range []struct {
		title string
		cmd   *cobra.Command
		err   error
		code  int
		line  string
	}{
		{"plain", plain, errors.New("broke"), 1, "faultline: plain: broke\n"},
		{"lines are joined", plain, errors.New("broke\n\ttwice"), 1, "faultline: plain: broke twice\n"},
		{"root", root, errors.New("broke"), 1, "faultline: broke\n"},
		{"own status", own, errors.New("broke"), 125, "faultline: own: broke\n"},
		{"usage", plain, usageError(plain, "bad %d", 7), 2, "faultline: plain: bad 7 (see faultline plain --help)\n"},
		{"usage, own status", own, usageError(own, "bad"), 125, "faultline: own: bad (see faultline own --help)\n"},
		{"chosen", own, &ExitError{Code: 127, Err: errors.New("not found"), Hint: "look"}, 127, "faultline: own: not found (look)\n"},
		{"wrapped", own, fmt.Errorf("there: %w", &ExitError{Code: 126, Err: errors.New("no x")}), 126, "faultline: own: there: no x\n"},
		{"silent", own, &ExitError{Code: 42}, 42, ""},
		{"hint of the error", own, &ExitError{Code: 125, Err: fmt.Errorf("start: %w", missing)}, 125,
			"faultline: own: start: this machine lacks what run needs: move: gone (boot; see faultline doctor --require run)\n"},
	} {
		t.Run(tc.title, func(t *testing.T) {
			var b bytes.Buffer
			code := report(&b, tc.cmd, tc.err, statusOf(tc.cmd, ExitFailed), false)
			if code != tc.code || b.String() != tc.line {
				t.Errorf("%d %q, want %d %q", code, b.String(), tc.code, tc.line)
			}
			b.Reset()
			if code := report(&b, tc.cmd, tc.err, statusOf(tc.cmd, ExitFailed), true); code != tc.code {
				t.Errorf("as JSON: %d, want %d", code, tc.code)
			}
			if tc.line == "" {
				if b.Len() > 0 {
					t.Errorf("as JSON: %q, want nothing", b.String())
				}
				return
			}
			var e jsonError
			if err := json.Unmarshal(b.Bytes(), &e); err != nil {
				t.Fatalf("%v in %q", err, b.String())
			}
			if e.Schema != ErrorSchema || e.Code != tc.code || !strings.Contains(tc.line, e.Message) || !strings.Contains(tc.line, e.Hint) {
				t.Errorf("as JSON: %+v, want what %q says", e, tc.line)
			}
		})
	}
}

func TestDoctorLines(t *testing.T) {
	var b strings.Builder
	err := writeReport(&b, &doctor.Report{
		Checks: []doctor.Result{
			{Name: "a", Status: doctor.OK, Found: "there", Why: "needed"},
			{Name: "long", Status: doctor.Warn, Found: "half", Why: "useful", Fix: "do it"},
			{Name: "b", Status: doctor.No, Found: "gone", Why: "needed"},
			{Name: "c", Status: doctor.No, Found: "not asked", Why: "needed", Fix: "mend b first", BlockedBy: "b"},
		},
		Run: &doctor.Verdict{Missing: []string{"b", "c"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `ok    a     there (needed)
warn  long  half
            why: useful
            fix: do it
no    b     gone
            why: needed
no    c     not asked

faultline run does not work here: missing b, c.
`
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Error(d)
	}
}

// TestHelpHasExamples holds every command to the rule.
func TestHelpHasExamples(t *testing.T) {
	for _, cmd := range newRoot().Commands() {
		if cmd.Runnable() && cmd.Name() != "help" && cmd.Example == "" {
			t.Errorf("%s has no example", cmd.Name())
		}
	}
}

// TestManNamesChecks keeps the manual and the program together.
func TestManNamesChecks(t *testing.T) {
	page, err := os.ReadFile("../../docs/man/faultline-doctor.1")
	if err != nil {
		t.Fatal(err)
	}
	words := strings.FieldsFunc(string(page), func(r rune) bool {
		return r == ' ' || r == ',' || r == '\n' || r == '\\'
	})
	for _, name := range append(doctor.Names(), doctor.Sets()...) {
		if !slices.Contains(words, name) {
			t.Errorf("faultline-doctor(1) does not mention %s", name)
		}
	}
	if !slices.Contains(words, doctor.Schema) {
		t.Error("faultline-doctor(1) does not name the schema")
	}
}

// FuzzMain feeds the command line: whatever it is, the status is one that is
// documented, and an error is one line.
func FuzzMain(f *testing.F) {
	for _, s := range []string{"", "version", "docter", "help x", "--json", "version --json -- x", "completion bash", "\x00", "--=x", "-hh", "doctor --require"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args := append([]string{"faultline"}, strings.Fields(line)...)
		for _, a := range args {
			if a == "run" || a == "trace" || strings.HasPrefix(a, "__complete") {
				t.Skip("runs a program, or reports in cobra's way")
			}
		}
		var stdout, stderr bytes.Buffer
		code := Main(args, strings.NewReader(""), &stdout, &stderr)
		switch code {
		case ExitOK, ExitMissing:
			if stderr.Len() > 0 {
				t.Errorf("%q: status %d and %q", args, code, &stderr)
			}
		case ExitUsage, ExitFailed:
			isLine := strings.Count(stderr.String(), "\n") == 1
			isHelp := strings.HasPrefix(stderr.String(), "Faultline serves")
			if !isLine && !isHelp {
				t.Errorf("%q: status %d and %q", args, code, &stderr)
			}
		default:
			t.Errorf("%q: status %d", args, code)
		}
	})
}
