// SPDX-License-Identifier: Apache-2.0

package conformance

// Call is something that a thread does: an access of user mode or a system
// call. Arguments, flags and structs are those of Linux on 64-bit machines;
// where a call is not quite the system call, its comment says so.
type Call uint8

// Accesses. The first argument is the address.
const (
	Load8 Call = iota
	Load64
	Store8  // the value
	Store64 // the value
	CAS64   // old, new; the result is the value found
	CopyMem // to, from, length, byte by byte

	// System calls.
	Mmap
	Munmap
	Mprotect
	Mremap
	Madvise
	Mlock
	Mlock2 // address, length, flags
	Mlockall
	Munlock
	Munlockall
	Brk // the result is the end, changed or not
	Mincore
	MemfdCreate // the flags; the name does not matter
	Ftruncate
	Fallocate
	Userfaultfd
	OpenDevice  // open(2) of /dev/userfaultfd with the flags
	OpenPagemap // open(2) of /proc/self/pagemap for reading
	OpenSelfMem // open(2) of /proc/self/mem with the flags
	OpenFile    // a regular file of one page, shared by nobody, for reading and writing
	Reopen      // the file behind a descriptor once more, with other flags
	Ioctl
	Read
	Pread
	Readv
	Preadv2 // fd, iov, count, offset, flags; -1 is the current position
	Write
	Pwrite
	Lseek
	Poll   // struct pollfd, their number, timeout in milliseconds
	Select // sets as in select(2), timeout zero
	EpollCreate
	EpollCtl
	EpollWait // fd, struct epoll_event, their number, timeout in milliseconds
	Close
	Dup
	Fcntl
	Pipe // where the two descriptors go
	SetNofile
	SetStack      // RLIMIT_STACK in bytes
	ProcessVMRead // pid, to, from, length
	numCalls
)

var callNames = [numCalls]string{
	"load8", "load64", "store8", "store64", "cas64", "copymem",
	"mmap", "munmap", "mprotect", "mremap", "madvise", "mlock", "mlock2", "mlockall", "munlock", "munlockall",
	"brk", "mincore",
	"memfd_create", "ftruncate", "fallocate", "userfaultfd", "open(/dev/userfaultfd)",
	"open(pagemap)", "open(/proc/self/mem)", "open(file)", "reopen", "ioctl", "read", "pread", "readv",
	"preadv2", "write", "pwrite", "lseek", "poll", "select", "epoll_create", "epoll_ctl", "epoll_wait",
	"close", "dup", "fcntl", "pipe", "setrlimit(NOFILE)", "setrlimit(STACK)", "process_vm_readv",
}

// String returns the name of the call.
func (c Call) String() string { return callNames[c] }

// Access reports whether c is an access and no system call.
func (c Call) Access() bool { return c <= CopyMem }

// Constants of Linux that arguments are made of.
const (
	ProtNone  = 0
	ProtRead  = 1
	ProtWrite = 2
	ProtSem   = 8

	MapShared         = 0x01
	MapPrivate        = 0x02
	MapSharedValidate = 0x03
	MapFixed          = 0x10
	MapAnonymous      = 0x20
	MapGrowsDown      = 0x100
	MapLocked         = 0x2000
	MapNoReserve      = 0x4000
	MapPopulate       = 0x8000
	MapNonblock       = 0x10000
	MapHugetlb        = 0x40000
	MapFixedNoReplace = 0x100000
	MapDroppable      = 0x8

	MremapMayMove   = 1
	MremapFixed     = 2
	MremapDontUnmap = 4

	MadvNormal         = 0
	MadvRandom         = 1
	MadvSequential     = 2
	MadvWillneed       = 3
	MadvDontneed       = 4
	MadvFree           = 8
	MadvRemove         = 9
	MadvDontfork       = 10
	MadvDofork         = 11
	MadvHugepage       = 14
	MadvNohugepage     = 15
	MadvWipeonfork     = 18
	MadvKeeponfork     = 19
	MadvPopulateRead   = 22
	MadvPopulateWrite  = 23
	MadvDontneedLocked = 24
	MadvCollapse       = 25

	MlockOnFault = 1

	MclCurrent = 1
	MclFuture  = 2
	MclOnFault = 4

	MfdHugetlb = 0x4 | 21<<26 // of 2 MiB

	FallocKeepSize  = 1
	FallocPunchHole = 2

	ORdonly   = 0
	OWronly   = 1
	ORdwr     = 2
	ONonblock = 0x800
	OCloexec  = 0x80000

	FGetfd = 1
	FGetfl = 3
	FSetfl = 4

	RwfHipri  = 1
	RwfNowait = 8

	SeekSet  = 0
	SeekCur  = 1
	SeekEnd  = 2
	SeekData = 3
	SeekHole = 4

	PollIn  = 1
	PollErr = 8
	PollHup = 16

	EpollCtlAdd = 1
	EpollET     = 1 << 31

	PagemapScan      = 0xc0606610
	ScanWPMatching   = 1
	ScanCheckWPAsync = 2
	PageIsWPAllowed  = 1 << 0
	PageIsWritten    = 1 << 1
	PageIsFile       = 1 << 2
	PageIsPresent    = 1 << 3
	PageIsSwapped    = 1 << 4
	PageIsPfnzero    = 1 << 5
	PageIsHuge       = 1 << 6
	PageIsSoftDirty  = 1 << 7
	PageIsGuard      = 1 << 8
	PagemapPresent   = 1 << 63
	PagemapSwapped   = 1 << 62
	PagemapFile      = 1 << 61
	PagemapGuard     = 1 << 58
	PagemapWP        = 1 << 57
	PagemapExclusive = 1 << 56

	FionRead = 0x541b
)
