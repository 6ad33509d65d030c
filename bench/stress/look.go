// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// kinds are what is looked at, with how much more than at first may be there at
// the end by accident: what a collector has not collected, a process that is just
// being made.
var kinds = []struct {
	what  string
	slack int
}{
	{"resident memory of faultline, KiB", 24 << 10},
	{"descriptors of faultline", 8},
	{"threads of faultline", 8},
	{"processes of the program", 4},
	{"descriptors of the program", 8},
	{"resident memory of the program, KiB", 64 << 10},
}

// sample has a number for each of the kinds.
type sample [6]int

// series is what was seen of a program.
type series struct {
	name string
	all  []sample
}

func (s *series) add(v sample) {
	if v[0] != 0 { // it has not ended
		s.all = append(s.all, v)
	}
}

// change is how one number has changed: the medians of the second tenth of the
// time and of the last but the very end.
type change struct {
	what              string
	first, last, most int
	slack             int
}

func (c *change) grows() bool { return c.last > c.first+c.slack }

func (s *series) compare() (all []change) {
	n := len(s.all)
	if n < 10 {
		return nil
	}
	for i, k := range kinds {
		values := make([]int, n)
		for j := range values {
			values[j] = s.all[j][i]
		}
		all = append(all, change{what: k.what, slack: k.slack,
			first: median(values[n/10 : n/5]), last: median(values[n-n/10-1 : n-1]), most: slices.Max(values)})
	}
	return all
}

func median(values []int) int {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)/2]
}

// look returns what there is of faultline, a process, and of the program below it.
func look(pid int) (v sample) {
	v[0] = status(pid, "VmRSS:")
	v[1] = entries(pid, "fd")
	v[2] = status(pid, "Threads:")
	for _, p := range below(pid) {
		v[3]++
		v[4] += entries(p, "fd")
		v[5] += status(p, "VmRSS:")
	}
	return v
}

// status returns a number of /proc/PID/status, 0 if the process is gone.
func status(pid int, key string) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "\n"+key)
	f := strings.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(f[0])
	return n
}

func entries(pid int, dir string) int {
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", pid, dir))
	if err != nil {
		return 0
	}
	return len(d)
}

// below returns all descendants of a process.
func below(pid int) (all []int) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil
	}
	for _, t := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(f); err == nil {
				all = append(append(all, child), below(child)...)
			}
		}
	}
	return all
}
