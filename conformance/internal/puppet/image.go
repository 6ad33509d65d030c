// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package puppet

import (
	"encoding/binary"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// The program's only segment: the headers and, behind them, the blob.
const (
	imageBase = 0x400000
	codeOff   = 0x100

	entry    = imageBase + codeOff
	handler  = entry + 16
	restorer = entry + 32
)

// elfImage returns an executable of two program headers: the segment, and
// the wish for a stack that is not executable.
func elfImage() []byte {
	size := uint64(codeOff + len(blob))
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0} // 64-bit, little-endian
	le := binary.LittleEndian
	half := func(v ...uint16) {
		for _, x := range v {
			b = le.AppendUint16(b, x)
		}
	}
	word := func(v ...uint32) {
		for _, x := range v {
			b = le.AppendUint32(b, x)
		}
	}
	long := func(v ...uint64) {
		for _, x := range v {
			b = le.AppendUint64(b, x)
		}
	}
	half(2, elfMachine) // ET_EXEC
	word(1)
	long(entry, 64, 0) // program headers at 64, no sections
	word(0)
	half(64, 56, 2, 64, 0, 0)

	word(1, 5) // PT_LOAD, readable and executable
	long(0, imageBase, imageBase, size, size, 0x1000)
	word(0x6474e551, 6) // PT_GNU_STACK, readable and writable
	long(0, 0, 0, 0, 0, 16)

	b = append(b, make([]byte, codeOff-len(b))...)
	return append(b, blob[:]...)
}

// image returns a memfd with the program. It is made once and stays open.
var image = sync.OnceValues(func() (int, error) {
	// MFD_EXEC is needed where vm.memfd_noexec is 1, and unknown before
	// Linux 6.3.
	fd, err := unix.MemfdCreate("puppet", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate("puppet", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return -1, fmt.Errorf("memfd_create of the puppet's program: %w", err)
	}
	if _, err := unix.Write(fd, elfImage()); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("write of the puppet's program: %w", err)
	}
	// Nobody can execute a file that is open for writing: open it again.
	ro, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	_ = unix.Close(fd)
	if err != nil {
		return -1, fmt.Errorf("open of the puppet's program: %w", err)
	}
	return ro, nil
})
