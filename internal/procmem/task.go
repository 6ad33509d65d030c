// SPDX-License-Identifier: Apache-2.0

package procmem

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
)

// Task returns the id of a thread by which the memory of a process can be looked at.
//
// That is the process's own as long as its first thread is there. That one may end
// before the others, by pthread_exit(3), and from then on nothing that the process
// has is under its id: files of /proc are empty or do not open, and
// process_vm_readv(2) fails with ESRCH. It is pid, too, if no thread has memory.
func Task(pid int) int {
	if pid <= 0 || hasMemory(pid) {
		return pid
	}
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return pid
	}
	for _, e := range list {
		if tid, err := strconv.Atoi(e.Name()); err == nil && tid != pid && hasMemory(tid) {
			return tid
		}
	}
	return pid
}

// hasMemory reports whether a task has an address space: without one it has no
// program.
func hasMemory(tid int) bool {
	_, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", tid))
	return !errors.Is(err, fs.ErrNotExist)
}
