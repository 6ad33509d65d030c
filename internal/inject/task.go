// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// clone makes a task through s and waits for its first stop. It returns its
// id here and, as the program sees it, there.
func clone(s *Session) (tid int, there uintptr, err error) {
	there, err = call(s, "clone", unix.SYS_CLONE, cloneFlags, 0, 0, 0, 0)
	tid = s.child
	if tid == 0 && err == nil {
		return 0, there, errors.New("clone: no clone event; the tracer must set PTRACE_O_TRACECLONE")
	}
	if tid == 0 {
		return 0, 0, err
	}
	// The event may have been seen and the thread been killed right after.
	if _, werr := waitStop(tid); werr != nil {
		err = errors.Join(err, fmt.Errorf("first stop of the cloned task: %w", werr))
	}
	// The task goes from stop to stop with us waiting: on our CPU that costs a
	// tenth of waking another for each. What cannot be bound is only slower.
	if cpu, ok := currentCPU(); ok {
		var here unix.CPUSet
		here.Set(cpu)
		_ = unix.SchedSetaffinity(tid, &here)
	}
	return tid, there, err
}

// adoptOrphans makes orphaned descendants ours until restore.
func adoptOrphans() (restore func(), err error) {
	was, err := subreaper()
	if err != nil || was {
		return func() {}, err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become child subreaper: %w", err)
	}
	return func() {
		// It was just accepted with another value; there is no way to fail.
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	}, nil
}

// reap kills a stopped task of ours and takes its exit status.
func reap(tid int) {
	_ = unix.Kill(tid, unix.SIGKILL) // not reaped, so the id is still its own
	for {
		var ws unix.WaitStatus
		_, err := unix.Wait4(tid, &ws, unix.WALL, nil)
		switch {
		case err == unix.EINTR:
		case err != nil, ws.Exited(), ws.Signaled():
			return
		default: // PTRACE_O_TRACEEXIT
			_ = ptrace(unix.PTRACE_CONT, tid, 0, 0)
		}
	}
}

// closeAll closes every descriptor of t, so that the agent holds no pipe of
// the program's open.
func closeAll(t *Session) error {
	_, err := call(t, "close_range", unix.SYS_CLOSE_RANGE, 0, uintptr(^uint32(0)), 0)
	if !errors.Is(err, unix.ENOSYS) {
		return err
	}
	// Before Linux 5.9.
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", t.tid))
	if err != nil {
		return fmt.Errorf("list the agent's descriptors: %w", err)
	}
	for _, e := range list {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if _, err := call(t, "close", unix.SYS_CLOSE, uintptr(fd)); err != nil {
			return err
		}
	}
	return nil
}

// raiseLimits lifts the agent's own resource limits as far as we may. It has
// inherited the program's, and would fail where the program should.
func raiseLimits(tid int) {
	for _, res := range []int{unix.RLIMIT_AS, unix.RLIMIT_DATA, unix.RLIMIT_NOFILE, unix.RLIMIT_CPU, unix.RLIMIT_MEMLOCK} {
		var lim unix.Rlimit
		if unix.Prlimit(tid, res, nil, &lim) != nil {
			continue
		}
		if res != unix.RLIMIT_NOFILE { // has a bound of its own, fs.nr_open
			all := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
			if unix.Prlimit(tid, res, &all, nil) == nil {
				continue
			}
		}
		lim.Cur = lim.Max
		// What stays too low is found out by the call that needs it.
		_ = unix.Prlimit(tid, res, &lim, nil)
	}
}
