// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/internal/workload/measure"
)

func TestSummarise(t *testing.T) {
	floors := []measure.Latency{{Faults: 9, P50: 8000}, {Faults: 9, P50: 10000}, {Faults: 9, P50: 30000}}
	r := summarise(floors, []measure.Latency{{Faults: 5, P50: 11000, P99: 20000}, {Faults: 7, P50: 13000, P99: 40000}})
	if r.Floor.P50 != 10000 || r.Faultline.P50 != 12000 || r.Faultline.P99 != 30000 || r.Ratio != 1.2 {
		t.Errorf("summarised %+v, %+v, ratio %v", r.Floor, *r.Faultline, r.Ratio)
	}
	var b bytes.Buffer
	if err := r.print(&b); err != nil || !strings.Contains(b.String(), "p50 is 1.20 times") {
		t.Errorf("printed %q, %v", &b, err)
	}
	if r := summarise(floors, nil); r.Faultline != nil || r.Ratio != 0 {
		t.Errorf("without our side: %+v", r)
	}
}

// TestFloor runs the C program, which dies where a page is not the one that
// its handler gave.
func TestFloor(t *testing.T) {
	run, err := measure.Command(t.Context(), workload.Build(t, "floor"), "1")
	if err != nil && strings.Contains(err.Error(), "userfaultfd: ") {
		testutil.Need(t, false, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	var l measure.Latency
	if err := json.Unmarshal(run.Stdout, &l); err != nil {
		t.Fatal(err)
	}
	if l.Faults != 8192 || l.P50 <= 0 || l.P50 > l.P90 || l.P90 > l.P99 || l.P99 > l.Max {
		t.Errorf("the floor printed %s", run.Stdout)
	}
}
