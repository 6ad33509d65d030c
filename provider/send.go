// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/tracee"
)

// send lets a message go. If it takes a descriptor of ours along, the processes
// that may receive it are made ready first: all of the tree, since nobody knows
// which will.
func (t *task) send(c tracee.Call) {
	if slices.ContainsFunc(t.sent(c), func(fd int) bool { return t.p.identify(t.th.Process(), fd) != nil }) {
		for _, pr := range t.p.tracer.Processes() {
			if f := t.p.filters[pr]; f != nil && !f.general && !pr.Compat() {
				t.p.expect(pr)
			}
		}
	}
	t.resume(0)
}

// sent returns the descriptors in the messages of a call.
func (t *task) sent(c tracee.Call) []int {
	if c.Nr == unix.SYS_SENDMSG {
		return t.rights(addr(c.Args[1]), 1)
	}
	return t.rights(addr(c.Args[1]), int(uint32(c.Args[2])))
}

// expect has a process report what it receives. Its threads are interrupted: one
// that waits in a recvmsg makes that anew, and the filter sees it then. One that
// had a message already at that moment is found by what its process has open.
func (p *Provider) expect(pr *tracee.Process) {
	for _, th := range pr.Threads() {
		th.Interrupt(func() { p.prepareReceiver(th) })
	}
}

// prepareReceiver puts the filters on the process of a thread that is stopped.
func (p *Provider) prepareReceiver(th *tracee.Thread) {
	pr := th.Process()
	f := p.filters[pr]
	t := p.task(th)
	if f == nil || t.job != nil {
		return
	}
	p.session("make a process ready for a descriptor", th, func(s *inject.Session) error { return p.receiver(s, t, f) })
}

func (p *Provider) receiver(s *inject.Session, t *task, f *filters) error {
	if err := t.sp.plant(s); err != nil {
		return err
	}
	const none = -1
	if !f.general {
		if err := t.arm(s, none); err != nil {
			return err
		}
	}
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", t.th.Process().Pid()))
	if err != nil {
		return nil // it is dying
	}
	for _, e := range open {
		fd, err := strconv.Atoi(e.Name())
		if err == nil && p.ask(t.th.Process().Pid(), fd) != nil {
			if err := t.arm(s, fd); err != nil {
				return err
			}
		}
	}
	return nil
}
