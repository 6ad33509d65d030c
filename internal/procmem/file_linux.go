// SPDX-License-Identifier: Apache-2.0

package procmem

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// FileSize returns the size of the file that a process has mapped at v. It takes a
// privilege, CAP_CHECKPOINT_RESTORE, or a descriptor of the file in the process.
func FileSize(pid int, v VMA) (uint64, bool) {
	var st unix.Stat_t
	pid = Task(pid)
	path := fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, uint64(v.Start), uint64(v.End))
	if unix.Stat(path, &st) == nil && v.is(&st) {
		return uint64(st.Size), true
	}
	if n, ok := FileNumber(pid, v); ok && unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, n), &st) == nil && v.is(&st) {
		return uint64(st.Size), true
	}
	return 0, false
}

// FileNumber returns a descriptor that the process has of that file.
func FileNumber(pid int, v VMA) (int, bool) {
	dir := fmt.Sprintf("/proc/%d/fd/", Task(pid))
	fds, err := os.ReadDir(dir)
	if err != nil {
		return 0, false
	}
	for _, fd := range fds {
		var st unix.Stat_t
		if unix.Stat(dir+fd.Name(), &st) == nil && v.is(&st) {
			n, err := strconv.Atoi(fd.Name())
			return n, err == nil
		}
	}
	return 0, false
}

func (v VMA) is(st *unix.Stat_t) bool {
	dev := uint64(st.Dev)
	return st.Ino == v.Inode && uint64(unix.Major(dev))<<32|uint64(unix.Minor(dev)) == v.Dev
}
