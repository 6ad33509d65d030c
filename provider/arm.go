// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
)

// mostFilters bounds the filters of one kind: what comes after them is covered
// by one that sees all.
const mostFilters = 12

// arm makes the kernel report what is done with descriptor fd.
func (t *task) arm(s *inject.Session, fd int) error {
	if err := t.learnAction(s); err != nil {
		return err
	}
	f := t.p.filters[t.th.Process()]
	if f == nil {
		return fmt.Errorf("pid %d has no first filter", t.th.Process().Pid())
	}
	if f.numbers[fd] {
		return nil
	}
	if err := s.Install(numberFilter(fd, !f.general)); err != nil {
		return err
	}
	f.general = true
	if f.numbers == nil {
		f.numbers = make(map[int]bool)
	}
	f.numbers[fd] = true
	return nil
}

// guard makes the kernel report what is done with the memory of r.
func (t *task) guard(sp *space, r mem.Range) {
	if sp != t.sp {
		t.guardOther(sp, r)
		return
	}
	t.session("install a filter", func(s *inject.Session) error { return t.p.guard(s, t.th.Process(), sp, r) })
}

// guard does it through any thread of the process.
func (p *Provider) guard(s *inject.Session, pr *tracee.Process, sp *space, r mem.Range) error {
	f := p.filters[pr]
	if f == nil || f.covers(r, sp.kernel) {
		return nil
	}
	// A window is wider than what is registered, for what comes beside it.
	const grain = 1 << 24
	w := mem.Range{Start: r.Start &^ (grain - 1), End: (r.End + grain - 1) &^ (grain - 1)}
	if len(f.windows) >= mostFilters {
		w = mem.Range{Start: 0, End: 1 << 47}
	}
	if err := s.Install(windowFilter(w, sp.kernel)); err != nil {
		return err
	}
	f.windows = append(f.windows, w)
	if sp.kernel {
		f.buffers = append(f.buffers, w)
	}
	return nil
}

// covers reports whether the filters see the calls that concern r.
func (f *filters) covers(r mem.Range, buffers bool) bool {
	in := func(have []mem.Range) bool {
		return slices.ContainsFunc(have, func(w mem.Range) bool { return w.Covers(r) })
	}
	return in(f.windows) && (!buffers || in(f.buffers))
}

// patienceForOthers bounds the wait for a thread of another process: all of them
// may wait for the one that waits for them.
const patienceForOthers = 100 * time.Millisecond

// guardOther does it for memory of another process, through a thread of that. The
// caller waits until it is done: what comes next may be a system call there that
// must be seen.
func (t *task) guardOther(sp *space, r mem.Range) {
	p := t.p
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := p.tracer.Stopped(context.Background(), sp.ts, func(th *tracee.Thread) error {
			s, err := inject.Open(th.Tid())
			if err != nil {
				return err
			}
			return errors.Join(p.guard(s, th.Process(), sp, r), s.Close())
		})
		if err != nil && !gone(err) {
			p.fatal("install a filter", err)
		}
	}()
	go func() {
		select {
		case <-done:
		case <-time.After(patienceForOthers):
		}
		p.tracer.Do(func() {
			t.wake()
			p.settle()
		})
	}()
	t.as(waitCall, t.park)
}
