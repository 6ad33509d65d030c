// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"syscall"
	"unsafe"

	"github.com/faultline-go/faultline/mem"
)

// rangeOf returns where b, a mapping, lies in memory.
func rangeOf(b []byte) mem.Range {
	return mem.MakeRange(mem.Addr(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), uint64(len(b)))
}

// unmap unmaps a part of a mapping. syscall.Munmap takes whole ones only.
func unmap(b []byte) error {
	_, _, errno := syscall.Syscall(syscall.SYS_MUNMAP, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0)
	if errno != 0 {
		return fmt.Errorf("munmap: %w", errno)
	}
	return nil
}
