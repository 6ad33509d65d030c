// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sysargs

const (
	sizeStat  = 128
	sizeEpoll = 16
	tagMask   = 0xff << 56 // the top byte is ignored
)

// archCalls are those that older architectures alone have: none.
func archCalls() map[uintptr]call { return nil }
