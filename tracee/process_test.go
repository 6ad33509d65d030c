// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import "testing"

// TestBorrowersDoNotStandForASpace: whenever a process left an address space any of the
// others stood for it from then on, such as one that was about to end as well. Who
// looked at the memory by its id found nothing.
func TestBorrowersDoNotStandForASpace(t *testing.T) {
	for range 20 { // the choice was random
		s := &Space{}
		owner, heir, borrower := &Process{pid: 10}, &Process{pid: 11}, &Process{pid: 12}
		for _, p := range []*Process{owner, heir, borrower} {
			s.add(p)
		}
		for _, step := range []struct {
			leaves *Process
			pid    int
		}{{borrower, 10}, {borrower, 10}, {owner, 11}, {heir, 0}} {
			if last := s.remove(step.leaves); last != (step.pid == 0) || s.Pid() != step.pid {
				t.Fatalf("when %d has left, %d stands for the space, want %d; the last: %v", step.leaves.pid, s.Pid(), step.pid, last)
			}
		}
	}
}
