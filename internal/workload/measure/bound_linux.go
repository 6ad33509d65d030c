// SPDX-License-Identifier: Apache-2.0

//go:build linux

package measure

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// AgentName is what our task in a program calls itself. It shares the
// program's memory, which must not be counted twice.
const AgentName = "faultline"

// A Watcher samples the resident memory of a tree of processes.
type Watcher struct {
	quit chan struct{}
	peak chan Peak
}

// Peak is the most memory that was seen.
type Peak struct {
	Bytes uint64        // of the tree, of what faultline bounds
	After time.Duration // when that was, since the start
	Own   uint64        // bytes resident in the process at the root
}

// Watch begins to sample the tree below a process, itself included.
func Watch(root int) *Watcher {
	w := &Watcher{make(chan struct{}), make(chan Peak)}
	go func() {
		var most Peak
		start := time.Now()
		for {
			began := time.Now()
			if n := sample(Tree(root)); n > most.Bytes {
				most.Bytes, most.After = n, time.Since(start)
			}
			most.Own = max(most.Own, statusBytes(root, "VmRSS"))
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

// Stop ends the sampling and returns the most that was seen at once.
func (w *Watcher) Stop() Peak {
	close(w.quit)
	return <-w.peak
}

// Tree lists the processes below root and root, without faultline and its
// agents, and of several that share their memory only one.
func Tree(root int) []int {
	var list []int
	var walk func(pid int)
	walk = func(pid int) {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil {
			return
		} else if string(comm) != AgentName+"\n" {
			if !slices.ContainsFunc(list, func(o int) bool { return SharesMemory(o, pid) }) {
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

// SharesMemory reports whether two processes have one address space, kcmp(2).
func SharesMemory(a, b int) bool {
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
	sum := Bounded(pids)
	return min(sum, max(before, anonIn(pids)))
}

// anonIn adds up the resident anonymous memory of processes.
func anonIn(pids []int) (sum uint64) {
	for _, pid := range pids {
		sum += statusBytes(pid, "RssAnon")
	}
	return sum
}

// statusBytes returns a size in /proc/PID/status, 0 if the process has ended.
func statusBytes(pid int, key string) uint64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := bytes.Cut(b, []byte("\n"+key+":"))
	line, _, _ := bytes.Cut(rest, []byte(" kB"))
	kib, _ := strconv.ParseUint(string(bytes.TrimSpace(line)), 10, 64)
	return kib << 10
}

// Bounded adds up the resident bytes of private anonymous mappings without
// main stacks: what the limit bounds. Memory that several processes share
// after fork counts once.
func Bounded(pids []int) (sum uint64) {
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
