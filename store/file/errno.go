// SPDX-License-Identifier: Apache-2.0

//go:build !plan9 && !windows

package file

import (
	"errors"
	"syscall"
)

// isNoSpace reports whether err is the system's word for a full disk, a full
// quota, or a file that may not grow.
func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}
