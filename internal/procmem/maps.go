// SPDX-License-Identifier: Apache-2.0

// Package procmem looks at the memory of another process through /proc.
package procmem

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/faultline-go/faultline/mem"
)

// VMA is one line of proc_pid_maps(5).
type VMA struct {
	mem.Range
	Read, Write, Exec, Shared bool
	Offset                    uint64 // in the file, in bytes
	Dev                       uint64 // of the file: major and minor number, 32 bits each
	Inode                     uint64
	// Name is the file, or what the kernel calls the mapping, such as
	// "[heap]"; empty for most anonymous memory.
	Name string
}

// Anonymous reports whether the mapping is private anonymous memory that can be
// served, which excludes what the kernel made for itself, and the main stack.
//
// A private mapping of /dev/zero is anonymous, too, but it has a file, and one
// of no length: UFFDIO_COPY takes every page for one beyond its end, and fails
// with EFAULT (Linux 6.18), though the range can be registered.
func (v VMA) Anonymous() bool {
	if v.Shared {
		return false
	}
	switch {
	case v.Inode != 0:
		return false
	case v.Name == "" || v.Name == "[heap]":
		return true
	}
	return strings.HasPrefix(v.Name, "[anon:") // PR_SET_VMA_ANON_NAME
}

// Maps returns the mappings of a process in order of address. The list is
// put together page by page while the process runs: it can miss or repeat
// what changes meanwhile.
func Maps(pid int) ([]VMA, error) {
	b, err := readWhole(fmt.Sprintf("/proc/%d/maps", Task(pid)))
	if err != nil {
		return nil, err
	}
	defer buffers.Put(b)
	return parseMaps(b.Bytes())
}

// buffers are for files whose size is not known before they are read, which os.ReadFile
// makes several slices for.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// readWhole reads a file into one of buffers, to be put back.
func readWhole(path string) (*bytes.Buffer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := buffers.Get().(*bytes.Buffer)
	b.Reset()
	if _, err := b.ReadFrom(f); err != nil {
		buffers.Put(b)
		return nil, err
	}
	return b, nil
}

func parseMaps(b []byte) ([]VMA, error) {
	vmas := make([]VMA, 0, bytes.Count(b, []byte{'\n'}))
	// One string for all: the lists of a large process are some thousand lines, and are
	// read twice a second.
	for line := range strings.Lines(string(b)) {
		v, err := parseVMA(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("maps line %q: %w", line, err)
		}
		vmas = append(vmas, v)
	}
	return vmas, nil
}

func parseVMA(line string) (v VMA, err error) {
	// address perms offset dev inode name; the name may hold spaces.
	var f [6]string
	more := true
	for i := range f[:5] {
		if !more {
			return v, fmt.Errorf("not of the form of a mapping")
		}
		f[i], line, more = strings.Cut(line, " ")
	}
	f[5] = line
	if len(f[1]) != 4 {
		return v, fmt.Errorf("not of the form of a mapping")
	}
	from, to, ok := strings.Cut(f[0], "-")
	start, err1 := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	inode, err3 := strconv.ParseUint(f[4], 10, 64)
	offset, err4 := strconv.ParseUint(f[2], 16, 64)
	major, minor, _ := strings.Cut(f[3], ":")
	maj, err5 := strconv.ParseUint(major, 16, 32)
	mnr, err6 := strconv.ParseUint(minor, 16, 32)
	if err := cmp.Or(err1, err2, err3, err4, err5, err6); err != nil {
		return v, err
	}
	if !ok || end <= start {
		return v, fmt.Errorf("not a range of addresses")
	}
	v = VMA{
		Range: mem.Range{Start: mem.Addr(start), End: mem.Addr(end)},
		Read:  f[1][0] == 'r', Write: f[1][1] == 'w', Exec: f[1][2] == 'x', Shared: f[1][3] == 's',
		Offset: offset, Dev: maj<<32 | mnr, Inode: inode,
	}
	v.Name = strings.TrimLeft(f[5], " ")
	return v, nil
}

