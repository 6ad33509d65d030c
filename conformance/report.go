// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"regexp"
	"slices"
	"time"
)

// Schema names the form of a [Report] as JSON.
const Schema = "faultline/conformance/1"

// Report is what came of running the table on a backend.
type Report struct {
	Schema   string        `json:"schema"`
	Backend  string        `json:"backend"`
	Release  string        `json:"release"`
	Features string        `json:"features"`
	Passed   int           `json:"passed"`
	Failed   int           `json:"failed"`
	Skipped  int           `json:"skipped"`
	Took     time.Duration `json:"took_ns"`
	Rows     []RowVerdict  `json:"rows"`
	Runs     []Outcome     `json:"runs"`
}

// RowVerdict is what the cases of a row came to.
type RowVerdict struct {
	Row
	// Status is fail if any run failed, skip if all were skipped, and none if there is
	// no case.
	Status Status   `json:"status"`
	Cases  []string `json:"cases"`
}

// RunAll runs every case whose title (name, slash, kind of memory) or row
// matches, all if match is nil, and calls each after every run. When ctx is
// done it stops and returns what it has with the error of ctx.
func (s *Suite) RunAll(ctx context.Context, match *regexp.Regexp, each func(Outcome)) (*Report, error) {
	begin := time.Now()
	r := &Report{Schema: Schema, Backend: s.Backend.Name(), Release: s.Backend.Release(), Features: s.has.String()}
	for _, cs := range Cases() {
		if cs.Seed != s.Backend.Seed() {
			continue
		}
		for _, m := range cs.kinds() {
			if ctx.Err() != nil {
				break
			}
			if match != nil && !cs.matches(m, match) {
				continue
			}
			out := s.Run(cs, m)
			r.Runs = append(r.Runs, out)
			if each != nil {
				each(out)
			}
		}
	}
	r.sum()
	r.addUncased(s.Backend.Seed(), match)
	r.Took = time.Since(begin)
	return r, ctx.Err()
}

// addUncased adds the rows of the backend's kind for which there is no case.
func (r *Report) addUncased(seed bool, match *regexp.Regexp) {
	for _, row := range Rows() {
		if row.Why != "" && (row.ID[0] == 'A') == seed && (match == nil || match.MatchString(row.ID)) {
			r.Rows = append(r.Rows, RowVerdict{Row: row, Status: NoCase})
		}
	}
}

// kinds returns the kinds of memory that a case runs with.
func (cs Case) kinds() []Memory {
	if cs.Memory == nil {
		return []Memory{None}
	}
	return cs.Memory
}

// title is the name with the kind of memory.
func (cs Case) title(m Memory) string {
	if m == None {
		return cs.Name
	}
	return cs.Name + "/" + m.String()
}

func (cs Case) matches(m Memory, match *regexp.Regexp) bool {
	return match.MatchString(cs.title(m)) || slices.ContainsFunc(cs.Rows, match.MatchString)
}

// sum counts the runs and judges the rows that they are about.
func (r *Report) sum() {
	of := map[string]*RowVerdict{}
	for _, out := range r.Runs {
		switch out.Status {
		case Pass:
			r.Passed++
		case Fail:
			r.Failed++
		case Skip:
			r.Skipped++
		}
		for _, id := range out.Rows {
			v := of[id]
			if v == nil {
				v = &RowVerdict{Status: out.Status}
				of[id] = v
			}
			if !slices.Contains(v.Cases, out.Case) {
				v.Cases = append(v.Cases, out.Case)
			}
			if out.Status == Fail || v.Status == Skip {
				v.Status = out.Status
			}
		}
	}
	for _, row := range Rows() {
		if v := of[row.ID]; v != nil {
			v.Row = row
			r.Rows = append(r.Rows, *v)
		}
	}
}
