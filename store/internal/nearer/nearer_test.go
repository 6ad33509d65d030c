// SPDX-License-Identifier: Apache-2.0

package nearer

import (
	"bytes"
	"testing"
)

// TestBring goes over slices of all lengths and alignments, whose bytes stay
// what they are, and over none at all. A loop that does not end fails by time.
func TestBring(t *testing.T) {
	b := bytes.Repeat([]byte{7}, 300)
	for from := range 70 {
		for to := from; to <= len(b); to++ {
			Bring(b[from:to])
		}
	}
	Bring(nil)
	if !bytes.Equal(b, bytes.Repeat([]byte{7}, 300)) {
		t.Error("bytes have changed")
	}
}
