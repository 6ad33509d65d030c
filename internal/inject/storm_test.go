// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestSignalStorm queues numbered signals before, during and after sessions,
// and borrows the thread at each delivery too. The program must get every
// number once and in order.
func TestSignalStorm(t *testing.T) {
	v, _ := start(t, "values")
	const last = 300
	sent := 0
	send := func(n int) {
		for ; n > 0 && sent < last; n-- {
			if err := sigqueue(v.pid, 34, sent); err != nil {
				t.Fatal(err)
			}
			sent++
		}
	}
	stops := 0
	send(1)
	v.follow(func(tid, code int) (int, bool) {
		stops++
		if code>>8 == unix.PTRACE_EVENT_STOP && sent == last {
			return 0, false
		}
		s := v.open()
		send(2)
		if err := meddle(s, v.pid); err != nil {
			t.Error(err)
		}
		send(1)
		closeSession(t, s)
		left := int(s.Status()>>8) & 0xffffff
		if stops%2 == 0 && sent < last {
			ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0)
		}
		return left, true
	}, unix.PTRACE_CONT)
	if got := v.rest(); got != "ok\n" {
		t.Errorf("program printed %q after %d stops", got, stops)
	}
}
