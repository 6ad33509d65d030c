// SPDX-License-Identifier: Apache-2.0

// Package doctor finds out what this machine allows of what faultline needs,
// by trying it: a version number proves nothing on kernels with backports,
// in containers and under sandboxes that refuse single system calls.
//
// Nothing that it tries leaves a trace. It registers one page of its own
// that is never touched, and starts one child, which never runs an
// instruction of its program and is killed at once.
package doctor

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
)

// Schema names the form in which a [Report] is written as JSON.
const Schema = "faultline/doctor/1"

// Status is the verdict of one check.
type Status string

// The three verdicts.
const (
	OK   Status = "ok"   // there
	Warn Status = "warn" // there with a drawback, or could not be told
	No   Status = "no"   // missing
)

// Result is what one check found.
type Result struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Found says what is the case here, in one line.
	Found string `json:"found"`
	// Why says what faultline wants it for.
	Why string `json:"why"`
	// Fix is the command or the change that mends it, empty when nothing
	// needs mending.
	Fix string `json:"fix,omitempty"`
	// BlockedBy names the check whose failure made this one impossible.
	// Such a result is No, but mending the other may be enough.
	BlockedBy string `json:"blocked_by,omitempty"`
}

// Verdict says whether everything in a set of checks is there.
type Verdict struct {
	OK      bool     `json:"ok"`
	Missing []string `json:"missing"` // names of checks, never nil
}

// Report is everything that was found, in the order of [Names].
type Report struct {
	Schema string   `json:"schema"`
	Kernel string   `json:"kernel"` // release, as uname(2) has it
	Arch   string   `json:"arch"`   // as Go names it
	Checks []Result `json:"checks"`
	// Required is about the checks that were asked for; it is OK when none
	// was.
	Required Verdict `json:"required"`
	// Run and Provide are about what faultline run and faultline provide
	// need. They are nil when only other checks were asked for.
	Run     *Verdict `json:"run,omitempty"`
	Provide *Verdict `json:"provide,omitempty"`
}

// Names, where checks are named, of all that a command needs.
const (
	SetRun     = "run"
	SetProvide = "provide"
)

// Sets returns the names of sets.
func Sets() []string { return []string{SetRun, SetProvide} }

// needs returns the checks of a set, nil for what is none.
func needs(set string) []string {
	switch set {
	case SetRun:
		return runNeeds
	case SetProvide:
		return provideNeeds
	}
	return nil
}

// UnknownError is returned for a name that is neither a check nor a set.
type UnknownError struct{ Name string }

// Error names what there is to choose from.
func (e *UnknownError) Error() string {
	return fmt.Sprintf("unknown requirement %q: choose from %s, or %s for all that the command of this name needs",
		e.Name, strings.Join(Names(), ", "), strings.Join(Sets(), ", "))
}

// Names returns the names of all checks, in the order of a report.
func Names() []string {
	var names []string
	for _, c := range checks() {
		names = append(names, c.name)
	}
	return names
}

// Expand replaces the sets among names by their checks and drops what is
// named twice. An unknown name gives an [*UnknownError].
func Expand(names []string) ([]string, error) {
	known := Names()
	var out []string
	add := func(name string) {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	for _, name := range names {
		switch {
		case needs(name) != nil:
			for _, n := range needs(name) {
				add(n)
			}
		case slices.Contains(known, name):
			add(name)
		default:
			return nil, &UnknownError{Name: name}
		}
	}
	return out, nil
}

// Examine makes the checks that are required, or all when none is, and says
// which of the required are missing. The names are those of [Expand].
func Examine(require []string) (*Report, error) {
	require, err := Expand(require)
	if err != nil {
		return nil, err
	}
	p := newProbe()
	r := &Report{Schema: Schema, Kernel: p.release, Arch: runtime.GOARCH}
	for _, c := range checks() {
		if len(require) == 0 || slices.Contains(require, c.name) {
			r.Checks = append(r.Checks, c.result(p))
		}
	}
	r.Required = r.verdict(require)
	r.Run, r.Provide = r.about(SetRun), r.about(SetProvide)
	return r, nil
}

// about is the verdict on a set, nil unless all of it was checked.
func (r *Report) about(set string) *Verdict {
	for _, name := range needs(set) {
		if !slices.ContainsFunc(r.Checks, func(c Result) bool { return c.Name == name }) {
			return nil
		}
	}
	v := r.verdict(needs(set))
	return &v
}

// verdict looks up names in r. What was not checked is not missing.
func (r *Report) verdict(names []string) Verdict {
	v := Verdict{OK: true, Missing: []string{}}
	for _, c := range r.Checks {
		if c.Status == No && slices.Contains(names, c.Name) {
			v.OK, v.Missing = false, append(v.Missing, c.Name)
		}
	}
	return v
}

// check is one thing to find out.
type check struct {
	name string
	why  string
	find func(*probe) finding
}

// finding is the part of a Result that depends on the machine.
type finding struct {
	status    Status
	found     string
	fix       string
	blockedBy string
}

func (c check) result(p *probe) Result {
	f := c.find(p)
	return Result{
		Name: c.name, Status: f.status, Found: f.found, Why: c.why,
		Fix: f.fix, BlockedBy: f.blockedBy,
	}
}

func ok(format string, args ...any) finding {
	return finding{status: OK, found: fmt.Sprintf(format, args...)}
}

func warn(fix, format string, args ...any) finding {
	return finding{status: Warn, found: fmt.Sprintf(format, args...), fix: fix}
}

func no(fix, format string, args ...any) finding {
	return finding{status: No, found: fmt.Sprintf(format, args...), fix: fix}
}

// blocked is the finding of a check that could not be made because another
// failed.
func blocked(by string) finding {
	return finding{
		status: No, found: "cannot be asked without " + by,
		fix: "mend " + by + " first", blockedBy: by,
	}
}
