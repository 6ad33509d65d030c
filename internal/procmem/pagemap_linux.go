// SPDX-License-Identifier: Apache-2.0

package procmem

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
)

// Numbers of the PAGEMAP_SCAN ioctl (pagemap_scan(2const), since Linux 6.7).
const (
	pagemapScan   = 0xc0606610
	pageIsFile    = 1 << 2
	pageIsPresent = 1 << 3
	pageIsSwapped = 1 << 4
	pageIsGuard   = 1 << 8 // since Linux 6.15
	scanRegions   = 512
)

// scanArg is struct pm_scan_arg.
type scanArg struct {
	size, flags                     uint64
	start, end, walkEnd             uint64
	vec, vecLen, maxPages           uint64
	inverted, mask, anyOf, returned uint64
}

// scanRegion is struct page_region.
type scanRegion struct{ start, end, categories uint64 }

// Pagemap finds out which pages of a process are present. It stays bound to
// the address space that the process had when it was opened. It is not safe
// for concurrent use.
type Pagemap struct {
	f        *os.File
	vec      []scanRegion
	noScan   bool // the kernel is older than the ioctl
	noGuards bool // or than what that tells of guards
}

// OpenPagemap opens the pagemap of a process, which takes the permission to
// trace it.
func OpenPagemap(pid int) (*Pagemap, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", Task(pid)))
	if err != nil {
		return nil, err
	}
	return &Pagemap{f: f, vec: make([]scanRegion, scanRegions)}, nil
}

// Close closes the pagemap.
func (p *Pagemap) Close() error { return p.f.Close() }

// Present calls f for each part of r whose pages are there, in memory or swapped out, in
// order of address. Pages of zeros that were only read are among them.
func (p *Pagemap) Present(r mem.Range, f func(mem.Range)) error {
	for !p.noScan {
		err := p.scan(r, f)
		switch {
		case !errors.Is(err, syscall.ENOTTY) && !errors.Is(err, syscall.EINVAL):
			return err
		case !p.noGuards:
			p.noGuards = true // before Linux 6.15
		default:
			p.noScan = true // before 6.7
		}
	}
	return p.read(r, f)
}

// isThere reports whether a word of proc_pid_pagemap(5) is of a page in memory or swapped
// out. Guards and poison look like the latter (since Linux 5.19), of a kind of swap that
// there is not.
func isThere(word uint64) bool {
	const present, swapped, kind, marker = 1 << 63, 1 << 62, 1<<5 - 1, 1<<5 - 1
	return word&present != 0 || word&swapped != 0 && word&kind != marker
}

// Pages calls f for each part of r whose pages the process has, in memory or
// swapped out, in order of address. own says that they are its own, and not an
// object's.
func (p *Pagemap) Pages(r mem.Range, f func(part mem.Range, own bool)) error {
	if !p.noScan {
		const any = pageIsPresent | pageIsSwapped
		err := p.walk(r, scanArg{anyOf: any, returned: any | pageIsFile}, func(v scanRegion) {
			f(mem.Range{Start: mem.Addr(v.start), End: mem.Addr(v.end)}, v.categories&pageIsFile == 0)
		})
		if !errors.Is(err, syscall.ENOTTY) && !errors.Is(err, syscall.EINVAL) {
			return err
		}
		p.noScan = true
	}
	return p.readPages(r, f)
}

// Guards calls f for each part of r that MADV_GUARD_INSTALL has made a guard, in order
// of address. Linux 6.13 and 6.14 have guards and do not tell of them.
func (p *Pagemap) Guards(r mem.Range, f func(mem.Range)) error {
	err := p.walk(r, scanArg{mask: pageIsGuard, returned: pageIsGuard}, func(v scanRegion) {
		f(mem.Range{Start: mem.Addr(v.start), End: mem.Addr(v.end)})
	})
	if errors.Is(err, syscall.ENOTTY) || errors.Is(err, syscall.EINVAL) {
		return nil
	}
	return err
}

// readPages is Pages for kernels before 6.7.
func (p *Pagemap) readPages(r mem.Range, f func(part mem.Range, own bool)) error {
	const there, file = 3 << 62, 1 << 61
	buf := make([]byte, 512*8)
	for at := r.Start; at < r.End; {
		n, err := p.f.ReadAt(buf[:min(len(buf), r.Pages()*8)], int64(at)>>mem.PageShift*8)
		if n < 8 {
			if err == nil || err == io.EOF {
				return nil // past the end of the address space
			}
			return fmt.Errorf("pagemap at %v: %w", at, err)
		}
		for i := 0; i+8 <= n && at < r.End; i += 8 {
			if e := binary.NativeEndian.Uint64(buf[i:]); e&there != 0 {
				f(mem.MakeRange(at, mem.PageSize), e&file == 0)
			}
			at += mem.PageSize
		}
	}
	return nil
}

