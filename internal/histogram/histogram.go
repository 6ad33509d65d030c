// SPDX-License-Identifier: Apache-2.0

// Package histogram counts durations, and tells how long most of them were.
package histogram

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// parts is in how many buckets a power of two is split: a quantile is at most
// one part in so many too high.
const (
	logParts = 3
	parts    = 1 << logParts
)

// Histogram counts durations in nanoseconds. The zero value is empty. Its
// methods may be called from anywhere.
type Histogram struct {
	bucket [(64 - logParts) * parts]atomic.Int64
	most   atomic.Int64
}

// Add counts d. A negative duration, as of two processors' clocks, is none.
func (h *Histogram) Add(d time.Duration) {
	n := max(int64(d), 0)
	h.bucket[bucketOf(uint64(n))].Add(1)
	for {
		old := h.most.Load()
		if n <= old || h.most.CompareAndSwap(old, n) {
			return
		}
	}
}

// bucketOf returns the bucket of n. Numbers below parts have one each.
func bucketOf(n uint64) int {
	if n < parts {
		return int(n)
	}
	shift := bits.Len64(n) - logParts - 1
	return (shift+1)*parts + int(n>>shift&(parts-1))
}

// bucketTop returns the largest duration of bucket i.
func bucketTop(i int) time.Duration {
	if i < parts {
		return time.Duration(i)
	}
	shift := i/parts - 1
	return time.Duration((uint64(parts+i%parts)+1)<<shift - 1)
}

// Quantiles are what a Histogram has counted: a duration that 50, 90 and 99
// percent of all do not exceed, at most an eighth too high, and the longest.
type Quantiles struct {
	Count              int64
	P50, P90, P99, Max time.Duration
}

// Read returns the quantiles of what was counted, zeros of nothing.
func (h *Histogram) Read() Quantiles {
	var counts [len(h.bucket)]int64
	var q Quantiles
	for i := range h.bucket {
		counts[i] = h.bucket[i].Load()
		q.Count += counts[i]
	}
	q.Max = time.Duration(h.most.Load())
	quantile := func(percent int64) time.Duration {
		want, sum := (q.Count*percent+99)/100, int64(0)
		for i, n := range counts {
			if sum += n; n > 0 && sum >= want {
				return min(bucketTop(i), q.Max)
			}
		}
		return 0
	}
	q.P50, q.P90, q.P99 = quantile(50), quantile(90), quantile(99)
	return q
}
