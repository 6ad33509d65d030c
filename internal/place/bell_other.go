// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package place

import "time"

// Bell wakes one goroutine that sleeps.
type Bell struct{ c chan struct{} }

// NewBell returns a bell that has not been rung.
func NewBell() *Bell { return &Bell{make(chan struct{}, 1)} }

// Ring ends the present Wait, or the next one.
func (b *Bell) Ring() {
	select {
	case b.c <- struct{}{}:
	default: // rung already
	}
}

// Wait sleeps until the bell is rung, for at most d, or without end if d is
// negative. It reports whether it was rung since the latest Wait.
func (b *Bell) Wait(d time.Duration) (rung bool) {
	var late <-chan time.Time
	if d >= 0 {
		late = time.After(d)
	}
	select {
	case <-b.c:
		return true
	case <-late:
		return false
	}
}
