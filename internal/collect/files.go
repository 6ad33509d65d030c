// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package collect

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"

	"github.com/faultline-go/faultline/internal/uffdtrace"
)

// userfaultfds lists those of a task, in order.
func (cl *Collector) userfaultfds(tid int) (fds []int) {
	dir, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", tid))
	if err != nil {
		return nil // it is gone
	}
	for _, e := range dir {
		if fd, err := strconv.Atoi(e.Name()); err == nil && cl.isUserfaultfd(tid, fd) {
			fds = append(fds, fd)
		}
	}
	slices.Sort(fds)
	return fds
}

func (cl *Collector) isUserfaultfd(tid, fd int) bool {
	return fd >= 0 && cl.ground.Userfaultfd(tid, fd)
}

// process is what we know of a process of the tree.
type process struct {
	pid   int
	table *table
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

// send notes that f is in a message, or with false that it is not.
func (r *registry) send(f uffdtrace.File, sent bool) {
	if k := r.known[f]; k != nil {
		k.sent = sent
	}
}

// identify finds out which File a descriptor is that has appeared in a process,
// by comparing it with one of each that the processes have. If none of its
// other descriptors is open any more, as when the sender has closed it right
// after it was sent, it is the one of those that was made first. Otherwise it
// comes from outside of the tree, and is new.
func (cl *Collector) identify(tid, fd int) uffdtrace.File {
	others := map[uffdtrace.File]bool{}
	for pid, p := range cl.procs {
		for n, f := range p.table.files {
			if others[f] || pid == tid && n == fd {
				continue
			}
			// An error: it is closed already, or nobody can tell.
			same, err := cl.ground.Same(pid, n, tid, fd)
			if same {
				return f
			}
			others[f] = err == nil
		}
	}
	for _, f := range slices.Sorted(maps.Keys(cl.files.known)) {
		if cl.files.known[f].sent && !others[f] {
			return f
		}
	}
	return cl.files.fresh()
}
