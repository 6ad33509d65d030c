// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package collect_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Every ioctl, with what it was given and told, the messages, and who is woken.
func TestCalls(t *testing.T) {
	onBoth(t, func(t *testing.T, on way) {
		tr := acts(t, on, 0, "calls")
		want := []string{
			"userfaultfd", "UFFDIO_API", "userfaultfd EINVAL", "UFFDIO_REGISTER",
			"read PAGEFAULT", "UFFDIO_COPY wakes missing", "UFFDIO_COPY EEXIST", "UFFDIO_COPY EINVAL",
			"readv PAGEFAULT", "UFFDIO_COPY", "UFFDIO_WAKE wakes missing",
			"UFFDIO_WRITEPROTECT", "preadv2 PAGEFAULT", "UFFDIO_WRITEPROTECT wakes wp",
			"UFFDIO_ZEROPAGE", "UFFDIO_ZEROPAGE EEXIST", "UFFDIO_MOVE", "UFFDIO_POISON", "UFFDIO_CONTINUE EINVAL",
			"UFFDIO_COPY EFAULT", "UFFDIO_COPY EFAULT", "0xaa77 EINVAL", "read EINVAL",
			"read PAGEFAULT", "UFFDIO_UNREGISTER wakes missing", "read PAGEFAULT",
		}
		if d := cmp.Diff(want, tr.names()); d != "" {
			t.Fatal(d)
		}
		calls := tr.of("call")
		for i, want := range map[int]struct{ given, told map[string]any }{
			1: {map[string]any{"api": "0xaa", "features": "THREAD_ID"}, nil},
			3: {map[string]any{"len": 32768.0, "mode": "MISSING|WP"}, map[string]any{"ioctls": "WAKE|COPY|ZEROPAGE|MOVE|WRITEPROTECT|POISON"}},
			5: {map[string]any{"len": 4096.0, "mode": "0"}, map[string]any{"copy": 4096.0}},
			6: {nil, map[string]any{"copy": -17.0}},
			9: {map[string]any{"mode": "DONTWAKE"}, map[string]any{"copy": 4096.0}},
			// B.6: refused before anything is written.
			7:  {map[string]any{"len": 4096.0}, nil},
			14: {nil, map[string]any{"zeropage": 8192.0}},
		} {
			for _, part := range []struct{ got, want map[string]any }{{calls[i].Given, want.given}, {calls[i].Told, want.told}} {
				for name, v := range part.want {
					if part.got[name] != v {
						t.Errorf("call %d, %s: %s is %v, want %v", i, calls[i].name(), name, part.got[name], v)
					}
				}
			}
		}
		if calls[7].Told != nil || calls[19].Given != nil {
			t.Errorf("told %v, given %v where nothing can be", calls[7].Told, calls[19].Given)
		}
		if f := calls[0].Flags; f != "O_CLOEXEC|UFFD_USER_MODE_ONLY" {
			t.Errorf("flags %s", f)
		}
		holdFaults(t, calls)
		var sum []string
		for _, f := range tr.sum.Faults {
			sum = append(sum, fmt.Sprintf("%s %d %d %d %d", f.Kind, f.Read, f.Again, f.Woken, f.Never))
		}
		if d := cmp.Diff([]string{"missing 4 0 3 1", "wp 1 0 1 0"}, sum); d != "" {
			t.Error(d)
		}
	})
}

// holdFaults checks that each fault that is woken has been read before, and its
// latency against the times of both calls.
func holdFaults(t *testing.T, calls []line) {
	t.Helper()
	read := map[string]int64{}
	for _, c := range calls {
		end := c.TimeNs + c.DurationNs
		for _, m := range c.Messages {
			key := fmt.Sprint(m.Address, m.TID)
			if m.Message == "PAGEFAULT" && read[key] == 0 {
				read[key] = end
			}
		}
		for _, w := range c.Woken {
			key := fmt.Sprint(w.Address, w.TID)
			if since := read[key]; since == 0 || w.AfterNs != end-since {
				t.Errorf("%s: %+v, read at %d and woken at %d", c.name(), w, since, end)
			}
			delete(read, key)
		}
	}
}

