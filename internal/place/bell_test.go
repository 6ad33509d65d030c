// SPDX-License-Identifier: Apache-2.0

package place

import (
	"runtime"
	"testing"
	"time"
)

// TestBell has two threads wake each other many times: a wakeup that is lost
// ends the one for good.
func TestBell(t *testing.T) {
	const rounds = 20_000
	ping, pong := NewBell(), NewBell()
	lost := make(chan int, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for range rounds {
			for !ping.Wait(-1) { // a signal may end it
			}
			pong.Ring()
		}
	}()
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for i := range rounds {
			ping.Ring()
			for began := time.Now(); !pong.Wait(time.Second); {
				if time.Since(began) > 20*time.Second {
					lost <- i
					return
				}
			}
		}
		lost <- -1
	}()
	if i := <-lost; i >= 0 {
		t.Fatalf("the wakeup of round %d was lost", i)
	}
	if pong.Wait(0) || pong.Wait(time.Millisecond) {
		t.Error("rung, and nobody did")
	}
	pong.Ring()
	pong.Ring()
	if !pong.Wait(0) || pong.Wait(0) {
		t.Error("two rings before a Wait are one")
	}
}
