// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"
)

// TestMeasures runs each measurement in small: what it calls must succeed, or
// check ends the process.
func TestMeasures(t *testing.T) {
	if rate := faultRate(3, 10*time.Millisecond); rate <= 0 {
		t.Errorf("%v faults a second", rate)
	}
	for _, c := range treeCosts(2000) {
		if c.micros <= 0 {
			t.Errorf("%s takes no time", c.what)
		}
	}
	for _, r := range append(unrelated(1000), memory()...) {
		if strings.Contains(r.what, "memory") && !r.ok {
			t.Errorf("%s: %s, goal %s", r.what, r.value, r.goal)
		}
	}
}
