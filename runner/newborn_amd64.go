// SPDX-License-Identifier: Apache-2.0

//go:build linux

package runner

import "golang.org/x/sys/unix"

// oldCalls are those of briefCalls that newer architectures do not have.
var oldCalls = []uintptr{
	unix.SYS_ACCESS,
	unix.SYS_ARCH_PRCTL,
	unix.SYS_DUP2,
	unix.SYS_FORK,
	unix.SYS_GETPGRP,
	unix.SYS_GETRLIMIT,
	unix.SYS_NEWFSTATAT,
	unix.SYS_OPEN,
	unix.SYS_PIPE,
	unix.SYS_SETRLIMIT,
	unix.SYS_STAT,
}
