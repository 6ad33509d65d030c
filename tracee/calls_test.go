// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"context"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// caller notes the calls of each child until one is the last.
type caller struct {
	NopHandler
	t     *testing.T
	last  uintptr
	calls []uintptr
}

func (h *caller) Fork(_, child *Process) {
	for _, th := range child.Threads() {
		th.Calls(func() bool {
			c, err := th.Call()
			if err != nil || !c.Native {
				h.t.Errorf("%+v, %v", c, err)
			}
			h.calls = append(h.calls, c.Nr)
			return c.Nr != h.last
		})
	}
}

// The calls of a thread are looked at until it calls exec, or is let be. The real ends
// of calls, and what comes after exec, are not reported.
func TestCalls(t *testing.T) {
	const none = ^uintptr(0)
	for _, last := range []uintptr{none, unix.SYS_UMASK} {
		h := &caller{t: t, last: last}
		tr := launched(t, h, "/bin/sh", "-c", "(umask 7; umask 27; exec /bin/true) && (umask 7; exec /bin/true)")
		if s := ended(t, tr); s.Code() != 0 {
			t.Errorf("last %#x: %v", last, s)
		}
		count := func(nr uintptr) (n int) {
			for _, c := range h.calls {
				if c == nr {
					n++
				}
			}
			return n
		}
		execs, masks := 2, count(unix.SYS_UMASK)
		if last != none {
			execs = 0
		}
		if got := count(unix.SYS_EXECVE); got != execs || !slices.Contains([]uintptr{last, unix.SYS_EXECVE}, h.calls[len(h.calls)-1]) {
			t.Errorf("last %#x: %d calls of execve, want %d: %d", last, got, execs, h.calls)
		}
		if last == none && masks < 3 || last != none && masks != 2 {
			t.Errorf("last %#x: %d calls of umask: %d", last, masks, h.calls)
		}
	}
}

// Who has given up waiting for a thread must not have one interrupted any more: it may
// be in a call that ends by it.
func TestStoppedTooLate(t *testing.T) {
	tr := launched(t, nil, "/bin/sleep", "1000")
	tr.Continue()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := tr.Stopped(ctx, tr.Root().Space(), func(*Thread) error {
		t.Error("stopped a thread")
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want the error of the context", err)
	}
}
