// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/vkernel"
)

// forked makes the mirror of a child. The child's memory has the permissions
// that its parent's had: they stay where its faults are to be told, and are
// given back where they are not. The thread that has called fork goes on when
// the event was read.
func (sp *space) forked(child *tracee.Process) {
	by := child.By()
	if by == nil || by.Process().Space() != sp.ts {
		return
	}
	t := sp.p.task(by)
	if t.job != nil {
		return // it dies
	}
	t.start(func() {
		t.as(waitCall, func() {
			t.v.ForkWith(func(v *vkernel.Process) { sp.inherit(child, v) })
		})
		t.resume(0)
	})
}

// inherit makes the space of a child that was just made and is stopped.
func (sp *space) inherit(child *tracee.Process, v *vkernel.Process) {
	c := &space{p: sp.p, ts: child.Space(), action: sp.action, prot: sp.prot.clone()}
	c.adopt(v)
	c.guarded = slices.Clone(sp.guarded)
	c.inheritManaged(sp, child)
	threads := child.Threads()
	if len(sp.guarded) == 0 || len(threads) == 0 {
		c.guarded = nil
		return
	}
	if err := c.open(); err != nil {
		if !gone(err) && unix.Kill(child.Pid(), 0) == nil {
			sp.p.fatal("look into a child", err)
		}
		return
	}
	if !sp.p.session("plant an agent in a child", threads[0], c.plant) {
		return
	}
	// Aliases are not inherited.
	all := c.guarded
	c.follow()
	for _, r := range all {
		c.mirrorShared(r)
		c.apply(r)
	}
}
