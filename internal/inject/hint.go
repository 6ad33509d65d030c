// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"sync/atomic"

	"github.com/faultline-go/faultline/mem"
)

// hints counts the places that Hint has given out.
var hints atomic.Uint32

const (
	// hintBase lies between where the kernel puts programs and where it puts
	// mappings, on amd64 and on arm64 with 48 bits of address.
	hintBase = 0x3e00_0000_0000
	hintStep = 16 << 20
	hintWrap = 1 << 16
)

// Home returns where all that Hint returns lies.
func Home() mem.Range { return mem.MakeRange(hintBase, hintWrap*hintStep+hintStep) }

// Hint returns an address for a mapping of ours in a program: out of the way,
// so that it does not come to lie in a hole which the program has made and
// expects to be one. It goes without MAP_FIXED: where the place is taken or
// beyond what the kernel has, the mapping goes elsewhere.
func Hint() uintptr { return hintBase + uintptr(hints.Add(1)%hintWrap)*hintStep }
