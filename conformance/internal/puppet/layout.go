// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package puppet

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/faultline-go/faultline/mem"
)

// VMA is a mapping as proc_pid_smaps(5) shows it.
type VMA struct {
	mem.Range
	Perms string // such as "rw-p"
	Flags string // VmFlags, such as "rd wr mr mw me ac um"
}

// Maps returns the mappings that lie in r, in order.
func (p *Process) Maps(r mem.Range) ([]VMA, error) {
	b, err := p.read("smaps", 0, math.MaxInt)
	if err != nil {
		return nil, err
	}
	var out []VMA
	for line := range strings.Lines(string(b)) {
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && len(out) > 0 {
			out[len(out)-1].Flags = strings.TrimSpace(flags)
			continue
		}
		addrs, rest, _ := strings.Cut(line, " ")
		from, to, ok := strings.Cut(addrs, "-")
		if !ok {
			continue // a line about the mapping before
		}
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 != nil || err2 != nil || len(rest) < 4 {
			return nil, fmt.Errorf("smaps line %q is not of the form of a mapping", line)
		}
		out = append(out, VMA{Range: mem.Range{Start: mem.Addr(start), End: mem.Addr(end)}, Perms: rest[:4]})
	}
	kept := out[:0]
	for _, v := range out {
		if v.Overlaps(r) {
			kept = append(kept, v)
		}
	}
	return kept, nil
}

// read reads up to n bytes of a file that /proc has of the process.
func (p *Process) read(name string, off int64, n int) ([]byte, error) {
	path := fmt.Sprintf("/proc/%d/%s", p.pid, name)
	if p.area.eyes != nil {
		return p.area.eyes.read(path, off, n)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, int64(n)))
}

// Fdinfo returns what proc_pid_fdinfo(5) says of a descriptor.
func (p *Process) Fdinfo(fd int) (string, error) {
	b, err := p.read(fmt.Sprintf("fdinfo/%d", fd), 0, math.MaxInt)
	return string(b), err
}

// Link returns what a descriptor is, such as "anon_inode:[userfaultfd]".
func (p *Process) Link(fd int) (string, error) {
	return os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", p.pid, fd))
}

// Pagemap returns the words of proc_pid_pagemap(5) about the pages of r.
func (p *Process) Pagemap(r mem.Range) ([]uint64, error) {
	b, err := p.read("pagemap", int64(r.Start.Page())*8, 8*r.Pages())
	if err != nil {
		return nil, err
	}
	if len(b) < 8*r.Pages() {
		return nil, io.ErrUnexpectedEOF
	}
	words := make([]uint64, r.Pages())
	for i := range words {
		words[i] = binary.NativeEndian.Uint64(b[8*i:])
	}
	return words, nil
}
