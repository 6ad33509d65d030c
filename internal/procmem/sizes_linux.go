// SPDX-License-Identifier: Apache-2.0

package procmem

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Sizes measures processes again and again. It keeps their files open between
// two measurements, which costs a third of opening them each time. The zero
// value is ready for use, by any goroutine.
type Sizes struct {
	mu   sync.Mutex
	open map[int]int // descriptors by process id, never more than maxOpen; protected by mu
	buf  [128]byte   // protected by mu
}

// maxOpen is the number of files that stay open: descriptors are few.
const maxOpen = 64

// Resident returns what proc_pid_statm(5) says of a process. The kernel keeps
// these counts per processor and sums them loosely before Linux 6.2, and so may
// be some hundred KiB off. The file belongs to the process, whatever it
// executes: exec is no reason to open another.
func (s *Sizes) Resident(pid int) (Usage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fd, ok := s.open[pid]; ok {
		if n, err := unix.Pread(fd, s.buf[:], 0); err == nil && n > 0 {
			if u, err := parseStatm(string(s.buf[:n])); err != nil || u != (Usage{}) {
				return u, err
			}
		}
		// It, or the thread by which it was looked at, has ended (ESRCH), or has
		// no memory any more. There may be another of the same id.
		s.drop(pid)
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/statm", Task(pid)), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Usage{}, err
	}
	n, err := unix.Pread(fd, s.buf[:], 0)
	if err != nil {
		_ = unix.Close(fd) // it was open for reading only
		return Usage{}, err
	}
	u, err := parseStatm(string(s.buf[:n]))
	// What has no memory is a zombie, which Forget may have been told of.
	if err != nil || u == (Usage{}) || len(s.open) >= maxOpen {
		_ = unix.Close(fd)
		return u, err
	}
	if s.open == nil {
		s.open = make(map[int]int)
	}
	s.open[pid] = fd
	return u, nil
}

// Forget closes the file of a process that has ended. A Resident that comes
// later does not keep one.
func (s *Sizes) Forget(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.open[pid]; ok {
		s.drop(pid)
	}
}

// Close closes all files.
func (s *Sizes) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for pid := range s.open {
		s.drop(pid)
	}
}

// drop closes a file. Preconditions: s.mu is held, the file is open.
func (s *Sizes) drop(pid int) {
	_ = unix.Close(s.open[pid]) // it was open for reading only
	delete(s.open, pid)
}
