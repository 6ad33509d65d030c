// SPDX-License-Identifier: Apache-2.0

package procmem

import (
	"sync"

	"golang.org/x/sys/unix"
)

// HugePageSize returns the size of the pages of the files of a device, as
// [VMA.Dev] names it, if those are huge: files of memfd_create(2), of anonymous
// mappings and of shmget(2). It is 0 for others, and for those of a file system
// that somebody has mounted.
func HugePageSize(dev uint64) uint64 { return hugeDevices()[dev] }

// hugeDevices returns the size of pages of each device. To make a file of no length
// takes no page.
var hugeDevices = sync.OnceValue(func() map[uint64]uint64 {
	sizes := make(map[uint64]uint64)
	for shift := 21; shift <= 34; shift++ {
		fd, err := unix.MemfdCreate("", unix.MFD_CLOEXEC|unix.MFD_HUGETLB|shift<<unix.MFD_HUGE_SHIFT)
		if err != nil {
			continue // there are no pages of this size
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil {
			sizes[uint64(unix.Major(uint64(st.Dev)))<<32|uint64(unix.Minor(uint64(st.Dev)))] = 1 << shift
		}
		_ = unix.Close(fd)
	}
	return sizes
})
