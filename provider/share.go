// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"time"

	"github.com/faultline-go/faultline/internal/sys"
	"github.com/faultline-go/faultline/tracee"
)

// share makes the other processes that have the same table of descriptors as
// t's report what they do with one that t has just got, if it has. The caller waits until
// they do: a thread of theirs may learn the number as soon as t goes on.
func (t *task) share() {
	p, pr := t.p, t.th.Process()
	if !t.got {
		return
	}
	t.got = false
	if f := p.filters[pr]; t.gone || f == nil || !f.shared {
		return
	}
	left, over := 0, false
	for _, other := range p.tracer.Processes() {
		th := p.sharer(pr, other)
		if th == nil {
			continue
		}
		left++
		th.Interrupt(func() {
			p.prepareReceiver(th)
			if left--; left == 0 && !over {
				over = true
				t.wake()
				p.settle()
			}
		})
	}
	if left == 0 {
		return
	}
	// One that cannot be stopped does nothing with the number either, until it
	// can.
	timer := time.AfterFunc(patienceForOthers, func() {
		p.tracer.Do(func() {
			if !over {
				over = true
				t.wake()
				p.settle()
			}
		})
	})
	t.as(waitCall, t.park)
	over = true
	timer.Stop()
}

// sharer returns a thread of other, nil if that has not the same table as pr or
// cannot use the call. It is one that nothing is being done for, if there is one.
func (p *Provider) sharer(pr, other *tracee.Process) *tracee.Thread {
	if f := p.filters[other]; other == pr || f == nil || !f.shared || other.Compat() {
		return nil
	}
	// Where the kernel cannot tell, they may.
	if same, err := sys.SameFiles(pr.Pid(), other.Pid()); !same && err == nil {
		return nil
	}
	var some *tracee.Thread
	for _, th := range other.Threads() {
		some = th
		if t := p.tasks[th]; t == nil || t.job == nil {
			break
		}
	}
	return some
}
