// SPDX-License-Identifier: Apache-2.0

package histogram

import (
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A quantile is never too low, and at most an eighth too high.
func TestQuantiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) int64 {
			return rapid.Int64Range(0, math.MaxInt64>>rapid.IntRange(0, 62).Draw(t, "shift")).Draw(t, "ns")
		}), 1, 200).Draw(t, "samples")
		var h Histogram
		for _, d := range all {
			h.Add(time.Duration(d))
		}
		slices.Sort(all)
		q := h.Read()
		if q.Count != int64(len(all)) || int64(q.Max) != all[len(all)-1] {
			t.Fatalf("%+v of %v", q, all)
		}
		for _, tc := range []struct {
			got     time.Duration
			percent int
		}{{q.P50, 50}, {q.P90, 90}, {q.P99, 99}} {
			want := all[(len(all)*tc.percent+99)/100-1]
			if got := int64(tc.got); got < want || got-want > want/8 {
				t.Fatalf("p%d is %d, want about %d of %v", tc.percent, got, want, all)
			}
		}
	})
}

func TestNothingAndLess(t *testing.T) {
	var h Histogram
	if q := h.Read(); q != (Quantiles{}) {
		t.Errorf("%+v of nothing", q)
	}
	h.Add(-1)
	if q := h.Read(); q != (Quantiles{Count: 1}) {
		t.Errorf("%+v of a negative duration", q)
	}
}

// Every bucket ends where the next begins.
func TestBuckets(t *testing.T) {
	var h Histogram
	for i := range h.bucket {
		top := uint64(bucketTop(i))
		if bucketOf(top) != i {
			t.Fatalf("bucket %d has its top %d in bucket %d", i, top, bucketOf(top))
		}
		if i+1 < len(h.bucket) && bucketOf(top+1) != i+1 {
			t.Fatalf("bucket %d ends at %d, and the next does not begin there", i, top)
		}
	}
	if last := uint64(bucketTop(len(h.bucket) - 1)); last != math.MaxInt64 {
		t.Errorf("the last bucket ends at %d", last)
	}
}

func TestConcurrentAdds(t *testing.T) {
	var h Histogram
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 1000 {
				h.Add(time.Duration(i*1000 + n))
			}
		})
	}
	wg.Wait()
	if q := h.Read(); q.Count != 4000 || q.Max != 3999 {
		t.Errorf("%+v", q)
	}
}
