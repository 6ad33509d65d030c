// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// child is the program whose memory the parent serves.
func child() error {
	object, err := syscall.Mmap(-1, 0, pages*mem.PageSize, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	if err := handOver(object); err != nil {
		return err
	}

	if err := check(object, 0, 32, false); err != nil {
		return err
	}
	fmt.Println("32 pages came in when they were touched")

	dropped := object[16*mem.PageSize : 32*mem.PageSize]
	if err := syscall.Madvise(dropped, syscall.MADV_DONTNEED); err != nil {
		return fmt.Errorf("madvise: %w", err)
	}
	if err := check(object, 16, 24, true); err != nil {
		return err
	}
	fmt.Println("16 were dropped, and read as zeros")

	if err := unmap(object[56*mem.PageSize:]); err != nil {
		return err
	}
	if err := together(object, dropped); err != nil {
		return err
	}
	fmt.Println("8 were unmapped, and 4 goroutines agree on the rest")
	return nil
}

// handOver makes a descriptor for object and sends it to the parent. It keeps
// none, so that it is the parent who decides when serving ends.
func handOver(object []byte) error {
	// A descriptor for faults of user mode alone needs no privilege. System
	// calls that touch missing pages fail with EFAULT.
	fd, err := uffd.Open(uffd.Options{NonBlock: true, UserModeOnly: true})
	if err != nil {
		return err
	}
	defer fd.Close()
	if err := fd.Handshake(uapi.UFFD_FEATURE_EVENT_REMOVE | uapi.UFFD_FEATURE_EVENT_UNMAP); err != nil {
		return err
	}
	r := rangeOf(object)
	_, errno := fd.Register(r, uapi.UFFDIO_REGISTER_MODE_MISSING)
	if err := uffd.Check("UFFDIO_REGISTER", r, 0, errno); err != nil {
		return err
	}
	payload, err := json.Marshal(r)
	if err != nil {
		return err
	}
	sock, err := connOf(childFD)
	if err != nil {
		return err
	}
	defer sock.Close()
	return uffd.Send(sock, payload, fd)
}

// check reads the pages from first to end, byte by byte.
func check(object []byte, first, end int, zeros bool) error {
	for i := first; i < end; i++ {
		want := content(i)
		if zeros {
			want = 0
		}
		for k := range mem.PageSize {
			if got := object[i*mem.PageSize+k]; got != want {
				return fmt.Errorf("page %d, byte %d is %#x, want %#x", i, k, got, want)
			}
		}
	}
	return nil
}

// together reads from several goroutines while dropped is dropped again and
// again. Each of these is an event, and COPY is EAGAIN until it was read.
func together(object, dropped []byte) error {
	var wg sync.WaitGroup
	errs := make([]error, 5)
	for i := range 4 {
		wg.Go(func() {
			for range 10 {
				errs[i] = errors.Join(errs[i], check(object, 16, 32, true))
			}
			errs[i] = errors.Join(errs[i], check(object, 32, 56, false))
		})
	}
	for range 200 {
		errs[4] = errors.Join(errs[4], syscall.Madvise(dropped, syscall.MADV_DONTNEED))
	}
	wg.Wait()
	return errors.Join(errs...)
}