// Usage is the resident memory of a process in bytes, by kind.
type Usage struct {
	// Anon is private memory that was written: heaps, stacks, and the pages
	// of private file mappings that the process has changed.
	Anon uint64
	// File is pages of files and of shared memory.
	File uint64
}

// parseStatm reads the content of proc_pid_statm(5).
func parseStatm(s string) (Usage, error) {
	f := strings.Fields(s)
	if len(f) < 3 {
		return Usage{}, fmt.Errorf("statm %q: too few fields", s)
	}
	total, err1 := strconv.ParseUint(f[1], 10, 52)
	file, err2 := strconv.ParseUint(f[2], 10, 52)
	if err1 != nil || err2 != nil {
		return Usage{}, fmt.Errorf("statm %q: not numbers", s)
	}
	return Usage{Anon: (total - min(total, file)) * mem.PageSize, File: file * mem.PageSize}, nil
}

// Threads returns the number of threads of a process, 0 if it has ended.
func Threads(pid int) int {
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return 0
	}
	return len(d)
}

// Flagged returns the mappings of a process that have a flag of proc_pid_smaps(5), such
// as "um". It is slow: the kernel looks at every page.
func Flagged(pid int, flag string) (all []mem.Range, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", Task(pid)))
	if err != nil {
		return nil, err
	}
	var head []byte // the line that a mapping begins with
	for line := range bytes.Lines(b) {
		if line[0] < 'A' || line[0] > 'Z' {
			head = line
			continue
		}
		flags, ok := bytes.CutPrefix(line, []byte("VmFlags:"))
		if !ok {
			continue
		}
		for f := range bytes.FieldsSeq(flags) {
			if string(f) != flag {
				continue
			}
			v, err := parseVMA(string(bytes.TrimSuffix(head, []byte{'\n'})))
			if err != nil {
				return nil, fmt.Errorf("smaps of process %d: %q: %w", pid, head, err)
			}
			all = append(all, v.Range)
		}
	}
	return all, nil
}

// Locked returns how much memory a process has locked, in KiB, 0 if it is gone.
func Locked(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", Task(pid)))
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(b, []byte("\nVmLck:"))
	line, _, _ := bytes.Cut(rest, []byte(" kB"))
	n, _ := strconv.Atoi(string(bytes.TrimSpace(line)))
	return n
}

// Freed returns how much of a process's memory MADV_FREE has marked and the kernel has
// not taken yet, in KiB. It is slow: the kernel looks at every page.
func Freed(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", Task(pid)))
	if err != nil {
		return 0, err
	}
	_, rest, found := bytes.Cut(b, []byte("\nLazyFree:"))
	if !found {
		return 0, fmt.Errorf("smaps_rollup of process %d does not tell what is freed", pid)
	}
	line, _, _ := bytes.Cut(rest, []byte(" kB"))
	return strconv.Atoi(string(bytes.TrimSpace(line)))
}

// Running reports whether a thread runs or waits for a processor.
func Running(pid, tid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/stat", pid, tid))
	if err != nil {
		return false
	}
	// The command in field 2 may hold spaces and parentheses.
	i := bytes.LastIndexByte(b, ')')
	return i >= 0 && i+2 < len(b) && b[i+2] == 'R'
}

// Call returns the number of the system call that a thread sleeps in. ok is false for
// one that runs or waits for a processor, and for one that sleeps elsewhere.
func Call(pid, tid int) (nr uintptr, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/syscall", pid, tid))
	if err != nil {
		return 0, false
	}
	first, _, _ := bytes.Cut(b, []byte{' '})
	v, err := strconv.ParseUint(string(first), 10, 32)
	return uintptr(v), err == nil
}

// Catches reports whether a task has a handler for a signal.
func Catches(tid, sig int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(b, []byte("\nSigCgt:\t"))
	line, _, _ := bytes.Cut(rest, []byte{'\n'})
	mask, _ := strconv.ParseUint(string(line), 16, 64)
	return mask>>(sig-1)&1 != 0
}
