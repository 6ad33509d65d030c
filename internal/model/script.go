// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/vkernel"
)

// Bounds of a script, so that none asks for more than a machine has.
const (
	maxSteps   = 10_000
	maxThreads = 64
	maxRegions = 32
	maxPages   = 256
	maxHuge    = 8
	maxText    = 64

	// Regions have places of their own, far enough apart not to merge.
	regionBase mem.Addr = 0x1000_0000
	regionGap           = 64 << 20
)

// Main is the name of the thread that exists from the start, and of its
// process.
const Main = "main"

// Script is a script that makes sense. It is immutable.
type Script struct {
	Name string
	// Profile is the name of the profile that the script asks for, or Both,
	// or "".
	Profile string
	steps   []step
	regions []*region
}

// Both stands for all profiles in the place of the name of one.
const Both = "both"

// Profiles are what a script can be played on.
func Profiles() []*vkernel.Profile { return []*vkernel.Profile{vkernel.Seed, vkernel.Linux618} }

// ProfileNames are the names of Profiles, and Both.
func ProfileNames() (names []string) {
	for _, p := range Profiles() {
		names = append(names, p.Name())
	}
	return append(names, Both)
}

// ScriptError says what is wrong with a line of a script, or what went
// otherwise than the line expects.
type ScriptError struct {
	Script string
	Line   int
	// Profile is the one that it happened on, "" if the line makes no sense.
	Profile string
	Why     string
}

func (e *ScriptError) Error() string {
	on := ""
	if e.Profile != "" {
		on = "on " + e.Profile + ": "
	}
	return fmt.Sprintf("%s:%d: %s%s", e.Script, e.Line, on, e.Why)
}

// region is a place for memory that a script has a name for.
type region struct {
	name string
	base mem.Addr
	unit uint64 // bytes of a page
}

func (r *region) page(i int) mem.Addr { return r.base + mem.Addr(uint64(i)*r.unit) }

// step is one line.
type step struct {
	line    int
	text    string   // as written
	comment []string // the lines of comment before it
	only    string   // the profile that it is for; all if empty
	thread  string   // who does it; nobody does what only looks
	verb    *verb
	args    []operand
	opts    []string
	expect  *expectation // of the verb expect
}

// has reports whether an option was given.
func (s *step) has(opt string) bool { return slices.Contains(s.opts, opt) }

// parser knows what the lines so far have introduced.
type parser struct {
	s       *Script
	kinds   map[string]kind // of names
	regions map[string]*region
	sizes   map[string]int // in pages, of regions
	threads int
	comment []string // since the last step
}

// Parse reads a script. Its error is a *ScriptError.
func Parse(name, text string) (*Script, error) {
	p := &parser{
		s:     &Script{Name: name},
		kinds: map[string]kind{Main: kindThread}, regions: map[string]*region{}, sizes: map[string]int{},
	}
	n := 0
	for line := range strings.Lines(text) {
		n++
		if err := p.line(n, line); err != nil {
			return nil, &ScriptError{Script: name, Line: n, Why: err.Error()}
		}
	}
	if len(p.s.steps) == 0 {
		return nil, &ScriptError{Script: name, Line: n, Why: "the script does nothing"}
	}
	return p.s, nil
}

func (p *parser) line(n int, line string) error {
	text, words, err := split(line)
	if err != nil || len(words) == 0 {
		if c, ok := strings.CutPrefix(strings.TrimSpace(line), "#"); ok {
			p.comment = append(p.comment, strings.TrimSpace(c))
		}
		return err
	}
	if len(p.s.steps) == maxSteps {
		return fmt.Errorf("more than %d steps", maxSteps)
	}
	st := step{line: n, text: text, thread: Main, comment: p.comment}
	if only, ok := strings.CutPrefix(words[0], "["); ok {
		only, ok = strings.CutSuffix(only, "]")
		if !ok || only == Both || !slices.Contains(ProfileNames(), only) {
			return fmt.Errorf("%s is no condition: write [seed] or [linux-6.18]", words[0])
		}
		st.only, words = only, words[1:]
	}
	if len(words) > 0 && strings.HasSuffix(words[0], ":") {
		st.thread = strings.TrimSuffix(words[0], ":")
		if k := p.kinds[st.thread]; k != kindThread {
			return fmt.Errorf("there is no thread %q: write \"thread %s\" before", st.thread, st.thread)
		}
		words = words[1:]
	}
	if len(words) == 0 {
		return fmt.Errorf("the line does nothing")
	}
	if words[0] == "profile" && st.only == "" {
		return p.profile(words[1:])
	}
	v, known := verbs[words[0]]
	if !known {
		return fmt.Errorf("there is no command %q", words[0])
	}
	st.verb = v
	if v.name == "expect" {
		st.expect, err = p.expectation(words[1:])
	} else {
		err = p.operands(&st, words[1:])
	}
	if err != nil {
		return err
	}
	p.s.steps, p.comment = append(p.s.steps, st), nil
	return nil
}

// profile is the directive by that name.
func (p *parser) profile(words []string) error {
	if len(p.s.steps) > 0 || p.s.Profile != "" {
		return fmt.Errorf("profile is given once, before everything else")
	}
	if len(words) != 1 || !slices.Contains(ProfileNames(), words[0]) {
		return fmt.Errorf("usage: profile %s", strings.Join(ProfileNames(), "|"))
	}
	p.s.Profile = words[0]
	return nil
}

// split returns a line without its comment, and its words. A word in quotes
// keeps them.
func split(line string) (text string, words []string, err error) {
	rest := strings.TrimSpace(line)
	line = rest
	for rest != "" && rest[0] != '#' {
		n := strings.IndexAny(rest, " \t")
		if rest[0] == '"' {
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				return "", nil, fmt.Errorf("%s has no closing quote", rest)
			}
			n = len(quoted)
			if n < len(rest) && rest[n] != ' ' && rest[n] != '\t' {
				return "", nil, fmt.Errorf("there is no space after %s", quoted)
			}
		}
		if n < 0 {
			n = len(rest)
		}
		words = append(words, rest[:n])
		rest = strings.TrimSpace(rest[n:])
	}
	return strings.TrimSpace(strings.TrimSuffix(line, rest)), words, nil
}

// Play runs the script on the profile of a name; on that which it asks for
// itself if the name is empty, and on Linux 6.18 if it asks for none. On Both
// it runs it on each; what failed on one does not keep it from the other. Its
// error is a *ScriptError, and the timeline comes with it.
func (s *Script) Play(profile string) (*Timeline, error) {
	if profile == "" {
		profile = s.Profile
	}
	if profile == "" {
		profile = vkernel.Linux618.Name()
	}
	t := &Timeline{Schema: Schema, Script: s.Name, Runs: []*Run{}}
	var first error
	for _, p := range Profiles() {
		if profile != Both && profile != p.Name() {
			continue
		}
		run, err := Play(s, p)
		t.Runs = append(t.Runs, run)
		if first == nil {
			first = err
		}
	}
	return t, first
}
