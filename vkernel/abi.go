// SPDX-License-Identifier: Apache-2.0

package vkernel

// Protection of a mapping, as in mmap(2).
const (
	ProtNone  = 0
	ProtRead  = 1
	ProtWrite = 2
	ProtExec  = 4
	ProtSem   = 8 // known to mprotect(2), and without an effect
)

// Flags of mmap(2) on amd64 and arm64.
const (
	MapShared         = 0x1
	MapPrivate        = 0x2
	MapSharedValidate = 0x3
	MapFixed          = 0x10
	MapAnonymous      = 0x20
	MapGrowsDown      = 0x100
	MapLocked         = 0x2000
	MapNoReserve      = 0x4000
	MapPopulate       = 0x8000
	MapNonblock       = 0x10000
	MapStack          = 0x20000
	MapHugetlb        = 0x40000
	MapFixedNoReplace = 0x100000
)

// Flags of mremap(2).
const (
	MremapMayMove   = 1
	MremapFixed     = 2
	MremapDontUnmap = 4
)

// Flags of mlock2(2) and mlockall(2).
const (
	MlockOnFault = 1

	MclCurrent = 1
	MclFuture  = 2
	MclOnFault = 4
)

// Advice of madvise(2).
const (
	MadvNormal         = 0
	MadvRandom         = 1
	MadvSequential     = 2
	MadvWillNeed       = 3
	MadvDontNeed       = 4
	MadvFree           = 8
	MadvRemove         = 9
	MadvDontFork       = 10
	MadvDoFork         = 11
	MadvHugepage       = 14
	MadvNoHugepage     = 15
	MadvWipeOnFork     = 18
	MadvKeepOnFork     = 19
	MadvPopulateRead   = 22
	MadvPopulateWrite  = 23
	MadvDontNeedLocked = 24
)

// Flags of open(2), userfaultfd(2), memfd_create(2) and fallocate(2).
const (
	ORdonly   = 0
	OWronly   = 1
	ORdwr     = 2
	ONonblock = 0x800
	OCloexec  = 0x80000

	MfdCloexec = 1
	MfdHugetlb = 4

	FallocKeepSize  = 1
	FallocPunchHole = 2
)

// Flags of preadv2(2), and places of lseek(2).
const (
	RwfHipri  = 1
	RwfDsync  = 2
	RwfSync   = 4
	RwfNowait = 8

	SeekSet  = 0
	SeekCur  = 1
	SeekEnd  = 2
	SeekData = 3
	SeekHole = 4
)

// Commands of fcntl(2).
const (
	FGetfd = 1
	FSetfd = 2
	FGetfl = 3
	FSetfl = 4

	FdCloexec = 1
)

// Conditions of poll(2).
const (
	PollIn   = 0x1
	PollOut  = 0x4
	PollErr  = 0x8
	PollHup  = 0x10
	PollNval = 0x20
)

// Signals that the package itself raises, and their codes.
const (
	SIGKILL = 9
	SIGBUS  = 7
	SIGSEGV = 11

	SegvMapErr = 1
	SegvAccErr = 2
	BusAdrErr  = 2
)

// HugePageSize is the size of a page of hugetlb memory.
const HugePageSize = 1 << hugeShift

const (
	hugeShift = 21
	// taskSize is the first address that a process cannot map, as on amd64
	// with four levels of page tables.
	taskSize = 0x7fff_ffff_f000
	// heapStart is where the heap begins, which is empty at first. A kernel
	// takes an address behind the program.
	heapStart = 0x5555_5555_6000
	// mmapTop is where the search for room starts, downwards. A kernel takes
	// a random address below the stack.
	mmapTop = 0x7fff_f7ff_f000
	// mmapMin is the least address that an unprivileged mapping may have.
	mmapMin = 0x1000
	// hintMin is the least address at which memory is put, or grows down to,
	// that was not told where to be: what vm.mmap_min_addr is by default, even
	// if it is set to less.
	hintMin = 0x10000
	// maxFileSize is the size that no file exceeds.
	maxFileSize = 1<<63 - 1
	// maxRegularSize is the same of a regular file, where we take ext4 as an
	// example.
	maxRegularSize = 1<<44 - 1<<12
	// maxProcSize is the same of a file of /proc.
	maxProcSize = 1<<31 - 1
	// stackGap is what stays free below memory that grows down.
	stackGap = 256 << 12
)
