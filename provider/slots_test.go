// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"testing"

	"github.com/faultline-go/faultline/internal/inject"
)

// TestSlots: no two threads that wait have the same place, whatever their ids. It
// was chosen by the id, modulo how many there are.
func TestSlots(t *testing.T) {
	var s slots
	seen := make(map[int]bool)
	for slot := s.take(); slot >= 0; slot = s.take() {
		if seen[slot] || slot < scratch+slotSize || slot+slotSize > inject.DataSize || slot%8 != 0 {
			t.Fatalf("place %#x is had by another, or is none", slot)
		}
		seen[slot] = true
	}
	if len(seen) < 30000 {
		t.Errorf("there are %d places", len(seen))
	}
	for slot := range seen {
		s.give(slot)
	}
	if s.take() < 0 {
		t.Error("what was given back cannot be had")
	}
}
