// SPDX-License-Identifier: Apache-2.0

// Package disk is the file under store/file: a handful of positioned
// operations, so that tests can put a failing device in its place.
package disk

import "os"

// File is a file that is read and written at offsets. All methods but Close
// may be called concurrently. Errors are those of the kernel, unwrapped.
type File interface {
	// Pwrite writes b at off. It may write less than all of b.
	Pwrite(b []byte, off int64) (n int, err error)
	// Pread reads into b from off, waiting for the device. It may read
	// less than all of b, and reads nothing at the end of the file.
	Pread(b []byte, off int64) (n int, err error)
	// TryPread fills b from off if that needs no waiting: ok is false if it
	// does, or if the file ends before. It does not allocate, and does not
	// tell Go's scheduler of the system call. s is one that no other call
	// uses meanwhile.
	TryPread(s *Scratch, n int, off int64) (b []byte, ok bool, err error)
	// Datasync returns when all that was written is on the device, or with
	// the error of any write since the last call.
	Datasync() error
	// Reserve makes sure that [off, off+n) can be written without running
	// out of space, and extends the file to cover it.
	Reserve(off, n int64) error
	// Punch gives the space of [off, off+n) back. It then reads as zeros.
	Punch(off, n int64) error
	// Size returns the length of the file.
	Size() (int64, error)
	// Close gives the descriptor back, and removes a named file.
	Close() error
}

// Magic is what a named file begins with, so that no other file is ever taken
// for one of ours and overwritten.
const Magic = "faultline page store\nThis file belongs to a running faultline and is of no use without it.\n"

// DataStart is where the space for pages begins in a file.
const DataStart = 4096

// openMode is private: what is stored is the memory of programs.
const openMode os.FileMode = 0o600
