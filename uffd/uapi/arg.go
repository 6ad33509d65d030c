// SPDX-License-Identifier: Apache-2.0

package uapi

// The argument of each ioctl, in the kernel's layout. A field marked "out" is
// written by the kernel and never read by it. A signed out field is the
// number of bytes done or a negated errno, and it counts with any errno:
// EAGAIN with a positive count means that the operation stopped half way.

// API is the argument of UFFDIO_API. The kernel answers with every feature
// that it supports, not with those that are now enabled.
type API struct {
	API      uint64
	Features Features // in and out
	Ioctls   Ioctls   // out
}

// Range is the argument of UFFDIO_UNREGISTER and UFFDIO_WAKE, and the head of
// most others.
type Range struct {
	Start, Len uint64
}

// Register is the argument of UFFDIO_REGISTER.
type Register struct {
	Range  Range
	Mode   RegisterMode
	Ioctls Ioctls // out
}

// Copy is the argument of UFFDIO_COPY.
type Copy struct {
	Dst, Src, Len uint64
	Mode          CopyMode
	Copy          int64 // out
}

// Zeropage is the argument of UFFDIO_ZEROPAGE.
type Zeropage struct {
	Range    Range
	Mode     ZeropageMode
	Zeropage int64 // out
}

// Move is the argument of UFFDIO_MOVE.
type Move struct {
	Dst, Src, Len uint64
	Mode          MoveMode
	Move          int64 // out
}

// WriteProtect is the argument of UFFDIO_WRITEPROTECT.
type WriteProtect struct {
	Range Range
	Mode  WriteProtectMode
}

// Continue is the argument of UFFDIO_CONTINUE.
type Continue struct {
	Range  Range
	Mode   ContinueMode
	Mapped int64 // out
}

// Poison is the argument of UFFDIO_POISON.
type Poison struct {
	Range   Range
	Mode    PoisonMode
	Updated int64 // out
}
