// SPDX-License-Identifier: Apache-2.0

package uapi

import "slices"

// Features is the set of features that UFFDIO_API asks for and answers.
type Features uint64

// Features of Linux 6.18. [FeatureTable] says since when the kernel has each.
const (
	// UFFD_FEATURE_PAGEFAULT_FLAG_WP: write-protect faults are reported.
	UFFD_FEATURE_PAGEFAULT_FLAG_WP Features = 1 << 0
	// UFFD_FEATURE_EVENT_FORK: fork hands over a descriptor of the child's
	// memory. Asking for it needs CAP_SYS_PTRACE.
	UFFD_FEATURE_EVENT_FORK Features = 1 << 1
	// UFFD_FEATURE_EVENT_REMAP: mremap(2) is reported, and memory that it
	// moves stays registered.
	UFFD_FEATURE_EVENT_REMAP Features = 1 << 2
	// UFFD_FEATURE_EVENT_REMOVE: madvise(2) that drops pages is reported.
	UFFD_FEATURE_EVENT_REMOVE Features = 1 << 3
	// UFFD_FEATURE_MISSING_HUGETLBFS: hugetlb memory can be registered.
	UFFD_FEATURE_MISSING_HUGETLBFS Features = 1 << 4
	// UFFD_FEATURE_MISSING_SHMEM: shared memory can be registered.
	UFFD_FEATURE_MISSING_SHMEM Features = 1 << 5
	// UFFD_FEATURE_EVENT_UNMAP: munmap(2) and what amounts to it is reported.
	UFFD_FEATURE_EVENT_UNMAP Features = 1 << 6
	// UFFD_FEATURE_SIGBUS: a fault is a SIGBUS instead of a message.
	UFFD_FEATURE_SIGBUS Features = 1 << 7
	// UFFD_FEATURE_THREAD_ID: messages name the faulting thread.
	UFFD_FEATURE_THREAD_ID Features = 1 << 8
	// UFFD_FEATURE_MINOR_HUGETLBFS: minor faults of hugetlb memory.
	UFFD_FEATURE_MINOR_HUGETLBFS Features = 1 << 9
	// UFFD_FEATURE_MINOR_SHMEM: minor faults of shared memory.
	UFFD_FEATURE_MINOR_SHMEM Features = 1 << 10
	// UFFD_FEATURE_EXACT_ADDRESS: addresses in messages are not rounded down.
	UFFD_FEATURE_EXACT_ADDRESS Features = 1 << 11
	// UFFD_FEATURE_WP_HUGETLBFS_SHMEM: write protection of such memory.
	UFFD_FEATURE_WP_HUGETLBFS_SHMEM Features = 1 << 12
	// UFFD_FEATURE_WP_UNPOPULATED: absent anonymous pages can be protected.
	UFFD_FEATURE_WP_UNPOPULATED Features = 1 << 13
	// UFFD_FEATURE_POISON: UFFDIO_POISON exists.
	UFFD_FEATURE_POISON Features = 1 << 14
	// UFFD_FEATURE_WP_ASYNC: the kernel lifts the protection by itself and
	// sends no message.
	UFFD_FEATURE_WP_ASYNC Features = 1 << 15
	// UFFD_FEATURE_MOVE: UFFDIO_MOVE exists.
	UFFD_FEATURE_MOVE Features = 1 << 16

	// UFFD_API_FEATURES is every feature of Linux 6.18.
	UFFD_API_FEATURES Features = 1<<17 - 1
)

// Feature is one row of [FeatureTable].
type Feature struct {
	Name  string // in C without UFFD_FEATURE_, such as "EVENT_FORK"
	Bit   Features
	Since string // the first kernel that has it, such as "4.11"
}

var featureTable = []Feature{
	{"PAGEFAULT_FLAG_WP", UFFD_FEATURE_PAGEFAULT_FLAG_WP, "5.7"},
	{"EVENT_FORK", UFFD_FEATURE_EVENT_FORK, "4.11"},
	{"EVENT_REMAP", UFFD_FEATURE_EVENT_REMAP, "4.11"},
	{"EVENT_REMOVE", UFFD_FEATURE_EVENT_REMOVE, "4.11"},
	{"MISSING_HUGETLBFS", UFFD_FEATURE_MISSING_HUGETLBFS, "4.11"},
	{"MISSING_SHMEM", UFFD_FEATURE_MISSING_SHMEM, "4.11"},
	{"EVENT_UNMAP", UFFD_FEATURE_EVENT_UNMAP, "4.11"},
	{"SIGBUS", UFFD_FEATURE_SIGBUS, "4.14"},
	{"THREAD_ID", UFFD_FEATURE_THREAD_ID, "4.14"},
	{"MINOR_HUGETLBFS", UFFD_FEATURE_MINOR_HUGETLBFS, "5.13"},
	{"MINOR_SHMEM", UFFD_FEATURE_MINOR_SHMEM, "5.14"},
	{"EXACT_ADDRESS", UFFD_FEATURE_EXACT_ADDRESS, "5.18"},
	{"WP_HUGETLBFS_SHMEM", UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "5.19"},
	{"WP_UNPOPULATED", UFFD_FEATURE_WP_UNPOPULATED, "6.4"},
	{"POISON", UFFD_FEATURE_POISON, "6.6"},
	{"WP_ASYNC", UFFD_FEATURE_WP_ASYNC, "6.7"},
	{"MOVE", UFFD_FEATURE_MOVE, "6.8"},
}

// FeatureTable returns every known feature in the order of the bits. The
// slice is the caller's.
func FeatureTable() []Feature { return slices.Clone(featureTable) }

// Has reports whether every feature of want is in s.
func (s Features) Has(want Features) bool { return s&want == want }

// String returns the names in s joined by |, unknown bits in hexadecimal.
func (s Features) String() string {
	names := make([]bitName, len(featureTable))
	for i, f := range featureTable {
		names[i] = bitName{uint64(f.Bit), f.Name}
	}
	return bitString(uint64(s), names)
}
