// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package conformance

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
)

// zeroPage reports whether the kernel maps one page of zeros, shared by all, where
// memory is read that nobody has written. Some give each its own, such as kernels
// patched for hypervisors that have no page tables of the processor for them. Then
// that memory has an origin (see vkernel), and does not merge with other.
func zeroPage() bool {
	shared, err := sharesZeros()
	return shared || err != nil
}

func sharesZeros() (bool, error) {
	b, err := unix.Mmap(-1, 0, mem.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return false, fmt.Errorf("mapping a page: %w", err)
	}
	defer func() { _ = unix.Munmap(b) }()
	if b[0] != 0 {
		return false, fmt.Errorf("fresh memory holds %#x", b[0])
	}
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return false, err
	}
	defer f.Close()
	var word [8]byte
	at := uintptr(unsafe.Pointer(&b[0]))
	if _, err := f.ReadAt(word[:], int64(at>>mem.PageShift*8)); err != nil {
		return false, fmt.Errorf("reading what is at %#x: %w", at, err)
	}
	// A page that one process alone has mapped; proc_pid_pagemap(5), Linux 4.2.
	const exclusive = 1 << 56
	return binary.NativeEndian.Uint64(word[:])&exclusive == 0, nil
}
