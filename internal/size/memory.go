// SPDX-License-Identifier: Apache-2.0

package size

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

// Machine says how much memory there is to take a share of.
type Machine struct {
	Total uint64 // MemTotal of /proc/meminfo
	Limit uint64 // the lowest memory cgroup limit above us, 0 where there is none
}

// Usable returns the smaller of what the machine has and what our control
// group may use.
func (m Machine) Usable() uint64 {
	if m.Limit != 0 && m.Limit < m.Total {
		return m.Limit
	}
	return m.Total
}

// Memory asks the kernel, by /proc and the cgroup file systems (either
// version). It fails only when /proc/meminfo cannot be read: a control group
// that cannot be found counts as unlimited.
func Memory() (Machine, error) { return memory(os.DirFS("/")) }

// memory is Memory over any tree that looks like a root directory.
func memory(root fs.FS) (Machine, error) {
	text, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return Machine{}, fmt.Errorf("total memory: %w", err)
	}
	var m Machine
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "MemTotal:" && f[2] == "kB" {
			kib, err := strconv.ParseUint(f[1], 10, 54)
			if err != nil {
				return Machine{}, fmt.Errorf("total memory: MemTotal: %w", err)
			}
			m.Total = kib << 10
		}
	}
	if m.Total == 0 {
		return Machine{}, fmt.Errorf("total memory: /proc/meminfo has no MemTotal in kB")
	}
	m.Limit = cgroupLimit(root)
	return m, nil
}

// cgroupLimit returns the lowest limit from our group up to the root of its
// hierarchy: each ancestor's limit binds us too.
func cgroupLimit(root fs.FS) uint64 {
	group, v2 := memoryGroup(root)
	if group == "" {
		return 0
	}
	// The mount point of version 2 is one of these on every distribution
	// that we know of; inside a container the group often reads as "/"
	// or as a path of the host that does not exist here, and then the
	// walk up ends at the mount point, which is the container's own group.
	mounts, file := []string{"sys/fs/cgroup", "sys/fs/cgroup/unified"}, "memory.max"
	if !v2 {
		mounts, file = []string{"sys/fs/cgroup/memory"}, "memory.limit_in_bytes"
	}
	var low uint64
	for _, mount := range mounts {
		for dir := path.Clean("/" + group); ; dir = path.Dir(dir) {
			text, err := fs.ReadFile(root, path.Join(mount, dir, file))
			if err == nil {
				// "max" is no number and means none; version 1 writes
				// nearly 2^63 instead.
				n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
				if err == nil && n < 1<<62 && (low == 0 || n < low) {
					low = n
				}
			}
			if dir == "/" {
				break
			}
		}
	}
	return low
}

// memoryGroup returns our path in the hierarchy that has the memory
// controller, and whether that is the unified one.
func memoryGroup(root fs.FS) (group string, v2 bool) {
	f, err := root.Open("proc/self/cgroup")
	if err != nil {
		return "", false
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		id, rest, _ := strings.Cut(sc.Text(), ":")
		controllers, dir, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		for c := range strings.SplitSeq(controllers, ",") {
			if c == "memory" {
				return dir, false // version 1 has taken the controller
			}
		}
		if id == "0" && controllers == "" {
			group, v2 = dir, true
		}
	}
	return group, v2
}
