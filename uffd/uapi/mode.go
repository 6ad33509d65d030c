// SPDX-License-Identifier: Apache-2.0

package uapi

// RegisterMode says which faults of a range are reported. A range that has
// all the asked bits is left as it is; otherwise the new mode replaces the
// old one.
type RegisterMode uint64

// Members of RegisterMode.
const (
	UFFDIO_REGISTER_MODE_MISSING RegisterMode = 1 << 0
	UFFDIO_REGISTER_MODE_WP      RegisterMode = 1 << 1
	UFFDIO_REGISTER_MODE_MINOR   RegisterMode = 1 << 2
)

// String returns the names in m joined by |, unknown bits in hexadecimal.
func (m RegisterMode) String() string {
	return bitString(uint64(m), []bitName{{1, "MISSING"}, {2, "WP"}, {4, "MINOR"}})
}

// CopyMode modifies UFFDIO_COPY.
type CopyMode uint64

// Members of CopyMode. With MODE_WP the page is installed write-protected,
// which needs a range that is registered for it.
const (
	UFFDIO_COPY_MODE_DONTWAKE CopyMode = 1 << 0
	UFFDIO_COPY_MODE_WP       CopyMode = 1 << 1
)

// String returns the names in m joined by |, unknown bits in hexadecimal.
func (m CopyMode) String() string {
	return bitString(uint64(m), []bitName{{1, "DONTWAKE"}, {2, "WP"}})
}

// ZeropageMode modifies UFFDIO_ZEROPAGE.
type ZeropageMode uint64

// UFFDIO_ZEROPAGE_MODE_DONTWAKE leaves the waiters asleep.
const UFFDIO_ZEROPAGE_MODE_DONTWAKE ZeropageMode = 1 << 0

// String returns the names in m joined by |, unknown bits in hexadecimal.
func (m ZeropageMode) String() string { return bitString(uint64(m), []bitName{{1, "DONTWAKE"}}) }

// WriteProtectMode says what UFFDIO_WRITEPROTECT does: zero lifts the
// protection and wakes.
type WriteProtectMode uint64

// Members of WriteProtectMode. DONTWAKE goes with lifting only: the kernel
// refuses both together.
const (
	UFFDIO_WRITEPROTECT_MODE_WP       WriteProtectMode = 1 << 0
	UFFDIO_WRITEPROTECT_MODE_DONTWAKE WriteProtectMode = 1 << 1
)

// String returns the names in m joined by |, unknown bits in hexadecimal.
func (m WriteProtectMode) String() string {
	return bitString(uint64(m), []bitName{{1, "WP"}, {2, "DONTWAKE"}})
}

// ContinueMode modifies UFFDIO_CONTINUE.
type ContinueMode uint64

// Members of ContinueMode.
const (
	UFFDIO_CONTINUE_MODE_DONTWAKE ContinueMode = 1 << 0
	UFFDIO_CONTINUE_MODE_WP       ContinueMode = 1 << 1
)

// String returns the names in m joined by |, unknown bits in hexadecimal.
func (m ContinueMode) String() string {
	return bitString(uint64(m), []bitName{{1, "DONTWAKE"}, {2, "WP"}})
}

// PoisonMode modifies UFFDIO_POISON.
type PoisonMode uint64

// UFFDIO_POISON_MODE_DONTWAKE leaves the waiters asleep.
const UFFDIO_POISON_MODE_DONTWAKE PoisonMode = 1 << 0

// String returns the names in m joined by |, unknown bits in hexadecimal.
func (m PoisonMode) String() string { return bitString(uint64(m), []bitName{{1, "DONTWAKE"}}) }

// MoveMode modifies UFFDIO_MOVE.
type MoveMode uint64

// Members of MoveMode. With ALLOW_SRC_HOLES an absent source page counts as
// moved, and its destination stays missing.
const (
	UFFDIO_MOVE_MODE_DONTWAKE        MoveMode = 1 << 0
	UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES MoveMode = 1 << 1
)

// String returns the names in m joined by |, unknown bits in hexadecimal.
func (m MoveMode) String() string {
	return bitString(uint64(m), []bitName{{1, "DONTWAKE"}, {2, "ALLOW_SRC_HOLES"}})
}

// FaultFlags says what kind of access a page fault was.
type FaultFlags uint64

// Members of FaultFlags. A write-protect fault carries WRITE too; zero is a
// read of a missing page.
const (
	UFFD_PAGEFAULT_FLAG_WRITE FaultFlags = 1 << 0
	UFFD_PAGEFAULT_FLAG_WP    FaultFlags = 1 << 1
	UFFD_PAGEFAULT_FLAG_MINOR FaultFlags = 1 << 2
)

// String returns the names in f joined by |, unknown bits in hexadecimal.
func (f FaultFlags) String() string {
	return bitString(uint64(f), []bitName{{1, "WRITE"}, {2, "WP"}, {4, "MINOR"}})
}
