// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// osFile is a File of the operating system.
type osFile struct {
	fd   int
	path string // of a named file, to be removed; else empty
	noTry
}

// OpenNamed opens or creates the file at path for this process alone. It is
// emptied, and removed again by Close.
//
// A file that is not empty is refused unless it begins with Magic, so that a
// mistyped path destroys nothing; so is whatever is not a plain file, a
// symbolic link, and a file that another process has open as its store.
func OpenNamed(path string) (File, error) {
	for {
		fd, err := unix.Open(path,
			unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK,
			uint32(openMode))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ELOOP):
			return nil, fmt.Errorf("open %s: it is a symbolic link: name the file itself", path)
		case errors.Is(err, unix.EISDIR):
			return nil, fmt.Errorf("open %s: it is a directory: name a file in it", path)
		case err != nil:
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		again, err := claim(fd, path)
		if err == nil && !again {
			return &osFile{fd: fd, path: path}, nil
		}
		unix.Close(fd)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
	}
}

// claim locks the file, makes sure that it is ours to overwrite, and empties
// it. again says that another process removed it before it was locked.
func claim(fd int, path string) (again bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, fmt.Errorf("stat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false, errors.New("it is not a plain file")
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, errors.New("another faultline uses it: name another file")
		}
		return false, fmt.Errorf("lock: %w", err)
	}
	if !sameFile(fd, path) {
		return true, nil
	}
	if err := unix.Fstat(fd, &st); err != nil {
		return false, fmt.Errorf("stat: %w", err)
	}
	if st.Size > 0 {
		head := make([]byte, len(Magic))
		n, err := unix.Pread(fd, head, 0)
		if err != nil || string(head[:n]) != Magic {
			return false, errors.New("it holds something else: name a file that does not exist, or remove it")
		}
	}
	if err := unix.Ftruncate(fd, 0); err != nil {
		return false, fmt.Errorf("truncate: %w", err)
	}
	// One that was there before may be open to others.
	if err := unix.Fchmod(fd, uint32(openMode)); err != nil {
		return false, fmt.Errorf("make it private: %w", err)
	}
	if n, err := unix.Pwrite(fd, []byte(Magic), 0); err != nil || n != len(Magic) {
		return false, fmt.Errorf("write its head: %d of %d bytes: %w", n, len(Magic), err)
	}
	return false, nil
}

// sameFile reports whether path still leads to the open file fd.
func sameFile(fd int, path string) bool {
	var a, b unix.Stat_t
	return unix.Fstat(fd, &a) == nil && unix.Lstat(path, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

// OpenTemp opens a file without a name in the first directory of dirs that
// allows it, one on a real disk before one in memory, and returns which.
func OpenTemp(dirs []string) (f File, dir string, err error) {
	var disks, memory []string
	for _, d := range dirs {
		if inMemory(d) {
			memory = append(memory, d)
		} else {
			disks = append(disks, d)
		}
	}
	var errs []string
	for _, d := range append(disks, memory...) {
		fd, err := openUnlinked(d)
		if err == nil {
			return &osFile{fd: fd}, d, nil
		}
		errs = append(errs, fmt.Sprintf("%s: %v", d, err))
	}
	return nil, "", fmt.Errorf("no directory for a temporary file: %s: name one by TMPDIR or file:/PATH", strings.Join(errs, "; "))
}

func inMemory(dir string) bool {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return false
	}
	return st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC
}

func openUnlinked(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, uint32(openMode))
	if err == nil {
		return fd, nil
	}
	// Some file systems lack O_TMPFILE, and say so by various errors.
	f, err := os.CreateTemp(dir, ".faultline-*") // mode 0600, O_EXCL
	if err != nil {
		return -1, err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return -1, err
	}
	fd, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicate %s: %w", filepath.Base(f.Name()), err)
	}
	return fd, nil
}

func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Pwrite implements File.
func (f *osFile) Pwrite(b []byte, off int64) (n int, err error) {
	err = retry(func() error { n, err = unix.Pwrite(f.fd, b, off); return err })
	return max(n, 0), err
}

// Pread implements File.
func (f *osFile) Pread(b []byte, off int64) (n int, err error) {
	err = retry(func() error { n, err = unix.Pread(f.fd, b, off); return err })
	return max(n, 0), err
}

// Datasync implements File.
func (f *osFile) Datasync() error {
	return retry(func() error { return unix.Fdatasync(f.fd) })
}

// Reserve implements File. Where the file system cannot reserve, the file is
// extended all the same, and a lack of space shows when it is written.
func (f *osFile) Reserve(off, n int64) error {
	err := retry(func() error { return unix.Fallocate(f.fd, 0, off, n) })
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	size, err := f.Size()
	if err != nil || size >= off+n {
		return err
	}
	return retry(func() error { return unix.Ftruncate(f.fd, off+n) })
}

// Punch implements File.
func (f *osFile) Punch(off, n int64) error {
	return retry(func() error {
		return unix.Fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
}

// Size implements File.
func (f *osFile) Size() (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return 0, err
	}
	return st.Size, nil
}

// Close implements File. The name is removed only while it still leads to
// this file, which the lock lets no other faultline take in between.
func (f *osFile) Close() error {
	var first error
	if f.path != "" && sameFile(f.fd, f.path) {
		first = os.Remove(f.path)
	}
	if err := unix.Close(f.fd); err != nil && first == nil {
		first = err
	}
	return first
}
