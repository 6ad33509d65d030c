// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// agentName is what our task in a program calls itself. It shares the
// program's memory, which must not be counted twice.
const agentName = "faultline"

// watcher samples the resident memory of a tree of processes.
type watcher struct {
	quit chan struct{}
	peak chan peak
}

// peak is the most that was seen, and when.
type peak struct {
	bytes uint64
	after time.Duration // since the start
}

// watch begins to sample the tree below a process, itself included.
func watch(root int) *watcher {
	w := &watcher{make(chan struct{}), make(chan peak)}
	go func() {
		var most peak
		start := time.Now()
		for {
			began := time.Now()
			if n := sample(tree(root)); n > most.bytes {
				most = peak{n, time.Since(start)}
			}
			// The look itself costs the program time; a fifth at most.
			pause := max(2*time.Millisecond, 4*time.Since(began))
			select {
			case <-w.quit:
				w.peak <- most
				return
			case <-time.After(pause):
			}
		}
	}()
	return w
}

// stop ends the sampling and returns the most bytes that were seen at once.
func (w *watcher) stop() peak {
	close(w.quit)
	return <-w.peak
}

// tree lists the processes below root and root, without faultline and its
// agents, and of several that share their memory only one.
func tree(root int) []int {
	var list []int
	var walk func(pid int)
	walk = func(pid int) {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil {
			return
		} else if string(comm) != agentName+"\n" {
			if !slices.ContainsFunc(list, func(o int) bool { return sharesMemory(o, pid) }) {
				list = append(list, pid)
			}
		}
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		for _, t := range tasks {
			b, _ := os.ReadFile(t)
			for _, f := range strings.Fields(string(b)) {
				if child, err := strconv.Atoi(f); err == nil {
					walk(child)
				}
			}
		}
	}
	walk(root)
	return list
}

// sharesMemory reports whether two processes have one address space, kcmp(2).
func sharesMemory(a, b int) bool {
	const kcmpVM = 1
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), kcmpVM, 0, 0, 0)
	return errno == 0 && r == 0
}

// sample returns the bounded memory that processes have at one moment.
//
// A sum over mappings is none: while the later ones are read pages leave those
// that were read before, and others come in. The kernel's counter of anonymous
// pages has more than what is bounded, but all of it at once: a sum above what
// it says before and after was never resident.
func sample(pids []int) uint64 {
	before := anonIn(pids)
	sum := boundedIn(pids)
	return min(sum, max(before, anonIn(pids)))
}

// anonIn adds up the resident anonymous memory of processes.
func anonIn(pids []int) (sum uint64) {
	for _, pid := range pids {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // empty if it has ended
		_, rest, _ := bytes.Cut(b, []byte("\nRssAnon:"))
		line, _, _ := bytes.Cut(rest, []byte(" kB"))
		kib, _ := strconv.ParseUint(string(bytes.TrimSpace(line)), 10, 64)
		sum += kib << 10
	}
	return sum
}

// boundedIn adds up the resident bytes of private anonymous mappings without
// main stacks: what the limit bounds. Memory that several processes share
// after fork counts once.
func boundedIn(pids []int) (sum uint64) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
		if err != nil {
			continue // it has ended
		}
		counts := false
		for line := range bytes.Lines(b) {
			if pss, ok := bytes.CutPrefix(line, []byte("Pss:")); ok {
				kib, err := strconv.ParseUint(string(bytes.TrimSuffix(bytes.TrimSpace(pss), []byte(" kB"))), 10, 64)
				if err == nil && counts {
					sum += kib << 10
				}
			} else if c := line[0]; c >= '0' && c <= '9' || c >= 'a' && c <= 'f' {
				counts = anonymous(string(line))
			}
		}
	}
	return sum
}

// anonymous reports whether the first line of a mapping in proc_pid_smaps(5)
// is that of memory that the limit bounds.
func anonymous(line string) bool {
	f := strings.Fields(line)
	if len(f) < 5 || len(f[1]) != 4 || f[1][3] != 'p' || f[4] != "0" {
		return false
	}
	return len(f) == 5 || f[5] == "[heap]" || strings.HasPrefix(f[5], "[anon:")
}

// marked lists the living processes that were started by a run, and agents.
func marked(id string) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	want := []byte(marker + "=" + id)
	var list []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) // empty for a zombie
		for v := range bytes.SplitSeq(env, []byte{0}) {
			if bytes.Equal(v, want) {
				list = append(list, pid)
				break
			}
		}
	}
	return list
}

// killMarked kills the processes of a run and lists them.
func killMarked(id string) []int {
	list := marked(id)
	for _, pid := range list {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return list
}

// postMortem tells where every thread of a run is.
func postMortem(id string) string {
	var b strings.Builder
	read := func(dir, name string) string {
		text, _ := os.ReadFile(filepath.Join(dir, name))
		return strings.TrimSpace(string(text))
	}
	for _, pid := range marked(id) {
		dir := fmt.Sprintf("/proc/%d", pid)
		fmt.Fprintf(&b, "%d %s\n", pid, strings.ReplaceAll(read(dir, "cmdline"), "\x00", " "))
		tasks, _ := filepath.Glob(dir + "/task/*")
		for _, task := range tasks {
			state := ""
			for line := range strings.Lines(read(task, "status")) {
				if rest, ok := strings.CutPrefix(line, "State:"); ok {
					state = strings.TrimSpace(rest)
				}
			}
			fmt.Fprintf(&b, "  %s %s: %s, in %s, call %s\n", filepath.Base(task), read(task, "comm"),
				state, read(task, "wchan"), read(task, "syscall"))
		}
	}
	return b.String()
}