func (p *Pagemap) scan(r mem.Range, f func(mem.Range)) error {
	arg := scanArg{anyOf: pageIsPresent | pageIsSwapped, returned: pageIsPresent}
	if !p.noGuards {
		arg.returned |= pageIsGuard
	}
	var failed error
	err := p.walk(r, arg, func(v scanRegion) {
		part := mem.Range{Start: mem.Addr(v.start), End: mem.Addr(v.end)}
		switch {
		case v.categories&pageIsPresent != 0:
			f(part)
		case v.categories&pageIsGuard != 0:
		default:
			failed = cmp.Or(failed, p.read(part, f)) // it may be no page at all
		}
	})
	return cmp.Or(err, failed)
}

// walk scans r for what arg asks.
func (p *Pagemap) walk(r mem.Range, arg scanArg, f func(scanRegion)) error {
	for !r.Empty() {
		arg.start, arg.end, arg.vecLen = uint64(r.Start), uint64(r.End), scanRegions
		arg.size = 96
		arg.vec = addressOf(p.vec)
		n, err := scanIoctl(p.f.Fd(), &arg)
		if err != nil {
			return fmt.Errorf("PAGEMAP_SCAN %v: %w", r, err)
		}
		for _, v := range p.vec[:n] {
			f(v)
		}
		if mem.Addr(arg.walkEnd) <= r.Start {
			return fmt.Errorf("PAGEMAP_SCAN %v: no progress", r)
		}
		r.Start = mem.Addr(arg.walkEnd)
	}
	return nil
}

// read is Present page by page: for kernels before 6.7, and what scan cannot tell.
func (p *Pagemap) read(r mem.Range, f func(mem.Range)) error {
	buf := make([]byte, 512*8)
	run := mem.Range{Start: r.Start, End: r.Start}
	for at := r.Start; at < r.End; {
		n := min(len(buf), int(r.End-at)>>mem.PageShift*8)
		n, err := p.f.ReadAt(buf[:n], int64(at)>>mem.PageShift*8)
		if n < 8 {
			if err == nil || err == io.EOF {
				break // past the end of the address space
			}
			return fmt.Errorf("pagemap at %v: %w", at, err)
		}
		for i := 0; i+8 <= n; i += 8 {
			if !isThere(binary.NativeEndian.Uint64(buf[i:])) {
				if !run.Empty() {
					f(run)
				}
				run = mem.Range{Start: at + mem.PageSize, End: at + mem.PageSize}
			} else {
				run.End = at + mem.PageSize
			}
			at += mem.PageSize
		}
	}
	if !run.Empty() {
		f(run)
	}
	return nil
}

// Segment is a piece of another process's memory and where to copy it.
type Segment struct {
	Addr mem.Addr
	Dst  []byte
}

// Read copies memory of a process. It fails with EFAULT if any of it is
// unmapped, and waits where a page has to be brought in by a fault handler.
func Read(pid int, segs []Segment) error {
	const most = 512 // of the 1024 that process_vm_readv(2) takes
	for len(segs) > 0 {
		n := min(len(segs), most)
		local := make([]unix.Iovec, n)
		remote := make([]unix.RemoteIovec, n)
		want := 0
		for i, s := range segs[:n] {
			local[i].Base = &s.Dst[0]
			local[i].SetLen(len(s.Dst))
			remote[i] = unix.RemoteIovec{Base: uintptr(s.Addr), Len: len(s.Dst)}
			want += len(s.Dst)
		}
		got, err := unix.ProcessVMReadv(pid, local, remote, 0)
		if err == unix.ESRCH {
			got, err = unix.ProcessVMReadv(Task(pid), local, remote, 0)
		}
		if err != nil {
			return fmt.Errorf("process_vm_readv of pid %d at %v: %w", pid, segs[0].Addr, err)
		}
		if got != want {
			return fmt.Errorf("process_vm_readv of pid %d at %v: %d of %d bytes: %w",
				pid, segs[0].Addr, got, want, syscall.EFAULT)
		}
		segs = segs[n:]
	}
	return nil
}
