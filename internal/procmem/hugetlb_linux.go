// SPDX-License-Identifier: Apache-2.0

package procmem

import (
	"sync"

	"golang.org/x/sys/unix"
)

// Hugetlb reports whether the files of a device, as [VMA.Dev] names it, are of
// huge pages: those of memfd_create(2), of anonymous mappings and of shmget(2).
// Files of a file system that somebody has mounted are not known.
func Hugetlb(dev uint64) bool {
	for _, d := range hugeDevices() {
		if d == dev {
			return true
		}
	}
	return false
}

// hugeDevices returns the devices, one for each size of pages. To make a file of
// no length takes no page.
var hugeDevices = sync.OnceValue(func() (devs []uint64) {
	for shift := 21; shift <= 34; shift++ {
		fd, err := unix.MemfdCreate("", unix.MFD_CLOEXEC|unix.MFD_HUGETLB|shift<<unix.MFD_HUGE_SHIFT)
		if err != nil {
			continue // there are no pages of this size
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil {
			devs = append(devs, uint64(unix.Major(uint64(st.Dev)))<<32|uint64(unix.Minor(uint64(st.Dev))))
		}
		_ = unix.Close(fd)
	}
	return devs
})
