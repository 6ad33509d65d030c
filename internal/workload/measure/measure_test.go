// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{8, 2, 4, 100}, 6},
	} {
		if got := Median(c.values); got != c.want {
			t.Errorf("Median(%v) = %v, want %v", c.values, got, c.want)
		}
	}
}

func TestParse(t *testing.T) {
	text := []byte("time fill 10.5 512\nnoise: time\ntime hot 3.0 1024\n" +
		"latency hot 7 3000 4000 5000 6000\ntime hot 4.0 1024\n")
	if diff := cmp.Diff(map[string]float64{"fill": 10.5, "hot": 4}, Times(text)); diff != "" {
		t.Error(diff)
	}
	want := map[string]Latency{"hot": {Faults: 7, P50: 3000, P90: 4000, P99: 5000, Max: 6000}}
	if diff := cmp.Diff(want, Latencies(text)); diff != "" {
		t.Error(diff)
	}
}

func TestCommand(t *testing.T) {
	r, err := Command(t.Context(), "sh", "-c", "echo out; echo err >&2")
	if err != nil || string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" || r.Wall <= 0 {
		t.Errorf("Command = %+v, %v", r, err)
	}
	_, err = Command(t.Context(), "sh", "-c", "echo why >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "why") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("Command of a program that exits with 3 = %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := Command(ctx, "sleep", "60"); err == nil {
		t.Error("Command outlived its context")
	}
}

func TestMachine(t *testing.T) {
	var b bytes.Buffer
	if err := Machine(&b); err != nil || !strings.Contains(b.String(), "Linux ") {
		t.Errorf("Machine wrote %q, %v", &b, err)
	}
}
