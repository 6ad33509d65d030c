// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package collect_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/workload"
)

// A trace is the same whoever answers: the same calls with the same words, the
// same messages and faults, objects of the same members, and sums that agree.
// Programs are those in which only one thread calls at a time.
func TestSameOnBoth(t *testing.T) {
	for _, args := range [][]string{
		{"acts", "calls"}, {"acts", "numbers"}, {"acts", "forked"}, {"acts", "nothing"},
		{"provide", "copy", "20"}, {"provide", "bulk", "640"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			command := append([]string{workload.Build(t, args[0])}, args[1:]...)
			var seen [2]portrait
			for i, on := range []way{kernel, provided} {
				seen[i] = draw(t, traced(t, on, 0, command...))
			}
			if d := cmp.Diff(seen[0], seen[1]); d != "" {
				t.Errorf("kernel (-), provided (+): %s", d)
			}
		})
	}
}

// portrait is what must be the same in two traces of one program.
type portrait struct {
	Calls   []string            // in their order, with all but addresses
	Others  []string            // what processes and descriptors do
	Members map[string][]string // of each kind of object
	Sums    map[string]any
}

// draw makes the portrait of a trace. What stands for an address, a task or a
// time is left out.
func draw(t *testing.T, tr *trace) portrait {
	t.Helper()
	p := portrait{Members: map[string][]string{}, Sums: map[string]any{}}
	for text := range bytes.Lines(tr.text) {
		var o map[string]any
		dec := json.NewDecoder(bytes.NewReader(text))
		dec.UseNumber()
		if err := dec.Decode(&o); err != nil || dec.More() {
			t.Fatalf("%v in %s", err, text)
		}
		event := o["event"].(string)
		kind := fmt.Sprint(event, " ", o["call"], " ", o["request"], " ", o["change"], " ", o["errno"])
		p.Members[kind] = slices.Compact(slices.Sorted(slices.Values(append(p.Members[kind], slices.Collect(maps.Keys(o))...))))
		plain(o)
		switch event {
		case "summary":
			p.Sums = o
		case "call":
			p.Calls = append(p.Calls, encoded(o))
		default:
			p.Others = append(p.Others, encoded(o))
		}
	}
	slices.Sort(p.Others) // a child may be told of before or after its parent
	return p
}

func encoded(o map[string]any) string {
	b, _ := json.Marshal(o) // it came from JSON
	return string(b)
}

// plain takes out of an object what no two runs have alike.
func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, x := range v {
			switch {
			case strings.HasSuffix(name, "_ns"), name == "pid", name == "tid", name == "ptid", name == "parent", name == "args":
				delete(v, name)
			default:
				v[name] = plain(x)
			}
		}
	case []any:
		for i, x := range v {
			v[i] = plain(x)
		}
	case string:
		if strings.HasPrefix(v, "0x") {
			return "a number"
		}
	}
	return v
}

// Faults that one thread serves for another, as fast as they come: what is
// counted agrees, but for a call in which the program ends.
func TestFaultsOnBoth(t *testing.T) {
	onBoth(t, func(t *testing.T, on way) {
		const n = 200
		tr := traced(t, on, 0, workload.Build(t, "provide"), "fault", fmt.Sprint(n))
		if got := tr.sum.messages("PAGEFAULT"); got != n {
			t.Errorf("%d faults read, want %d", got, n)
		}
		if got := tr.sum.calls("UFFDIO_COPY"); got != n {
			t.Errorf("%d copies, want %d", got, n)
		}
		if len(tr.sum.Faults) != 1 {
			t.Fatalf("%+v", tr.sum.Faults)
		}
		f := tr.sum.Faults[0]
		if f.Kind != "missing" || f.Read != n || f.Again != 0 || f.Woken < n-1 || f.Woken+f.Never != n {
			t.Errorf("%+v", f)
		}
		holdFaults(t, tr.of("call"))
	})
}

// An empty trace of what has no userfaultfd at all is the same, too: a shell
// and what it starts.
func TestShellOnBoth(t *testing.T) {
	_, err := os.Stat("/bin/sh")
	testutil.Need(t, err == nil, "needs a shell")
	onBoth(t, func(t *testing.T, on way) {
		tr := traced(t, on, 7, "/bin/sh", "-c", "(exit 3) | (exit 4); exit 7")
		if tr.sum.Processes != 3 || len(tr.sum.Calls) > 0 || tr.sum.Descriptors > 0 {
			t.Errorf("%+v", tr.sum)
		}
	})
}
