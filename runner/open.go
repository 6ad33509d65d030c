// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/sys"
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
	n, devErr := createByDevice(agent, flags)
	if devErr != nil {
		return 0, fmt.Errorf("%w; %w", devErr, err)
	}
	return n, nil
}

// createByDevice is for programs that have given up the privilege which the
// system call asks for, and where a filter refuses that. We open the device, which
// such a program may not do, or would not find below another root: whose memory a
// descriptor is for is decided by who makes the request.
func createByDevice(agent *inject.Agent, flags uintptr) (uintptr, error) {
	own, err := unix.Open(uffd.Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", uffd.Device, err)
	}
	defer unix.Close(own)
	dev, err := give(agent, own)
	if err != nil {
		return 0, fmt.Errorf("pass %s to the program: %w", uffd.Device, err)
	}
	n, err := agent.Call(unix.SYS_IOCTL, dev, uapi.USERFAULTFD_IOC_NEW, flags)
	_, closeErr := agent.Call(unix.SYS_CLOSE, dev)
	return n, errors.Join(err, closeErr)
}

// Where give has its structures in the memory that it shares with the agent: two
// descriptors, a struct msghdr, a struct iovec, a control message with one
// descriptor, and a byte, since a message of none is refused.
const (
	givePair    = 0
	giveHeader  = 8
	giveVector  = 64
	giveControl = 80
	giveByte    = 104
)

// give passes a descriptor of ours to the agent, and returns its number there.
func give(agent *inject.Agent, fd int) (n uintptr, err error) {
	data, at := agent.Data(), uint64(agent.DataAddr())
	if _, err := agent.Call(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0, uintptr(at+givePair)); err != nil {
		return 0, fmt.Errorf("socketpair: %w", err)
	}
	theirs := binary.LittleEndian.Uint32(data[givePair:])
	other := binary.LittleEndian.Uint32(data[givePair+4:])
	defer func() {
		for _, end := range []uint32{theirs, other} {
			_, closeErr := agent.Call(unix.SYS_CLOSE, uintptr(end))
			err = errors.Join(err, closeErr)
		}
	}()
	ours, err := agent.FD(int(other))
	if err != nil {
		return 0, err
	}
	defer unix.Close(ours)
	if _, err := sys.SendFDs(ours, []byte{0}, fd); err != nil {
		return 0, fmt.Errorf("sendmsg: %w", err)
	}
	header := data[giveHeader:giveVector]
	clear(header)
	binary.LittleEndian.PutUint64(header[16:], at+giveVector)
	binary.LittleEndian.PutUint64(header[24:], 1)
	binary.LittleEndian.PutUint64(header[32:], at+giveControl)
	binary.LittleEndian.PutUint64(header[40:], uint64(unix.CmsgSpace(4)))
	binary.LittleEndian.PutUint64(data[giveVector:], at+giveByte)
	binary.LittleEndian.PutUint64(data[giveVector+8:], 1)
	if _, err := agent.Call(unix.SYS_RECVMSG, uintptr(theirs), uintptr(at+giveHeader), unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT); err != nil {
		return 0, fmt.Errorf("recvmsg: %w", err)
	}
	if binary.LittleEndian.Uint64(header[40:]) < uint64(unix.CmsgLen(4)) {
		return 0, errors.New("recvmsg: the descriptor was lost: is the program's limit of open files zero?")
	}
	return uintptr(binary.LittleEndian.Uint32(data[giveControl+unix.SizeofCmsghdr:])), nil
}
