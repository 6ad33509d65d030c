// SPDX-License-Identifier: Apache-2.0

//go:build linux

package runner

import "golang.org/x/sys/unix"

// oldCalls are those of briefCalls whose names are not the same everywhere.
var oldCalls = []uintptr{unix.SYS_FSTATAT}
