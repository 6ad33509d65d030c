// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/faultline-go/faultline/mem"
)

func TestStreamRoundTrip(t *testing.T) {
	want := []mem.Page{1 << 50, 0, 5, 4, 1<<51 - 1, 7}
	var b bytes.Buffer
	if err := writeStream(&b, want); err != nil {
		t.Fatal(err)
	}
	got, err := readStream(bytes.NewReader(b.Bytes()))
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("readStream = %v, %v, want %v", got, err, want)
	}
	for n := range b.Len() - 1 {
		if _, err := readStream(bytes.NewReader(b.Bytes()[:n])); err == nil && n < b.Len()-8 {
			t.Errorf("no error for a stream cut to %d of %d bytes", n, b.Len())
		}
	}
}

func FuzzReadStream(f *testing.F) {
	var b bytes.Buffer
	if err := writeStream(&b, []mem.Page{3, 2, 1}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte(streamMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		pages, err := readStream(bytes.NewReader(data))
		for _, p := range pages {
			if err == nil && p > 1<<52 {
				t.Errorf("page %#x", p)
			}
		}
	})
}

// TestCondense: a page comes up once in every window of kept accesses, no
// matter how often it is touched.
func TestCondense(t *testing.T) {
	var raw []byte
	for _, p := range []uint64{1, 1, 2, 1, 3, 1, 2, 4, 1} {
		raw = binary.NativeEndian.AppendUint64(raw, p)
	}
	got, err := condense(bytes.NewReader(raw), 3)
	if want := []mem.Page{1, 2, 3, 4, 1}; err != nil || !cmp.Equal(got, want) {
		t.Errorf("condense = %v, %v, want %v", got, err, want)
	}
	if _, err := condense(bytes.NewReader(raw[:5]), 3); err == nil {
		t.Error("no error for half a record")
	}
}

// TestReferences checks the simulated policies on a sequence done by hand.
func TestReferences(t *testing.T) {
	seq := []mem.Page{1, 2, 3, 1, 4, 1, 2, 3, 1, 5, 1}
	for name, want := range map[string]float64{
		"optimal": 6, // 1 2 3 4, then 2 or 3 again, 5
		"LRU":     7,
		"FIFO":    9,
	} {
		for _, p := range policies {
			if p.name == name {
				if got := ratio(p.make(3, seq), seq) * float64(len(seq)); got != want {
					t.Errorf("%s: %v faults, want %v", name, got, want)
				}
			}
		}
	}
}

// TestNoWorseThanFIFO bounds the loss against a plain FIFO on every stream,
// the synthetic ones from a seed that the queue was not tuned on.
func TestNoWorseThanFIFO(t *testing.T) {
	rows, err := streams(false, nil, 42, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		for _, n := range r.budgets {
			opt := ratio(newOptimal(n, r.pages), r.pages)
			plain := ratio(newFIFO(n), r.pages)
			got := ratio(newOurs(n, 0, nil), r.pages)
			if got > plain*1.12+1e-9 {
				t.Errorf("%s with %d pages: miss ratio %.4f, FIFO %.4f", r.name, n, got, plain)
			}
			if got < opt-1e-9 || plain < opt-1e-9 {
				t.Errorf("%s with %d pages: ratio %.4f or %.4f beats the optimum %.4f", r.name, n, got, plain, opt)
			}
		}
	}
}

// TestOptimalIsBest on random streams: the reference is no reference if
// another policy beats it.
func TestOptimalIsBest(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 20 {
		s := zipf(r, 200, 3000)
		opt := ratio(newOptimal(40, s), s)
		for _, p := range policies[:5] {
			if got := ratio(p.make(40, s), s); got < opt-1e-9 {
				t.Errorf("%s has ratio %.4f, the optimum %.4f", p.name, got, opt)
			}
		}
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	if err := run([]string{"-stream", "testdata/sort.pages"}, &b); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(b.String(), "\n"); got != 4 || !strings.Contains(b.String(), "sort.pages") {
		t.Errorf("want a head and three rows:\n%s", b.String())
	}
	if err := run([]string{"-stream", "policy_test.go"}, &b); err == nil {
		t.Error("no error for a file that is no stream")
	}
}
