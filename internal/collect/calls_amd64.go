// SPDX-License-Identifier: Apache-2.0

//go:build linux

package collect

import "golang.org/x/sys/unix"

func init() { names[unix.SYS_DUP2] = "dup2" }
