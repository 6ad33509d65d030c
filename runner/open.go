// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/uffd"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// features are what the program's descriptor must tell us. POISON and MOVE
// are asked for to learn at the start that a kernel lacks them.
const features = uapi.UFFD_FEATURE_EVENT_FORK | uapi.UFFD_FEATURE_EVENT_REMAP |
	uapi.UFFD_FEATURE_EVENT_REMOVE | uapi.UFFD_FEATURE_EVENT_UNMAP |
	uapi.UFFD_FEATURE_THREAD_ID | uapi.UFFD_FEATURE_POISON | uapi.UFFD_FEATURE_MOVE

// openIn opens a userfaultfd for the agent's address space and returns our
// duplicate of it, ready for use. The agent keeps none.
func openIn(agent *inject.Agent) (*uffd.FD, error) {
	n, err := create(agent, unix.O_CLOEXEC|unix.O_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("userfaultfd in the program: %w", err)
	}
	raw, err := agent.FD(int(n))
	if err != nil {
		return nil, err
	}
	fd := uffd.Take(raw)
	if _, err := agent.Call(unix.SYS_CLOSE, n); err != nil {
		fd.Close()
		return nil, fmt.Errorf("closing the agent's descriptor: %w", err)
	}
	if err := fd.Handshake(features); err != nil {
		fd.Close()
		return nil, err
	}
	return fd, nil
}

// create makes a descriptor in the agent, by the device where the call is refused.
func create(agent *inject.Agent, flags uintptr) (uintptr, error) {
	n, err := agent.Call(unix.SYS_USERFAULTFD, flags)
	if err == nil {
		return n, nil
	}
	n, devErr := openDeviceIn(agent, flags)
	if devErr != nil {
		return 0, fmt.Errorf("%w; %w", devErr, err)
	}
	return n, nil
}

// openDeviceIn is for programs that have given up the privilege which the
// system call asks for, and where a filter refuses that.
func openDeviceIn(agent *inject.Agent, flags uintptr) (uintptr, error) {
	const device = "/dev/userfaultfd\x00"
	copy(agent.Data(), device)
	dev, err := agent.Call(unix.SYS_OPENAT, ^uintptr(99), uintptr(agent.DataAddr()), unix.O_RDWR|unix.O_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("open /dev/userfaultfd: %w", err)
	}
	n, err := agent.Call(unix.SYS_IOCTL, dev, uapi.USERFAULTFD_IOC_NEW, flags)
	_, closeErr := agent.Call(unix.SYS_CLOSE, dev)
	return n, errors.Join(err, closeErr)
}
