// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"slices"
	"strings"
)

// RunError says why a command that runs programs cannot work here.
type RunError struct {
	// Set is what the command needs, SetRun if it is empty.
	Set string
	// Missing has the needs that are not met, causes before what follows
	// from them. It is never empty.
	Missing []Result
}

// Error names each cause and leaves out what only follows from another.
func (e *RunError) Error() string {
	var parts []string
	for _, r := range e.causes() {
		parts = append(parts, r.Name+": "+r.Found)
	}
	return "this machine lacks what " + e.set() + " needs: " + strings.Join(parts, "; ")
}

func (e *RunError) set() string {
	if e.Set == "" {
		return SetRun
	}
	return e.Set
}

// Hint returns what mends it, the same that [Examine] reports.
func (e *RunError) Hint() string {
	var fixes []string
	for _, r := range e.causes() {
		if r.Fix != "" && !slices.Contains(fixes, r.Fix) {
			fixes = append(fixes, r.Fix)
		}
	}
	fixes = append(fixes, "see faultline doctor --require "+e.set())
	return strings.Join(fixes, "; ")
}

func (e *RunError) causes() []Result {
	return slices.DeleteFunc(slices.Clone(e.Missing), func(r Result) bool { return r.BlockedBy != "" })
}

// CheckRun tries what faultline run needs and nothing else. It returns nil
// or a [*RunError]. It takes a few milliseconds, most of them for the child
// that ptrace is tried on, and must not be called while another thread of
// this process waits for children of any pid.
func CheckRun() error { return checkSet(SetRun) }

// CheckProvide is CheckRun for what faultline provide needs.
func CheckProvide() error { return checkSet(SetProvide) }

func checkSet(set string) error {
	p := newProbe()
	var missing []Result
	for _, c := range checks() {
		if !slices.Contains(needs(set), c.name) {
			continue
		}
		if r := c.result(p); r.Status == No {
			missing = append(missing, r)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return &RunError{Set: set, Missing: missing}
}
