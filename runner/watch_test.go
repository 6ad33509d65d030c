// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

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
