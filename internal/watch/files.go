// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package watch

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"

	"github.com/faultline-go/faultline/internal/sys"
	"github.com/faultline-go/faultline/internal/uffdtrace"
)

const (
	linkUserfaultfd = "anon_inode:[userfaultfd]"
	// linkDevice is how the device's path ends, whatever it is mounted on.
	linkDevice = "/userfaultfd"
)

// link returns what descriptor fd of a task stands for, "" if it is none.
func link(tid, fd int) string {
	s, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, fd))
	if err != nil {
		return ""
	}
	return s
}

func isUserfaultfd(tid, fd int) bool { return fd >= 0 && link(tid, fd) == linkUserfaultfd }

// userfaultfds lists those of a task, in order.
func userfaultfds(tid int) (fds []int) {
	dir, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", tid))
	if err != nil {
		return nil // it is gone
	}
	for _, e := range dir {
		if fd, err := strconv.Atoi(e.Name()); err == nil && isUserfaultfd(tid, fd) {
			fds = append(fds, fd)
		}
	}
	slices.Sort(fds)
	return fds
}

// table has the userfaultfds of a process by number. Processes made with
// CLONE_FILES share one.
type table struct {
	files map[int]uffdtrace.File
	users int
}

func newTable() *table { return &table{files: map[int]uffdtrace.File{}, users: 1} }

func (t *table) copy() *table { return &table{files: maps.Clone(t.files), users: 1} }

func (t *table) numbers() []int { return slices.Sorted(maps.Keys(t.files)) }

// registry knows which descriptors are the same open file.
type registry struct {
	last  uffdtrace.File
	known map[uffdtrace.File]*file
}

// file is an open userfaultfd.
type file struct {
	holders int  // numbers in tables
	sent    bool // in a message of which we know no receiver yet
}

func newRegistry() *registry { return &registry{known: map[uffdtrace.File]*file{}} }

// fresh returns a File that nobody has had.
func (r *registry) fresh() uffdtrace.File {
	r.last++
	r.known[r.last] = &file{}
	return r.last
}

// hold counts a number more for f, which may be one that has been released: a
// duplicate is made in one thread, and the original closed in another.
func (r *registry) hold(f uffdtrace.File) {
	if r.known[f] == nil {
		r.known[f] = &file{}
	}
	r.known[f].holders++
}

// release counts one less, and reports whether it was the last.
func (r *registry) release(f uffdtrace.File) (last bool) {
	k := r.known[f]
	k.holders--
	if k.holders > 0 || k.sent {
		return false
	}
	delete(r.known, f)
	return true
}

// identify finds out which File a descriptor is that has appeared in a process,
// by comparing it with one of each that the processes of ps have. If none of its
// other descriptors is open any more, as when the sender has closed it right
// after it was sent, it is the one of those that was made first. Otherwise it
// comes from outside of the tree, and is new.
func (r *registry) identify(tid, fd int, ps map[int]*process) uffdtrace.File {
	others := map[uffdtrace.File]bool{}
	for pid, p := range ps {
		for n, f := range p.table.files {
			if others[f] || pid == tid && n == fd {
				continue
			}
			// An error: it is closed already, or the kernel cannot tell.
			same, err := sys.SameFile(pid, n, tid, fd)
			if same {
				return f
			}
			others[f] = err == nil
		}
	}
	for _, f := range slices.Sorted(maps.Keys(r.known)) {
		if r.known[f].sent && !others[f] {
			return f
		}
	}
	return r.fresh()
}

// send notes that f is in a message, or with false that it is not.
func (r *registry) send(f uffdtrace.File, sent bool) {
	if k := r.known[f]; k != nil {
		k.sent = sent
	}
}
