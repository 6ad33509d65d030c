// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"syscall"
	"time"

	"github.com/faultline-go/faultline/internal/sys"
	"github.com/faultline-go/faultline/uffd"
)

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
