// SPDX-License-Identifier: Apache-2.0

package uapi

// Entry points.
const (
	// UFFD_API is the version that UFFDIO_API asks for. There is only one.
	UFFD_API = 0xaa

	// USERFAULTFD_IOC_NEW makes a descriptor from an open /dev/userfaultfd
	// (since Linux 6.1). Its argument is the flags, by value.
	USERFAULTFD_IOC_NEW = 0xaa00

	// UFFD_USER_MODE_ONLY restricts a descriptor to faults of user mode
	// (since Linux 5.11): a system call that touches a missing page fails
	// with EFAULT, without a message.
	UFFD_USER_MODE_ONLY = 1

	// SYS_USERFAULTFD_AMD64 is the system call's number on x86-64.
	SYS_USERFAULTFD_AMD64 = 323
	// SYS_USERFAULTFD_ARM64 is the system call's number on arm64.
	SYS_USERFAULTFD_ARM64 = 282
)

// Requests of ioctl(2) on a descriptor. UNREGISTER and WAKE carry the
// direction bit of a read by historical mistake; the kernel only reads.
const (
	UFFDIO_API          = 0xc018aa3f
	UFFDIO_REGISTER     = 0xc020aa00
	UFFDIO_UNREGISTER   = 0x8010aa01
	UFFDIO_WAKE         = 0x8010aa02
	UFFDIO_COPY         = 0xc028aa03
	UFFDIO_ZEROPAGE     = 0xc020aa04
	UFFDIO_MOVE         = 0xc028aa05
	UFFDIO_WRITEPROTECT = 0xc018aa06
	UFFDIO_CONTINUE     = 0xc020aa07
	UFFDIO_POISON       = 0xc020aa08
)

var requests = map[uint32]string{
	UFFDIO_API: "UFFDIO_API", UFFDIO_REGISTER: "UFFDIO_REGISTER",
	UFFDIO_UNREGISTER: "UFFDIO_UNREGISTER", UFFDIO_WAKE: "UFFDIO_WAKE",
	UFFDIO_COPY: "UFFDIO_COPY", UFFDIO_ZEROPAGE: "UFFDIO_ZEROPAGE",
	UFFDIO_MOVE: "UFFDIO_MOVE", UFFDIO_WRITEPROTECT: "UFFDIO_WRITEPROTECT",
	UFFDIO_CONTINUE: "UFFDIO_CONTINUE", UFFDIO_POISON: "UFFDIO_POISON",
}

// RequestName returns the C name of an ioctl request on a descriptor, or
// false if request is none.
func RequestName(request uint32) (string, bool) {
	name, ok := requests[request]
	return name, ok
}

// Ioctls is the set of ioctls that a descriptor or a registered range
// accepts: bit n is the request whose low byte is n.
type Ioctls uint64

// Members of Ioctls. In C they are shifts named _UFFDIO_COPY and so on, a
// spelling that Go does not export.
const (
	UFFDIO_BIT_REGISTER     Ioctls = 1 << 0
	UFFDIO_BIT_UNREGISTER   Ioctls = 1 << 1
	UFFDIO_BIT_WAKE         Ioctls = 1 << 2
	UFFDIO_BIT_COPY         Ioctls = 1 << 3
	UFFDIO_BIT_ZEROPAGE     Ioctls = 1 << 4
	UFFDIO_BIT_MOVE         Ioctls = 1 << 5
	UFFDIO_BIT_WRITEPROTECT Ioctls = 1 << 6
	UFFDIO_BIT_CONTINUE     Ioctls = 1 << 7
	UFFDIO_BIT_POISON       Ioctls = 1 << 8
	UFFDIO_BIT_API          Ioctls = 1 << 63

	// UFFD_API_IOCTLS is the answer of UFFDIO_API.
	UFFD_API_IOCTLS = UFFDIO_BIT_REGISTER | UFFDIO_BIT_UNREGISTER | UFFDIO_BIT_API
	// UFFD_API_RANGE_IOCTLS holds every ioctl on a range that Linux 6.18 has.
	UFFD_API_RANGE_IOCTLS = UFFDIO_BIT_WAKE | UFFDIO_BIT_COPY | UFFDIO_BIT_ZEROPAGE | UFFDIO_BIT_MOVE |
		UFFDIO_BIT_WRITEPROTECT | UFFDIO_BIT_CONTINUE | UFFDIO_BIT_POISON
)

var ioctlNames = []bitName{
	{uint64(UFFDIO_BIT_REGISTER), "REGISTER"},
	{uint64(UFFDIO_BIT_UNREGISTER), "UNREGISTER"},
	{uint64(UFFDIO_BIT_WAKE), "WAKE"},
	{uint64(UFFDIO_BIT_COPY), "COPY"},
	{uint64(UFFDIO_BIT_ZEROPAGE), "ZEROPAGE"},
	{uint64(UFFDIO_BIT_MOVE), "MOVE"},
	{uint64(UFFDIO_BIT_WRITEPROTECT), "WRITEPROTECT"},
	{uint64(UFFDIO_BIT_CONTINUE), "CONTINUE"},
	{uint64(UFFDIO_BIT_POISON), "POISON"},
	{uint64(UFFDIO_BIT_API), "API"},
}

// Has reports whether every ioctl of want is in s.
func (s Ioctls) Has(want Ioctls) bool { return s&want == want }

// String returns the names in s joined by |, unknown bits in hexadecimal.
func (s Ioctls) String() string { return bitString(uint64(s), ioctlNames) }
