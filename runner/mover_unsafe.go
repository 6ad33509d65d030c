// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"unsafe"

	"github.com/faultline-go/faultline/uffd/uapi"
)

// moveSize is the size of a struct uffdio_move.
const moveSize = int(unsafe.Sizeof(uapi.Move{}))

// putMove writes an argument of UFFDIO_MOVE as number i into memory that is
// shared with the agent.
func putMove(shared []byte, i int, arg uapi.Move) {
	*(*uapi.Move)(unsafe.Pointer(&shared[i*moveSize])) = arg
}

// getMoved reads what the kernel has written into argument i: the bytes that
// were moved, or a negated errno.
func getMoved(shared []byte, i int) int64 {
	return (*uapi.Move)(unsafe.Pointer(&shared[i*moveSize])).Move
}
