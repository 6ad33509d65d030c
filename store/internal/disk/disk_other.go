// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package disk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/faultline-go/faultline/mem"
)

// Scratch is room for one blob on its way in.
type Scratch struct {
	Buf [mem.PageSize]byte
}

// osFile is a File of the operating system.
type osFile struct{ f *os.File }

// OpenNamed creates the file at path, which must not exist: without the locks
// of Linux nothing else tells whether it is in use. Close removes it.
func OpenNamed(path string) (File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, openMode)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteString(Magic); err != nil {
		f.Close()
		os.Remove(path)
		return nil, err
	}
	return &osFile{f}, nil
}

// OpenTemp creates a file in the first directory of dirs that allows it and
// returns which.
func OpenTemp(dirs []string) (f File, dir string, err error) {
	var errs []error
	for _, d := range dirs {
		f, err := os.CreateTemp(d, ".faultline-*")
		if err == nil {
			return &osFile{f}, d, nil
		}
		errs = append(errs, err)
	}
	return nil, "", fmt.Errorf("no directory for a temporary file: %w", errors.Join(errs...))
}

// Pwrite implements File.
func (f *osFile) Pwrite(b []byte, off int64) (int, error) { return f.f.WriteAt(b, off) }

// Pread implements File.
func (f *osFile) Pread(b []byte, off int64) (int, error) {
	n, err := f.f.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// TryPread implements File: without a way to read without waiting, it never
// reads.
func (f *osFile) TryPread(*Scratch, int, int64) ([]byte, bool, error) { return nil, false, nil }

// Datasync implements File.
func (f *osFile) Datasync() error { return f.f.Sync() }

// Reserve implements File as far as it goes: it extends the file.
func (f *osFile) Reserve(off, n int64) error {
	size, err := f.Size()
	if err != nil || size >= off+n {
		return err
	}
	return f.f.Truncate(off + n)
}

// Punch implements File by doing nothing: the space is reused.
func (f *osFile) Punch(int64, int64) error { return nil }

// Size implements File.
func (f *osFile) Size() (int64, error) {
	st, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Close implements File.
func (f *osFile) Close() error {
	return errors.Join(f.f.Close(), os.Remove(f.f.Name()))
}
