// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"os"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager"
)

// TestRecount: Linux 6.18 moves pages that it does not count, and then finds their places
// taken. They were thought to be resident, and were lost. (Seen in one call of three
// thousand for 64 pages, while another thread advises MADV_COLD on them: all of the
// 64 are there, the count is none and the error EEXIST.)
func TestRecount(t *testing.T) {
	window, err := unix.Mmap(-1, 0, windowSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(window); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Madvise(window, unix.MADV_NOHUGEPAGE); err != nil && err != unix.EINVAL {
		t.Fatal(err)
	}
	pm, err := procmem.OpenPagemap(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer pm.Close()
	m := &mover{
		owner: &engagement{pm: pm},
	}
	m.windows[data].Range = mem.MakeRange(mem.Addr(uintptr(unsafe.Pointer(&window[0]))), windowSize)
	there := func(first, n int) {
		for i := first; i < first+n; i++ {
			window[i*mem.PageSize] = 1
		}
	}
	there(10, 8)
	there(30, 3)
	there(34, 2)
	there(windowSlots+100, 4) // in the other half
	for _, c := range []struct {
		name  string
		half  int
		run   pager.Run
		moved int
		errno syscall.Errno
	}{
		{"all", 0, pager.Run{Slot: 10, Pages: 8}, 8, 0},
		{"all but those that were counted", 0, pager.Run{Slot: 10, Pages: 8, Moved: 5}, 8, 0},
		{"up to one that is not there", 0, pager.Run{Slot: 30, Pages: 6}, 3, syscall.EAGAIN},
		{"none, but in the other half", 0, pager.Run{Slot: 100, Pages: 6}, 0, syscall.EAGAIN},
		{"in the other half", 1, pager.Run{Slot: 100, Pages: 6}, 4, syscall.EAGAIN},
	} {
		m.half, c.run.Errno = c.half, syscall.EEXIST
		if m.recount(&c.run); c.run.Moved != c.moved || c.run.Errno != c.errno {
			t.Errorf("%s: %d pages moved, then %v; want %d, %v", c.name, c.run.Moved, c.run.Errno, c.moved, c.errno)
		}
	}
}
