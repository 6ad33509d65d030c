// SPDX-License-Identifier: Apache-2.0

//go:build plan9 || windows

package file

// isNoSpace knows no word for a full disk on these systems: it is then like
// any other failure, and tried again.
func isNoSpace(error) bool { return false }
