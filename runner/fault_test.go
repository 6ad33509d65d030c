// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/runner/internal/runtest"
)

// storeOf takes turns with the kinds of store.
func storeOf(i int) string { return []string{"mem:", "file:"}[i%2] }

// A program whose pager has died would read zeros (H7): it must be dead
// before it can. Some supervisors die while the program is launched, most
// while pages are on their way in and out, every fourth with forked children.
func TestSupervisorKilled(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 1))
	engaged := 0
	var latest time.Duration
	for i := range runtest.Smaller(100, 10) {
		seed := strconv.Itoa(i + 1)
		s := scene{limit: 4 * runtest.MiB, store: storeOf(i), args: []string{workload.Build(t, "selfcheck"), "16", seed}}
		if i%4 == 3 {
			s.args = []string{sufferer(t), "fork", "16", seed, "1000000"}
		}
		v := s.start(t)
		switch {
		case i%10 == 0:
			time.Sleep(time.Duration(rng.IntN(int(40 * time.Millisecond))))
		case i%4 == 3:
			v.agent(t)
			time.Sleep(time.Duration(rng.IntN(int(300 * time.Millisecond))))
		default:
			v.expect(t, "ok")
			time.Sleep(time.Duration(rng.IntN(int(100 * time.Millisecond))))
		}
		if len(v.agents()) > 0 {
			engaged++
		}
		all := v.everybody()
		v.kill(t, v.PID(), syscall.SIGKILL)
		latest = max(latest, v.mustDie(t, all))
		o := v.finish(t)
		if !o.Status.Signaled() || o.Status.Signal() != syscall.SIGKILL {
			t.Errorf("status %#x", o.Status)
		}
		for k, n := range v.numbers("ok") {
			if n != uint64(k+1) {
				t.Errorf("pass %d says that it is %d", k+1, n)
			}
		}
		if t.Failed() {
			t.Fatalf("in round %d", i)
		}
	}
	t.Logf("%d had pages outside; the last of a tree was dead after %v at most", engaged, latest)
	if engaged < runtest.Smaller(80, 5) {
		t.Error("too few")
	}
}

// An agent that dies takes no page with it, and another one takes its place.
func TestAgentKilled(t *testing.T) {
	for i, mode := range []string{"check", "fork"} {
		t.Run(mode, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(7, 2))
			s := scene{limit: 4 * runtest.MiB, store: storeOf(i), args: []string{sufferer(t), mode, "24", "5", "12"}}
			v := s.start(t)
			killed := 0
			var old []int
			for killed < runtest.Smaller(30, 5) {
				agent := v.agent(t, old...)
				if agent == 0 {
					break
				}
				time.Sleep(time.Duration(rng.IntN(int(15 * time.Millisecond))))
				v.kill(t, agent, syscall.SIGKILL)
				old = append(old, agent)
				killed++
			}
			if mode == "check" {
				v.expect(t, "ok")
				v.agent(t, old...) // there is one again
				v.kill(t, v.target(t), syscall.SIGUSR1)
			}
			o := v.mustExit(t, 0)
			t.Logf("%d agents killed, %+v", killed, o.Stats)
			if killed < 3 {
				t.Errorf("only %d agents were killed", killed)
			}
		})
	}
}

// An agent is none of the business of who sends signals to a process group.
// One that is stopped must go on by itself, and others must not end it.
func TestAgentSignalled(t *testing.T) {
	s := scene{limit: 4 * runtest.MiB, store: "mem:", args: []string{sufferer(t), "check", "16", "5"}}
	v := s.start(t)
	agent := v.agent(t)
	for i := range 40 {
		sigs := []syscall.Signal{syscall.SIGSTOP, syscall.SIGTSTP, syscall.SIGTERM, syscall.SIGINT,
			syscall.SIGCONT, syscall.SIGUSR1, syscall.SIGSEGV, syscall.SIGTTOU}
		v.kill(t, agent, sigs[i%len(sigs)])
		if i%8 == 7 {
			v.expect(t, "ok")
		}
	}
	v.expect(t, "ok")
	v.kill(t, v.target(t), syscall.SIGUSR1)
	o := v.mustExit(t, 0)
	for _, n := range o.Notes {
		t.Log(n)
	}
}

