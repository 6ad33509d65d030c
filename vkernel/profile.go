// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// ioctlFunc performs one request, whose argument is at arg.
type ioctlFunc func(u *uffd, th *Thread, arg mem.Addr) syscall.Errno

// Profile is a version of the subsystem: [Linux618] or [Seed]. It holds what
// the two do differently, as data where that is enough and as functions where
// the order of the checks differs.
type Profile struct {
	name string

	create   func(th *Thread, flags int) (int, syscall.Errno)
	device   bool // /dev/userfaultfd exists
	openMode int  // access mode of the file
	gate     bool // requests fail before the handshake
	ioctls   map[uint32]ioctlFunc
	features uapi.Features // that a handshake may ask for
	fills    bool          // there are ioctls that install pages
	minAddr  uint64        // least address of a range

	// The requests of both a program and a manager that is Go code, without their
	// arguments in memory. What register returns besides is whether any of it is
	// hugetlb memory.
	register   func(u *uffd, r mem.Range, mode uapi.RegisterMode) (huge bool, errno syscall.Errno)
	unregister func(u *uffd, r mem.Range) syscall.Errno
	wake       func(u *uffd, r mem.Range) syscall.Errno

	// deny decides a fault without asking anybody, if it can.
	deny func(f *faulting) (verdict, bool)
	// closed is what a fault comes to that finds the descriptor closed.
	closed verdict
	// recheck looks at the page once more after the fault is queued.
	recheck bool
	// interruptible: a signal ends a wait that is not the kernel's own.
	interruptible bool

	lifo       bool // the latest fault is read first
	wakeUnread bool // a wake frees those that nobody has read, too
	recordSize int  // bytes of a message
	encode     func(b []byte, m *uapi.Msg)
	// pollBlocking: poll works on a descriptor without O_NONBLOCK.
	pollBlocking bool
	fdinfo       func(u *uffd) string
}

// Name returns "linux-6.18" or "seed".
func (p *Profile) Name() string { return p.name }

// Linux618 is the subsystem of Linux 6.18.
var Linux618 = &Profile{
	name:       "linux-6.18",
	create:     createLinux618,
	device:     true,
	openMode:   ORdonly,
	gate:       true,
	features:   uapi.UFFD_API_FEATURES,
	fills:      true,
	register:   (*uffd).register,
	unregister: (*uffd).unregister,
	wake:       (*uffd).wake,
	deny:       denyLinux618,
	closed:     retry,
	recheck:    true,
	wakeUnread: true,
	recordSize: uapi.MsgSize,
	encode:     encodeMsg,
	fdinfo:     fdinfoLinux618,

	interruptible: true,
	ioctls: map[uint32]ioctlFunc{
		uapi.UFFDIO_API:          apiLinux618,
		uapi.UFFDIO_REGISTER:     registerLinux618,
		uapi.UFFDIO_UNREGISTER:   unregisterLinux618,
		uapi.UFFDIO_WAKE:         wakeLinux618,
		uapi.UFFDIO_COPY:         copyLinux618,
		uapi.UFFDIO_ZEROPAGE:     zeropageLinux618,
		uapi.UFFDIO_CONTINUE:     continueLinux618,
		uapi.UFFDIO_POISON:       poisonLinux618,
		uapi.UFFDIO_MOVE:         moveLinux618,
		uapi.UFFDIO_WRITEPROTECT: writeProtectLinux618,
	},
}

// denyLinux618 refuses a fault in the order of 6.18: a process that ends, a
// descriptor that asked for signals, one that is for user mode alone, an
// access that cannot wait.
func denyLinux618(f *faulting) (verdict, bool) {
	u := f.v.uffd
	switch {
	case f.th.killed():
		return killed, true
	case u == nil, u.has(uapi.UFFD_FEATURE_SIGBUS):
		return bus, true
	case !f.at.userMode() && u.flags&uapi.UFFD_USER_MODE_ONLY != 0:
		return bus, true
	case f.at.mode == ptraceMode:
		return bus, true
	}
	return 0, false
}

func encodeMsg(b []byte, m *uapi.Msg) { m.AppendTo(b[:0]) }
