// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package watch

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/sys"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
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

// Userfaultfd is collect.Ground's.
func (w *watcher) Userfaultfd(tid, fd int) bool { return link(tid, fd) == linkUserfaultfd }

// Device is collect.Ground's.
func (w *watcher) Device(tid, fd int) bool { return strings.HasSuffix(link(tid, fd), linkDevice) }

// Same is collect.Ground's.
func (w *watcher) Same(tid, fd, tid2, fd2 int) (bool, error) {
	return sys.SameFile(tid, fd, tid2, fd2)
}

// Read is collect.Ground's. It reads /proc/PID/mem, where a page that is missing
// and registered with a userfaultfd is an error. process_vm_readv(2) would wait
// for it, and the one who is to bring it would wait for us.
func (w *watcher) Read(th *tracee.Thread, addr uint64, b []byte) (done int) {
	s := th.Process().Space()
	raw, ok := w.memory[s]
	if !ok {
		var err error
		if raw, err = unix.Open(fmt.Sprintf("/proc/%d/mem", th.Tid()), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return 0 // it is gone, or not ours to look into
		}
		w.memory[s] = raw
	}
	for done < len(b) {
		// Up to the end of the page, since the file gives nothing of a read
		// whose end is missing.
		at := addr + uint64(done)
		part := min(len(b)-done, int(mem.PageSize-at%mem.PageSize))
		got, err := unix.Pread(raw, b[done:done+part], int64(at))
		if err == unix.EINTR {
			continue
		}
		if err != nil || got <= 0 {
			break
		}
		done += got
	}
	return done
}

// forget is called when an address space is gone.
func (w *watcher) forget(s *tracee.Space) {
	if raw, ok := w.memory[s]; ok {
		delete(w.memory, s)
		_ = unix.Close(raw) // nothing was written
	}
}

// Passing is collect.Ground's.
func (w *watcher) Passing(sender *tracee.Thread) {
	w.passing = true
	w.coverAll(sender)
}
