// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"syscall"
	"time"

	"github.com/faultline-go/faultline/internal/sys"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/pager"
	"github.com/faultline-go/faultline/uffd"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// faults is a pager.Descriptor by which memory is registered, too: the kernel's, or
// that of the engine in software.
type faults interface {
	pager.Descriptor
	// Register has the pages of r told that are missing when they are touched.
	Register(r mem.Range) syscall.Errno
}

// descriptor is a kernel descriptor as the pager wants it: one whose Wait can
// be interrupted.
type descriptor struct {
	*uffd.FD
	event *sys.Event
}

func newDescriptor(fd *uffd.FD) (*descriptor, error) {
	ev, err := sys.NewEvent()
	if err != nil {
		return nil, err
	}
	if err := fd.SetNonblock(); err != nil {
		ev.Close()
		return nil, err
	}
	return &descriptor{fd, ev}, nil
}

// Register is that of faults.
func (d *descriptor) Register(r mem.Range) syscall.Errno {
	_, errno := d.FD.Register(r, uapi.UFFDIO_REGISTER_MODE_MISSING)
	return errno
}

// Wait is pager.Descriptor's.
func (d *descriptor) Wait(timeout time.Duration) (ready bool, errno syscall.Errno) {
	ready, errno = d.FD.Wait(d.event.FD(), timeout)
	if !ready {
		d.event.Drain()
	}
	return ready, errno
}

// Interrupt is pager.Descriptor's.
func (d *descriptor) Interrupt() { d.event.Signal() }

// Pending is pager.Descriptor's.
func (d *descriptor) Pending() bool {
	ready, _ := d.FD.Wait(-1, 0)
	return ready
}

// Close closes both descriptors.
func (d *descriptor) Close() error {
	err := d.FD.Close()
	d.event.Close()
	return err
}
