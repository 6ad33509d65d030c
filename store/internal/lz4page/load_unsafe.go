// SPDX-License-Identifier: Apache-2.0

package lz4page

import (
	"encoding/binary"
	"unsafe"
)

// The compiler turns these into single loads and stores where the machine is
// little-endian and allows unaligned access, and into correct ones elsewhere.

func load64(p unsafe.Pointer, i uintptr) uint64 {
	return binary.LittleEndian.Uint64((*[8]byte)(unsafe.Add(p, i))[:])
}

func load32(p unsafe.Pointer, i uintptr) uint32 {
	return binary.LittleEndian.Uint32((*[4]byte)(unsafe.Add(p, i))[:])
}

func store64(p unsafe.Pointer, i uintptr, v uint64) {
	binary.LittleEndian.PutUint64((*[8]byte)(unsafe.Add(p, i))[:], v)
}
