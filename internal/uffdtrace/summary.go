// SPDX-License-Identifier: Apache-2.0

package uffdtrace

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// summary is what stands at the end of a trace. Times are nanoseconds and
// sizes bytes.
type summary struct {
	Schema    string         `json:"schema"`
	Event     string         `json:"event"`
	ElapsedNs int64          `json:"elapsed_ns"`
	Processes int64          `json:"processes"`
	Files     int64          `json:"descriptors"`
	Notes     int64          `json:"notes"`
	Calls     []callSummary  `json:"calls"`
	Messages  []messageCount `json:"messages"`
	Faults    []faultSummary `json:"faults"`
}

// callSummary is about all calls of one name, which for an ioctl is that of
// its request.
type callSummary struct {
	Call   string `json:"call"`
	Count  int64  `json:"count"`
	Failed int64  `json:"failed"`
	// Interrupted calls were begun again by the kernel, and Ended ones have no
	// result.
	Interrupted int64        `json:"interrupted"`
	Ended       int64        `json:"ended"`
	TotalNs     int64        `json:"total_ns"`
	Bytes       uint64       `json:"bytes"`
	Errors      []errorCount `json:"errors"`
}

type errorCount struct {
	Errno string `json:"errno"`
	Count int64  `json:"count"`
}

type messageCount struct {
	Message string `json:"message"`
	Count   int64  `json:"count"`
}

// faultSummary is about all faults of one kind: those read are those again,
// those woken and those never woken together.
type faultSummary struct {
	Kind  string `json:"kind"`
	Read  int64  `json:"read"`
	Again int64  `json:"again"`
	Woken int64  `json:"woken"`
	Never int64  `json:"never"`
	P50   int64  `json:"p50_ns"`
	P90   int64  `json:"p90_ns"`
	P99   int64  `json:"p99_ns"`
	Max   int64  `json:"max_ns"`
}

func (s *stats) summary(elapsed time.Duration) *summary {
	out := &summary{
		Schema: Schema, Event: eventSummary, ElapsedNs: int64(elapsed),
		Processes: s.processes, Files: s.files, Notes: s.notes,
		Calls: []callSummary{}, Messages: []messageCount{}, Faults: []faultSummary{},
	}
	for _, name := range slices.Sorted(maps.Keys(s.calls)) {
		c := s.calls[name]
		sum := callSummary{
			Call: name, Count: c.count, Failed: c.failed, Interrupted: c.interrupted,
			Ended: c.ended, TotalNs: int64(c.took), Bytes: c.bytes, Errors: []errorCount{},
		}
		for e, n := range c.errnos {
			sum.Errors = append(sum.Errors, errorCount{e.String(), n})
		}
		slices.SortFunc(sum.Errors, func(a, b errorCount) int {
			return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Errno, b.Errno))
		})
		out.Calls = append(out.Calls, sum)
	}
	for _, k := range slices.Sorted(maps.Keys(s.messages)) {
		out.Messages = append(out.Messages, messageCount{k.String(), s.messages[k]})
	}
	for k := range kinds {
		f := &s.faults[k]
		if f.read == 0 {
			continue
		}
		q := f.latency.Read()
		out.Faults = append(out.Faults, faultSummary{
			Kind: k.String(), Read: f.read, Again: f.again, Woken: f.woken, Never: f.read - f.again - f.woken,
			P50: int64(q.P50), P90: int64(q.P90), P99: int64(q.P99), Max: int64(q.Max),
		})
	}
	return out
}

// text returns the summary as lines.
func (s *summary) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "faultline: %s s, %s, %s", seconds(time.Duration(s.ElapsedNs)),
		counted(s.Processes, "process", "processes"), counted(s.Files, "userfaultfd", "userfaultfds"))
	if s.Notes > 0 {
		fmt.Fprintf(&b, "; not all was seen: %s above", counted(s.Notes, "note", "notes"))
	}
	b.WriteByte('\n')
	if len(s.Calls) > 0 {
		fmt.Fprintf(&b, "  %-20s %9s %9s %12s %14s  %s\n", "call", "count", "failed", "seconds", "bytes", "errors")
		for _, c := range s.Calls {
			c.write(&b)
		}
	}
	if len(s.Messages) > 0 {
		parts := make([]string, len(s.Messages))
		for i, m := range s.Messages {
			parts[i] = fmt.Sprintf("%d %s", m.Count, m.Message)
		}
		fmt.Fprintf(&b, "  messages: %s\n", strings.Join(parts, ", "))
	}
	if len(s.Faults) > 0 {
		fmt.Fprintf(&b, "  %-8s %9s %9s %9s %9s %10s %10s %10s %10s\n",
			"faults", "read", "again", "woken", "never", "p50", "p90", "p99", "max")
		for _, f := range s.Faults {
			fmt.Fprintf(&b, "  %-8s %9d %9d %9d %9d %10s %10s %10s %10s\n", f.Kind, f.Read, f.Again, f.Woken, f.Never,
				seconds(time.Duration(f.P50)), seconds(time.Duration(f.P90)), seconds(time.Duration(f.P99)), seconds(time.Duration(f.Max)))
		}
	}
	return b.String()
}

func (c *callSummary) write(b *strings.Builder) {
	bytes := ""
	if c.Bytes > 0 {
		bytes = fmt.Sprint(c.Bytes)
	}
	var errs []string
	for _, e := range c.Errors {
		errs = append(errs, fmt.Sprintf("%s %d", e.Errno, e.Count))
	}
	line := fmt.Sprintf("  %-20s %9d %9d %12s %14s  %s", c.Call, c.Count, c.Failed,
		seconds(time.Duration(c.TotalNs)), bytes, strings.Join(errs, ", "))
	b.WriteString(strings.TrimRight(line, " ") + "\n")
}

func counted(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