// Descriptors that are made and closed in every way are the same file, and what
// is read from each number is seen.
func TestNumbers(t *testing.T) {
	onBoth(t, func(t *testing.T, on way) {
		tr := acts(t, on, 0, "numbers")
		device := 0
		if tr.sum.calls("USERFAULTFD_IOC_NEW") > 0 {
			device = 1
		} else if f, err := os.Open("/dev/userfaultfd"); err == nil {
			f.Close()
			t.Error("the device is there, and what it made was not seen")
		}
		if got, want := tr.sum.Descriptors, 101+device; got != want {
			t.Errorf("%d files, want %d", got, want)
		}
		if got, want := tr.sum.calls("read"), 107+device; got != want {
			t.Errorf("%d reads, want %d", got, want)
		}
		made, closed := map[string]int{}, map[string]int{}
		first := 0
		for _, d := range tr.of("descriptor") {
			if d.Change == "made" {
				made[d.By]++
			} else {
				closed[d.By]++
			}
			if d.Descriptor != 1 {
				continue
			}
			if first += map[string]int{"made": 1, "closed": -1}[d.Change]; d.Last != (first == 0) {
				t.Errorf("%+v with %d left", d, first)
			}
		}
		wantMade := map[string]int{"userfaultfd": 101, "dup": 1, "dup2": 1, "dup3": 1, "fcntl": 2}
		if device > 0 {
			wantMade["ioctl"] = 1
		}
		// The original, and 20; 21 and 30; the rest ends with the process.
		wantClosed := map[string]int{"close": 1 + device, "dup2": 1, "close_range": 2, "exit": 102}
		if d := cmp.Diff(wantMade, made); d != "" {
			t.Error("made", d)
		}
		if d := cmp.Diff(wantClosed, closed); d != "" {
			t.Error("closed", d)
		}
		if len(tr.of("note")) > 0 {
			t.Error(tr.of("note"))
		}
	})
}

// A thread reads while another one executes a program: the read has no result,
// and what the program has kept is known.
func TestExec(t *testing.T) {
	onBoth(t, func(t *testing.T, on way) {
		tr := acts(t, on, 0, "execs")
		execs := slices.DeleteFunc(tr.of("process"), func(l line) bool { return l.Change != "exec" })
		if len(execs) != 1 || len(execs[0].Holds) != 1 || len(execs[0].Closed) != 1 {
			t.Fatalf("%+v", execs)
		}
		// The thread may not have come to its read by then.
		names := slices.DeleteFunc(tr.names(), func(s string) bool { return s == "read ?" })
		if d := cmp.Diff([]string{"userfaultfd", "UFFDIO_API", "userfaultfd", "UFFDIO_API", "read EAGAIN", "UFFDIO_COPY ESRCH"}, names); d != "" {
			t.Error(d)
		}
		for _, c := range tr.of("call")[4:] {
			if c.Ret != nil && c.Descriptor != 2 {
				t.Errorf("%s on file %d, want 2", c.name(), c.Descriptor)
			}
		}
	})
}

// A process is killed in the middle of calls.
func TestKilled(t *testing.T) {
	onBoth(t, func(t *testing.T, on way) {
		tr := acts(t, on, 128+9, "killed")
		exit := tr.of("process")[1]
		if exit.Signal != "SIGKILL" || exit.Status != nil || len(exit.Closed) != 1 {
			t.Errorf("%+v", exit)
		}
		if ds := tr.of("descriptor"); len(ds) != 2 || !ds[1].Last || ds[1].By != "exit" {
			t.Errorf("%+v", ds)
		}
	})
}

// H9: what an ioctl points to is a missing page. Who looks at it must not wait
// for it, since the program that brings it waits for him.
func TestArgumentIsMissing(t *testing.T) {
	onBoth(t, func(t *testing.T, on way) {
		tr := acts(t, on, 0, "argument")
		names := tr.names()
		slices.Sort(names) // the two that end last end together
		want := []string{"UFFDIO_API", "UFFDIO_COPY wakes missing", "UFFDIO_REGISTER", "UFFDIO_WAKE", "read PAGEFAULT", "userfaultfd"}
		if d := cmp.Diff(want, names); d != "" {
			t.Error(d)
		}
	})
}