// A program that is killed while its pages are on their way out ends like any
// other: its status, at once, and with nothing left.
func TestTargetKilled(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 3))
	var latest time.Duration
	for i := range runtest.Smaller(50, 8) {
		s := scene{limit: 4 * runtest.MiB, store: storeOf(i), args: []string{workload.Build(t, "selfcheck"), "16", strconv.Itoa(i)}}
		v := s.start(t)
		v.agent(t)
		pid := v.target(t)
		time.Sleep(time.Duration(rng.IntN(int(150 * time.Millisecond))))
		all := v.everybody()
		v.kill(t, pid, syscall.SIGKILL)
		latest = max(latest, v.mustDie(t, all))
		o := v.finish(t)
		if quiet(t, o); !o.Status.Signaled() || o.Status.Signal() != syscall.SIGKILL {
			t.Errorf("status %#x", o.Status)
		}
		if t.Failed() {
			t.Fatalf("in round %d", i)
		}
	}
	t.Logf("the last of a tree was dead after %v at most", latest)
}

// A program may end, or call exec, while its threads wait for pages.
func TestLeaveWhileFaulting(t *testing.T) {
	for i := range runtest.Smaller(20, 4) {
		s := scene{limit: 4 * runtest.MiB, store: storeOf(i), args: []string{sufferer(t), "exit", "16", strconv.Itoa(i)}}
		quiet(t, s.start(t).mustExit(t, 7))
	}
	for i := range runtest.Smaller(4, 1) {
		s := scene{limit: 4 * runtest.MiB, store: storeOf(i), args: []string{sufferer(t), "exec", "16", strconv.Itoa(i), "5"}}
		v := s.start(t)
		o := v.mustExit(t, 0)
		quiet(t, o)
		if n := len(v.numbers("exec")); n != 5 || o.Stats == nil || o.Stats.Engaged < 1 {
			t.Errorf("round %d: %d calls of exec, %+v", i, n, o.Stats)
		}
	}
}

// A forked child shares pages outside with its parent, which goes on when the
// child is killed in the middle of taking its own copies.
func TestChildKilled(t *testing.T) {
	for i := range runtest.Smaller(4, 2) {
		n := runtest.Smaller(15, 4)
		s := scene{limit: 4 * runtest.MiB, store: storeOf(i), args: []string{sufferer(t), "fork", "16", strconv.Itoa(i), strconv.Itoa(n)}}
		o := s.start(t).mustExit(t, 0)
		if quiet(t, o); o.Stats == nil || o.Stats.Processes != int64(n+1) {
			t.Errorf("round %d: %+v", i, o.Stats)
		}
	}
}

// A supervisor that is stopped for a while stops all who need it, and no more.
func TestSupervisorStopped(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 4))
	s := scene{limit: 4 * runtest.MiB, store: "file:", args: []string{sufferer(t), "check", "16", "5"}}
	v := s.start(t)
	for range runtest.Smaller(20, 4) {
		v.expect(t, "ok")
		time.Sleep(time.Duration(rng.IntN(int(20 * time.Millisecond))))
		v.kill(t, v.PID(), syscall.SIGSTOP)
		time.Sleep(time.Duration(rng.IntN(int(100 * time.Millisecond))))
		v.kill(t, v.PID(), syscall.SIGCONT)
	}
	v.expect(t, "ok")
	v.kill(t, v.target(t), syscall.SIGUSR1)
	quiet(t, v.mustExit(t, 0))
}

// usage is what a process takes.
type usage struct {
	fds, threads int
	rss, hwm     uint64 // bytes
}

func usageOf(t *testing.T, pid int) (u usage) {
	t.Helper()
	u.fds = countFiles(t, fmt.Sprintf("/proc/%d/fd", pid))
	for key, value := range statusOf(t, pid) {
		n, _ := strconv.ParseUint(strings.TrimSuffix(value, " kB"), 10, 64)
		switch key {
		case "Threads":
			u.threads = int(n)
		case "VmRSS":
			u.rss = n << 10
		case "VmHWM":
			u.hwm = n << 10
		}
	}
	return u
}

