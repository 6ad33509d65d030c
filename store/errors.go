// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
)

var (
	// ErrCorrupt is matched when what was found is not the page that was
	// stored: the checksum is wrong, the blob does not decode or ends early,
	// or the Ref is damaged. The page is lost.
	ErrCorrupt = errors.New("page is corrupt")

	// ErrFull is matched when there is no room: the store's bound is
	// reached, or the file system is full. It goes away as pages are freed.
	ErrFull = errors.New("store is full")

	// ErrClosed is matched by every call after Close.
	ErrClosed = errors.New("store is closed")
)

// Error records a failed operation of a store.
type Error struct {
	Store string // such as "mem" or "file /var/tmp/x"
	Op    string // such as "get" or "put"
	Ref   Ref    // the page, if the operation was on one
	Off   int64  // offset in the store's file or memory, -1 if there is none
	Err   error
	Retry bool // see Temporary
}

// Error returns the store, the operation, the place and the cause.
func (e *Error) Error() string {
	where := ""
	switch {
	case !e.Ref.IsZero():
		where = " " + e.Ref.String()
	case e.Off >= 0:
		where = fmt.Sprintf(" at offset %#x", e.Off)
	}
	return fmt.Sprintf("store %s: %s%s: %v", e.Store, e.Op, where, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Temporary reports whether the same call may succeed later: the store is
// full, or its device refuses writes at present.
func (e *Error) Temporary() bool { return e.Retry }