// Descriptors that go to other processes in messages are known there before
// they are used, however the receiver waits, and though the sender closes its
// own at once.
func TestSend(t *testing.T) {
	onBoth(t, func(t *testing.T, on way) {
		for range 10 {
			tr := acts(t, on, 0, "sends")
			if tr.sum.Descriptors != 3 || tr.sum.messages("PAGEFAULT") != 3 || tr.sum.calls("close") != 3 {
				t.Errorf("%d files, %d faults read, %d closed; want 3", tr.sum.Descriptors, tr.sum.messages("PAGEFAULT"), tr.sum.calls("close"))
			}
			if n := tr.sum.Faults[0].Woken; n != 3 {
				t.Errorf("%d faults woken, want 3", n)
			}
			sender := tr.of("process")[0].PID
			for _, d := range tr.of("descriptor") {
				if d.Last && d.PID == sender {
					t.Errorf("the last descriptor was that of the sender: %+v", d)
				}
			}
			if t.Failed() {
				t.Fatalf("%v", tr.names())
			}
		}
	})
}

// A descriptor that comes in a message of another is a new file. The child has
// a copy of the one that was there before it.
func TestForkEvent(t *testing.T) {
	onBoth(t, func(t *testing.T, on way) {
		tr := acts(t, on, 0, "forked")
		want := []string{"userfaultfd", "UFFDIO_API", "UFFDIO_REGISTER", "read FORK", "read EINVAL", "close"}
		if d := cmp.Diff(want, tr.names()); d != "" {
			t.Error(d)
		}
		calls := tr.of("call")
		if fd := calls[3].Messages[0].FD; calls[4].FD != fd || calls[4].Descriptor == calls[3].Descriptor || calls[4].Descriptor == 0 {
			t.Errorf("read of %d, file %d, after a message about %d in file %d", calls[4].FD, calls[4].Descriptor, fd, calls[3].Descriptor)
		}
		child := tr.of("process")[1]
		if child.Change != "fork" || len(child.Holds) != 1 || child.Parent != calls[0].PID {
			t.Errorf("%+v", child)
		}
	})
}

// A program whose own filter kills it for what would be injected is let alone,
// and that is said. What others do with its descriptors is seen.
func TestOwnFilter(t *testing.T) {
	tr := acts(t, kernel, 0, "filtered")
	notes := tr.of("note")
	if len(notes) != 1 || !strings.Contains(notes[0].Text, "filter of its own") || tr.sum.Notes != 1 {
		t.Errorf("notes %+v", notes)
	}
	var names []string
	for _, n := range tr.names() {
		if !strings.HasPrefix(n, "recv") {
			names = append(names, n)
		}
	}
	// The first read is the program's, the second its child's.
	want := []string{"userfaultfd", "UFFDIO_API", "UFFDIO_COPY ENOENT", "read EAGAIN"}
	if d := cmp.Diff(want, names); d != "" {
		t.Error(d)
	}
	if tr.sum.Descriptors != 1 {
		t.Errorf("%d files, want 1", tr.sum.Descriptors)
	}
}

// What a process reads from a descriptor that another has made in their common
// table is seen, and the table ends with the last of them.
func TestSharedTable(t *testing.T) {
	onBoth(t, func(t *testing.T, on way) {
		tr := acts(t, on, 0, "shared")
		if n := tr.sum.calls("read"); n != 1000 {
			t.Errorf("%d reads, want 1000", n)
		}
		ds := tr.of("descriptor")
		if len(ds) != 2 || ds[1].By != "exit" || ds[1].PID != ds[0].PID {
			t.Errorf("%+v", ds)
		}
	})
}

// Whatever a program passes, it gets what it would have got, and the trace is
// whole.
func TestRandomCalls(t *testing.T) {
	onBoth(t, func(t *testing.T, on way) {
		for seed := range 4 {
			tr := acts(t, on, 0, "random", fmt.Sprint(seed))
			if len(tr.of("note")) > 0 || tr.sum.calls("UFFDIO_REGISTER") == 0 || tr.sum.Descriptors != 4 {
				t.Errorf("seed %d: %d files, notes %v", seed, tr.sum.Descriptors, tr.of("note"))
			}
		}
	})
}

// A program that does not use userfaultfd has no lines but those of processes.
func TestNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, on way) {
		tr := acts(t, on, 0, "nothing")
		for _, l := range tr.lines {
			if l.Event != "process" {
				t.Errorf("%+v", l)
			}
		}
		if tr.sum.Processes != 1 || len(tr.lines) != 2 {
			t.Errorf("%d processes, %d lines", tr.sum.Processes, len(tr.lines))
		}
	})
}
