// SPDX-License-Identifier: Apache-2.0

package procmem

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Sizes measures processes again and again. It keeps their files open between
// two measurements, which costs a third of opening them each time. The zero
// value is ready for use, by one goroutine at a time.
type Sizes struct {
	open  map[int]*statm // by process id; never more than maxOpen
	round int
	buf   [128]byte
}

type statm struct {
	fd   int
	used int // in this round
}

// maxOpen is the number of files that stay open: descriptors are few.
const maxOpen = 64

// Resident returns what proc_pid_statm(5) says of a process. The kernel keeps
// these counts per processor and sums them loosely before Linux 6.2, and so may
// be some hundred KiB off. The file belongs to the process, whatever it
// executes: exec is no reason to open another.
func (s *Sizes) Resident(pid int) (Usage, error) {
	if f := s.open[pid]; f != nil {
		if n, err := unix.Pread(f.fd, s.buf[:], 0); err == nil && n > 0 {
			f.used = s.round
			return parseStatm(string(s.buf[:n]))
		}
		// It has ended (ESRCH). There may be another of the same id.
		s.drop(pid)
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/statm", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Usage{}, err
	}
	n, err := unix.Pread(fd, s.buf[:], 0)
	if err != nil || len(s.open) >= maxOpen {
		return s.once(fd, n, err)
	}
	if s.open == nil {
		s.open = make(map[int]*statm)
	}
	s.open[pid] = &statm{fd, s.round}
	return parseStatm(string(s.buf[:n]))
}

// once is for a file that does not stay open.
func (s *Sizes) once(fd, n int, err error) (Usage, error) {
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return Usage{}, err
	}
	return parseStatm(string(s.buf[:n]))
}

// Sweep closes the files of processes that were not asked for since the
// latest Sweep.
func (s *Sizes) Sweep() {
	for pid, f := range s.open {
		if f.used != s.round {
			s.drop(pid)
		}
	}
	s.round++
}

// Close closes all files.
func (s *Sizes) Close() {
	for pid := range s.open {
		s.drop(pid)
	}
}

func (s *Sizes) drop(pid int) {
	_ = unix.Close(s.open[pid].fd) // it was open for reading only
	delete(s.open, pid)
}
