// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"os"
	"sync/atomic"
	"syscall"
)

// os/signal does not say where a signal came from. To know it, a few
// instructions go in front of the Go runtime's handler; see notesig_*.s.

// signalCodes holds the si_code of the last signal of each number. Written
// by noteSignal.
var signalCodes [65]int32

// goHandler is where noteSignal goes on: the runtime's handler, which is one
// function for all signals.
var goHandler uintptr

// noteSignalPC returns the address of noteSignal. A func value would be that
// of a wrapper, which expects to run on a goroutine.
func noteSignalPC() uintptr

// noteCodes puts noteSignal in front of the handlers of these signals, which
// signal.Notify must have installed.
func noteCodes(sigs []os.Signal) {
	for _, s := range sigs {
		sig := int(s.(syscall.Signal))
		sa, err := getAction(sig)
		if err != nil || sa.handler <= sigIgn || sa.handler == noteSignalPC() {
			continue
		}
		if goHandler == 0 {
			goHandler = sa.handler
		}
		if sa.handler != goHandler {
			continue // not what we know; its code stays 0, "sent by somebody"
		}
		sa.handler = noteSignalPC()
		_ = setAction(sig, sa)
	}
}

// signalCode returns the si_code of the last signal of this number.
func signalCode(sig int) int32 { return atomic.LoadInt32(&signalCodes[sig]) }