// A parent that has many children one after another must cost no more than one
// that has few: no descriptor, thread or memory is kept for those that ended.
func TestManyChildren(t *testing.T) {
	s := scene{limit: 4 * runtest.MiB, store: "mem:", stdin: true, args: []string{sufferer(t), "brood", "16", "5"}}
	v := s.start(t)
	v.expect(t, "filled")
	v.agent(t)
	var seen []usage
	fewest := math.MaxInt // descriptors at any time
	few, many := runtest.Smaller(100, 20), runtest.Smaller(1000, 100)
	for _, n := range []int{few, few, many} {
		v.say(t, strconv.Itoa(n))
		v.expect(t, "born")
		u := usageOf(t, v.PID())
		// What served the last children may take a moment to end.
		for until := time.Now().Add(atOnce); len(seen) > 0 && time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
			if u = usageOf(t, v.PID()); u.fds <= fewest && u.threads <= seen[0].threads+2 {
				break
			}
		}
		t.Logf("after %d more children: %+v", n, u)
		seen = append(seen, u)
		fewest = min(fewest, u.fds)
	}
	first, last := seen[1], seen[2]
	if last.fds > first.fds {
		t.Errorf("%d descriptors, then %d", first.fds, last.fds)
	}
	// The Go runtime keeps the threads that were busy at one time. A leak
	// would be one for every child.
	if last.threads > first.threads+many/4 {
		t.Errorf("%d threads, then %d", first.threads, last.threads)
	}
	if last.rss > first.rss+4*runtest.MiB {
		t.Errorf("%d MiB, then %d", first.rss>>20, last.rss>>20)
	}
	if err := v.stdin.Close(); err != nil {
		t.Error(err)
	}
	o := v.mustExit(t, 0)
	if quiet(t, o); o.Stats == nil || o.Stats.Processes != int64(2*few+many+1) {
		t.Errorf("%+v", o.Stats)
	}
}

// A program that has all its memory locked (mlockall) keeps it, and we say so. The window
// through which pages leave was locked with it and could not be emptied: what was in
// there was taken for pages that had left, and those stayed when they were unlocked.
func TestAllLocked(t *testing.T) {
	testutil.Need(t, os.Geteuid() == 0, "locking so much memory needs root")
	s := scene{limit: 4 * runtest.MiB, store: "mem:", stdin: true, args: []string{sufferer(t), "lock", "32", "5"}}
	v := s.start(t)
	v.expect(t, "locked")
	pid := v.target(t)
	if u := usageOf(t, pid); u.rss < 32*runtest.MiB {
		t.Errorf("%d MiB are resident, 32 are locked", u.rss>>20)
	}
	v.say(t, "go on")
	v.expect(t, "unlocked")
	// It is tried again now and then.
	u := usageOf(t, pid)
	for until := time.Now().Add(endurance); u.rss > 16*runtest.MiB && time.Now().Before(until); u = usageOf(t, pid) {
		time.Sleep(10 * time.Millisecond)
	}
	if u.rss > 16*runtest.MiB {
		t.Errorf("%d MiB are resident when nothing is locked any more", u.rss>>20)
	}
	v.say(t, "go on")
	o := v.mustExit(t, 0)
	if !slices.ContainsFunc(o.Notes, func(n string) bool { return strings.Contains(n, "memory grows past the limit") }) {
		t.Errorf("it was not told that the limit is not kept: %q", o.Notes)
	}
}

// The supervisor's own memory: 32 MiB and 24 bytes for each page outside.
func TestOwnMemory(t *testing.T) {
	size := runtest.Smaller(1024, 128)
	s := scene{limit: 16 * runtest.MiB, store: "file:", stdin: true, args: []string{sufferer(t), "fill", strconv.Itoa(size), "5"}}
	v := s.start(t)
	pages := v.expect(t, "filled")
	filled := usageOf(t, v.PID())
	v.say(t, "go on")
	v.expect(t, "verified")
	u := usageOf(t, v.PID())
	allowed := uint64(32*runtest.MiB + 24*pages)
	t.Logf("%d pages: %.1f MiB when filled, %.1f MiB after reading all, %.1f MiB allowed", pages,
		float64(filled.hwm)/runtest.MiB, float64(u.hwm)/runtest.MiB, float64(allowed)/runtest.MiB)
	if u.hwm > allowed {
		t.Errorf("%d bytes of memory, %d are allowed", u.hwm, allowed)
	}
	v.mustExit(t, 0)
}
