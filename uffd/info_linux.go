// SPDX-License-Identifier: Apache-2.0

package uffd

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"github.com/faultline-go/faultline/uffd/uapi"
)

// FDInfo is what /proc/PID/fdinfo says of a descriptor. Queued events other
// than faults are not counted in it.
type FDInfo struct {
	Pending uint64 // faults that wait to be read
	Total   uint64 // faults that wait, read or not
	// Initialized reports whether the handshake is done.
	Initialized bool
	Features    uapi.Features // those that are enabled
	Ioctls      uapi.Ioctls   // those that the kernel has
}

// initialized is set by the kernel among the features of a descriptor that
// has had its handshake. It is no feature.
const initialized uapi.Features = 1 << 31

// Info returns what the kernel says of f.
func (f *FD) Info() (FDInfo, error) {
	raw, ok := f.desc.Acquire()
	if !ok {
		return FDInfo{}, fmt.Errorf("userfaultfd info: %w", syscall.EBADF)
	}
	defer f.desc.Release()
	path := "/proc/self/fdinfo/" + strconv.Itoa(raw)
	b, err := os.ReadFile(path)
	if err != nil {
		return FDInfo{}, fmt.Errorf("userfaultfd info: %w", err)
	}
	info, err := parseInfo(b)
	if err != nil {
		return FDInfo{}, fmt.Errorf("userfaultfd info: %s: %w", path, err)
	}
	return info, nil
}

// parseInfo reads the lines that only a userfaultfd has and skips others. All
// three must be there.
func parseInfo(b []byte) (FDInfo, error) {
	var (
		info FDInfo
		seen int
	)
	for line := range bytes.Lines(b) {
		key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
		if !ok {
			continue
		}
		value = bytes.TrimSpace(value)
		var err error
		switch string(key) {
		case "pending":
			info.Pending, err = strconv.ParseUint(string(value), 10, 64)
		case "total":
			info.Total, err = strconv.ParseUint(string(value), 10, 64)
		case "API":
			err = parseAPI(&info, value)
		default:
			continue
		}
		if err != nil {
			return FDInfo{}, fmt.Errorf("line %q: %w", bytes.TrimSpace(line), err)
		}
		seen++
	}
	if seen != 3 {
		return FDInfo{}, fmt.Errorf("%d of the 3 lines of a userfaultfd", seen)
	}
	return info, nil
}

// parseAPI reads version:features:ioctls, all hexadecimal.
func parseAPI(info *FDInfo, value []byte) error {
	fields := bytes.Split(value, []byte(":"))
	if len(fields) != 3 {
		return fmt.Errorf("%d fields, not 3", len(fields))
	}
	var words [3]uint64
	for i, field := range fields {
		var err error
		if words[i], err = strconv.ParseUint(string(field), 16, 64); err != nil {
			return err
		}
	}
	features := uapi.Features(words[1])
	info.Initialized = features&initialized != 0
	info.Features = features &^ initialized
	info.Ioctls = uapi.Ioctls(words[2])
	return nil
}
