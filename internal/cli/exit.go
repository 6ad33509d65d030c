// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// Exit statuses of faultline, documented in faultline(1). Where a command
// runs a program, its status is the program's, and failures of faultline
// itself have those of env(1) and nohup(1).
const (
	ExitOK            = 0
	ExitFailed        = 1   // it was tried and did not work
	ExitUsage         = 2   // the command line makes no sense
	ExitMissing       = 3   // the machine lacks something that was required
	ExitOwn           = 125 // run, trace: faultline failed before the program began
	ExitNotExecutable = 126 // run, trace: the program was found but not executable
	ExitNotFound      = 127 // run, trace: the program was not found
)

// ErrorSchema names the form in which an error is written as JSON.
const ErrorSchema = "faultline/error/1"

// ExitError is an error that decides the exit status.
type ExitError struct {
	Code int
	// Err is printed. If it is nil nothing is, which is how a command says
	// that it has told everything, or passes on a program's status.
	Err error
	// Hint says what to do about it. If it is empty and an error in Err's
	// chain has a method Hint() string, that is used.
	Hint string
}

// Error returns the message of Err, or names the status if there is none.
func (e *ExitError) Error() string {
	if e.Err == nil {
		return "exit status " + strconv.Itoa(e.Code)
	}
	return e.Err.Error()
}

// Unwrap returns Err.
func (e *ExitError) Unwrap() error { return e.Err }

// ownStatus annotates a command all of whose own failures, those of its
// usage included, have one status. It is for commands that run programs.
const ownStatus = "own-status"

// statusOf returns the status for a failure of cmd that did not choose one.
func statusOf(cmd *cobra.Command, otherwise int) int {
	if n, err := strconv.Atoi(cmd.Annotations[ownStatus]); err == nil {
		return n
	}
	return otherwise
}

// usageError returns a mistake in cmd's command line.
func usageError(cmd *cobra.Command, format string, args ...any) error {
	return &ExitError{
		Code: statusOf(cmd, ExitUsage),
		Err:  fmt.Errorf(format, args...),
		Hint: "see " + cmd.CommandPath() + " --help",
	}
}

// noArgs is cobra.NoArgs in our words.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError(cmd, "unexpected argument %q", args[0])
	}
	return nil
}

// jsonError is an error on standard error when --json is given.
type jsonError struct {
	Schema  string `json:"schema"`
	Code    int    `json:"code"` // the exit status
	Op      string `json:"op"`   // the command, without "faultline"
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// WarningSchema names the form in which a warning is written as JSON.
const WarningSchema = "faultline/warning/1"

// jsonWarning is a warning on standard error when --json is given.
type jsonWarning struct {
	Schema  string `json:"schema"`
	Op      string `json:"op"` // the command, without "faultline"
	Message string `json:"message"`
}

// warn prints, in one line, what the user must know and what is no failure.
func warn(cmd *cobra.Command, asJSON bool, message string) {
	w := cmd.ErrOrStderr()
	_, op, _ := strings.Cut(cmd.CommandPath(), " ")
	message = oneLine(message)
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(jsonWarning{WarningSchema, op, message}) // as in report
		return
	}
	fmt.Fprintf(w, "faultline: %s: %s\n", op, message)
}

// report prints what went wrong, in one line, and returns the status.
func report(w io.Writer, cmd *cobra.Command, err error, code int, asJSON bool) int {
	e, ok := errors.AsType[*ExitError](err)
	if !ok {
		e = &ExitError{Code: code, Err: err}
	}
	if e.Err == nil {
		return e.Code
	}
	hint := e.Hint
	if h, ok := errors.AsType[hinter](e.Err); ok && hint == "" {
		hint = h.Hint()
	}
	_, op, _ := strings.Cut(cmd.CommandPath(), " ")
	// err rather than e.Err: a wrapper may have added where it happened.
	message := oneLine(err.Error())
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		// Nothing is left to tell when standard error is gone.
		_ = enc.Encode(jsonError{ErrorSchema, e.Code, op, message, oneLine(hint)})
		return e.Code
	}
	line := "faultline: "
	if op != "" {
		line += op + ": "
	}
	line += message
	if hint != "" {
		line += " (" + oneLine(hint) + ")"
	}
	fmt.Fprintln(w, line)
	return e.Code
}

// hinter is an error that knows its remedy.
type hinter interface {
	error
	Hint() string
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
