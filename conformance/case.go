// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/faultline-go/faultline/uffd/uapi"
)

// Case is one thing that a kernel does.
type Case struct {
	// Name is unique, in lower case with hyphens: the topic, a slash, the
	// behaviour.
	Name string
	// Rows are what it covers of [Rows].
	Rows []string
	// Memory has the kinds to run it with; nil is one run without.
	Memory []Memory
	// Features are what the kernel must have for it.
	Features uapi.Features
	// Since is the first kernel that is known to behave so, where no feature
	// says it: 6.1 was found not to, 6.12 and 6.18 to.
	Since string
	// Seed cases are about the 2015 patch, all others about Linux.
	Seed bool
	// Privileged cases need CAP_SYS_PTRACE.
	Privileged bool

	run func(*C)
}

// Cases returns the table. The slice is the caller's.
func Cases() []Case {
	return slices.Concat(createCases, handshakeCases, registerCases, unregisterCases, wakeCases,
		frameCases, copyCases, zeroCases, poisonCases, continueCases, moveCases, protectCases,
		readCases, pollCases, deliveryCases, signalCases, forkCases, eventCases, goneCases,
		asyncCases, lockCases, fileCases, borderCases, selftestCases, seedCases)
}

// Status is the verdict on a run of a case.
type Status string

// Verdicts.
const (
	Pass Status = "pass"
	Fail Status = "fail"
	Skip Status = "skip"
	// NoCase is that on a row that says why there is none.
	NoCase Status = "none"
)

// Outcome is what came of a case with one kind of memory.
type Outcome struct {
	Case   string        `json:"case"`
	Memory string        `json:"memory,omitempty"`
	Rows   []string      `json:"rows"`
	Status Status        `json:"status"`
	Why    string        `json:"why,omitempty"` // it failed or was skipped
	Took   time.Duration `json:"took_ns"`
}

// Title is the name with the kind of memory.
func (o Outcome) Title() string {
	if o.Memory == "" {
		return o.Case
	}
	return o.Case + "/" + o.Memory
}

// Suite runs cases on one backend.
type Suite struct {
	Backend Backend
	// All has cases run that the backend is excused from: see [Host].
	All bool
	has uapi.Features
}

// NewSuite finds out what the backend has. The error says why it has no
// userfaultfd.
func NewSuite(b Backend) (*Suite, error) {
	has, err := b.Features()
	if err != nil {
		return nil, err
	}
	return &Suite{Backend: b, has: has}, nil
}

// Kinds returns the kinds of memory that a case is run with, [None] alone for
// one that maps what it needs by itself.
func (cs Case) Kinds() []Memory { return slices.Clone(cs.kinds()) }

// Title is the name of the case, and a slash and the kind of memory.
func (cs Case) Title(m Memory) string { return cs.title(m) }

// Run runs a case with one kind of memory. It does not panic and does not
// hang: what takes longer than the backend allows is a failure.
func (s *Suite) Run(cs Case, m Memory) (out Outcome) {
	out = Outcome{Case: cs.Name, Rows: cs.Rows, Status: Pass}
	if m != None {
		out.Memory = m.String()
	}
	if why := s.lacks(cs, m); why != "" {
		out.Status, out.Why = Skip, why
		return out
	}
	begin := time.Now()
	c := &C{Memory: m, backend: s.Backend, has: s.has}
	c.protect(func() { cs.run(c) })
	c.protect(c.close)
	out.Took = time.Since(begin)
	switch {
	case len(c.failed) > 0:
		out.Status, out.Why = Fail, strings.Join(c.failed, "\n")
	case c.skipped != "":
		out.Status, out.Why = Skip, c.skipped
	}
	return out
}

// lacks says why a case cannot be run.
func (s *Suite) lacks(cs Case, m Memory) string {
	switch {
	case cs.Seed != s.Backend.Seed():
		return "it is about another kernel"
	case cs.Since != "" && olderThan(s.Backend.Release(), cs.Since):
		return fmt.Sprintf("it is so since Linux %s, and this is %s", cs.Since, s.Backend.Release())
	case cs.Privileged && !s.Backend.Privileged():
		return "it needs CAP_SYS_PTRACE: run it as root"
	}
	if e, ok := s.Backend.(interface{ Excuse(string) string }); ok && !s.All {
		if why := e.Excuse(cs.title(m)); why != "" {
			return why
		}
	}
	need := cs.Features
	switch {
	case m == Shmem || m == PrivateShmem:
		need |= uapi.UFFD_FEATURE_MISSING_SHMEM
	case m.Huge():
		need |= uapi.UFFD_FEATURE_MISSING_HUGETLBFS
	}
	if cs.Seed {
		need = 0 // it knew none of today's bits
	}
	for _, f := range uapi.FeatureTable() {
		if need.Has(f.Bit) && !s.has.Has(f.Bit) {
			return fmt.Sprintf("this kernel lacks %s, which Linux has since %s", f.Name, f.Since)
		}
	}
	return ""
}

// olderThan compares versions by their first two numbers. What is no version
// is not older.
func olderThan(release, since string) bool {
	a, ok := version(release)
	b, _ := version(since)
	return ok && (a[0] < b[0] || a[0] == b[0] && a[1] < b[1])
}

func version(s string) (v [2]int, ok bool) {
	f := strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	for i := range v {
		if i >= len(f) {
			return v, false
		}
		n, err := strconv.Atoi(f[i])
		if err != nil {
			return v, false
		}
		v[i] = n
	}
	return v, true
}

// C is what a run of a case has to work with. Its methods, and those of what
// it makes, end the run where what must be is not.
type C struct {
	Memory  Memory // immutable
	backend Backend
	has     uapi.Features
	procs   []Process // roots, for the end
	atEnd   []func()  // what is to be done first then
	failed  []string
	skipped string
}

// ended is thrown where a run ends early.
type ended struct{}

// protect calls f and takes its early end for normal.
func (c *C) protect(f func()) {
	defer func() {
		switch r := recover().(type) {
		case nil, ended:
		default:
			c.failed = append(c.failed, fmt.Sprintf("panic: %v", r))
		}
	}()
	f()
}

// Failf ends the run as failed.
func (c *C) Failf(format string, args ...any) {
	c.failed = append(c.failed, fmt.Sprintf(format, args...))
	panic(ended{})
}

// Skipf ends the run as impossible here.
func (c *C) Skipf(format string, args ...any) {
	c.skipped = fmt.Sprintf(format, args...)
	panic(ended{})
}

// Must ends the run as failed if err is not nil.
func (c *C) Must(err error) {
	if err != nil {
		c.Failf("%v", err)
	}
}

// Is ends the run as failed unless what came of something is as it must be.
func Is[T comparable](c *C, what string, got, want T) {
	if got != want {
		c.Failf("%s: got %v, want %v", what, got, want)
	}
}

// Eventually waits for something that a thread is on its way to.
func (c *C) Eventually(what string, f func() bool) {
	for deadline := time.Now().Add(budget); !f(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			c.Failf("%s: not within %v", what, budget)
		}
	}
}

func (c *C) close() {
	for _, f := range c.atEnd {
		f()
	}
	for _, p := range c.procs {
		if err := p.Close(); err != nil {
			c.failed = append(c.failed, err.Error())
		}
	}
}

// budget is how long anything that must happen may take. Only what is about
// to fail waits so long.
const budget = 5 * time.Second
