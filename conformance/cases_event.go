// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"slices"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

const (
	remapEvent  = uapi.UFFD_FEATURE_EVENT_REMAP
	removeEvent = uapi.UFFD_FEATURE_EVENT_REMOVE
	unmapEvent  = uapi.UFFD_FEATURE_EVENT_UNMAP
	forkEvent   = uapi.UFFD_FEATURE_EVENT_FORK
)

// moved returns r as found at another address.
func (r *Region) moved(to mem.Range) *Region {
	m := *r
	m.Range = to
	return &m
}

var eventCases = []Case{
	{Name: "event/fills-wait", Rows: []string{"B.13.1", "B.13.2"}, Memory: small, Features: removeEvent, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(removeEvent)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		blocked := p.NewThread().Load(r.At(1)).Blocked()
		drop := p.NewThread().Begin(Madvise, r.At(0), r.Page(), MadvDontneed).InEvent()
		u.Fill(r.Pages(1, 1), 'a').Err(EAGAIN)
		u.Unregister(r.Pages(0, 1)).Err(OK)
		u.Watch(r.Pages(0, 1), missing)
		u.WantFault(r.At(1), readFault)
		u.Fill(r.Pages(1, 1), 'a').Err(EAGAIN) // faults do not count
		u.WantRange(uapi.UFFD_EVENT_REMOVE, r.Pages(0, 1))
		drop.Value(0)
		u.Fill(r.Pages(1, 1), 'a').Is(OK, int64(r.Page()))
		blocked.Value('a')
	}},
	{Name: "event/close-releases", Rows: []string{"B.13.1"}, Memory: small, Features: removeEvent, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(removeEvent)
		r := p.Map(1)
		p.Puts(r.Start, 'a')
		u.Watch(r.Range, missing)
		drop := p.NewThread().Begin(Madvise, r.Start, r.Page(), MadvDontneed).InEvent()
		u.Close()
		drop.Value(0)
	}},
	{Name: "event/remap", Rows: []string{"B.13.4", "C.28", "B.2.2", "D.events"}, Memory: all, Features: remapEvent, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(remapEvent)
		r := p.Map(3)
		p.Puts(r.At(0), 'a')
		u.Watch(r.Range, missing)
		to := r.moved(p.place(r.Len()))
		move := p.NewThread().Begin(Mremap, r.Start, r.Len(), r.Len(), MremapMayMove|MremapFixed, to.Start).InEvent()
		to.WantLayout("0+3 rw-p um") // it has happened
		r.WantLayout("")
		u.WantRemap(r.Start, to.Start, r.Len())
		move.Value(to.Start)
		p.Sees(to.At(0), 'a')
		p.NewThread().Load(to.At(1)).Blocked()
		u.WantFault(to.At(1), readFault)
	}},
	{Name: "event/remap-silent", Rows: []string{"B.13.4", "C.28"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		to := r.moved(p.place(r.Len()))
		p.Begin(Mremap, r.Start, r.Len(), r.Len(), MremapMayMove|MremapFixed, to.Start).Value(to.Start)
		to.WantLayout("0+2 rw-p")
		p.Sees(to.At(0), 0)
		u.Quiet()
	}},
	{Name: "event/remap-part", Rows: []string{"B.13.4", "C.28"}, Memory: all, Features: remapEvent, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(remapEvent)
		r := p.Map(3)
		u.Watch(r.Range, missing)
		to := r.moved(p.place(r.Page()))
		move := p.NewThread().Begin(Mremap, r.At(1), r.Page(), r.Page(), MremapMayMove|MremapFixed, to.Start).InEvent()
		u.WantRemap(r.At(1), to.Start, r.Page())
		move.Value(to.Start)
		r.WantLayout("0+1 rw-p um, 2+1 rw-p um")
		to.WantLayout("0+1 rw-p um")
	}},
	{Name: "event/remap-grows-in-place", Rows: []string{"B.13.4", "C.28"}, Memory: small, Features: remapEvent, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(remapEvent | unmapEvent)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		p.Begin(Mremap, r.Start, r.Page(), 3*r.Page(), 0).Value(r.Start)
		grown := r.moved(mem.MakeRange(r.Start, 3*r.Page()))
		grown.WantLayout("0+3 rw-p um")
		u.Quiet()
	}},
	{Name: "event/remap-grows-elsewhere", Rows: []string{"B.13.4", "C.28"}, Memory: small, Features: remapEvent, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(remapEvent)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		to := r.moved(mem.MakeRange(p.place(3*r.Page()).Start, 3*r.Page()))
		move := p.NewThread().Begin(Mremap, r.Start, r.Page(), 3*r.Page(), MremapMayMove|MremapFixed, to.Start).InEvent()
		u.WantRemap(r.Start, to.Start, r.Page()) // the old length
		move.Value(to.Start)
		to.WantLayout("0+3 rw-p um")
	}},
	{Name: "event/remap-shrinks", Rows: []string{"B.13.5", "C.28"}, Memory: small, Features: remapEvent | unmapEvent, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(remapEvent | unmapEvent)
		r := p.Map(3)
		u.Watch(r.Range, missing)
		shrink := p.NewThread().Begin(Mremap, r.Start, r.Len(), r.Page(), 0).InEvent()
		u.WantRange(uapi.UFFD_EVENT_UNMAP, r.Pages(1, 2))
		shrink.Value(r.Start)
		r.WantLayout("0+1 rw-p um")
	}},
	{Name: "event/remap-leaves-the-old", Rows: []string{"B.13.4", "C.28"}, Memory: small, Features: remapEvent, run: func(c *C) {
		p := c.Process()
		const flags = MremapMayMove | MremapFixed | MremapDontUnmap
		u := p.UFFD(remapEvent)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		to := r.moved(p.place(r.Len()))
		move := p.NewThread().Begin(Mremap, r.Start, r.Len(), r.Len(), flags, to.Start).InEvent()
		u.WantRemap(r.Start, to.Start, r.Len())
		move.Value(to.Start)
		r.WantLayout("0+1 rw-p um")
		to.WantLayout("0+1 rw-p um")
		// Without the feature only the old one stays registered.
		silent := p.UFFD(0)
		s := p.Map(1)
		silent.Watch(s.Range, missing)
		to = s.moved(p.place(s.Len()))
		p.Begin(Mremap, s.Start, s.Len(), s.Len(), flags, to.Start).Value(to.Start)
		s.WantLayout("0+1 rw-p um")
		to.WantLayout("0+1 rw-p")
	}},
	{Name: "event/remap-as-unmap", Rows: []string{"B.13.5", "C.28"}, Memory: small, Features: unmapEvent, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(unmapEvent)
		r := p.Map(1)
		u.Watch(r.Range, missing)
		to := p.place(r.Len())
		move := p.NewThread().Begin(Mremap, r.Start, r.Len(), r.Len(), MremapMayMove|MremapFixed, to.Start).InEvent()
		u.WantRange(uapi.UFFD_EVENT_UNMAP, r.Range)
		move.Value(to.Start)
		r.moved(to).WantLayout("0+1 rw-p")
	}},
	{Name: "event/unmap", Rows: []string{"B.13.5", "C.28", "B.2.6"}, Memory: all, Features: unmapEvent, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(unmapEvent)
		r := p.Map(4)
		u.Watch(r.Pages(1, 1), missing)
		u.Watch(r.Pages(3, 1), missing)
		// The whole range that was asked for, once, though a part of it and
		// two mappings are registered.
		unmap := p.NewThread().Begin(Munmap, r.Start, r.Len()).InEvent()
		r.WantLayout("")
		u.WantRange(uapi.UFFD_EVENT_UNMAP, r.Range)
		unmap.Value(0)
		u.Quiet()
	}},
	{Name: "event/unmap-by-mapping-over", Rows: []string{"B.13.5", "C.28"}, Memory: small, Features: unmapEvent, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(unmapEvent)
		r := p.Map(3)
		u.Watch(r.Range, missing)
		over := p.NewThread().Begin(Mmap, r.At(1), r.Page(), ProtRead, MapPrivate|MapAnonymous|MapFixed, none, 0).InEvent()
		u.WantRange(uapi.UFFD_EVENT_UNMAP, r.Pages(1, 1))
		over.Value(r.At(1))
	}},
	{Name: "event/unmap-silent", Rows: []string{"B.13.5", "C.28"}, Memory: all, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(2)
		u.Watch(r.Range, missing)
		p.Do(Munmap, r.At(0), r.Page())
		r.WantLayout("1+1 rw-p um")
		u.Quiet()
	}},
	{Name: "event/unmap-of-others", Rows: []string{"B.13.5"}, Memory: all, Features: unmapEvent, run: func(c *C) {
		p := c.Process()
		u, other := p.UFFD(unmapEvent), p.UFFD(unmapEvent)
		r := p.Map(2)
		u.Watch(r.Pages(0, 1), missing)
		other.Watch(r.Pages(1, 1), missing)
		// Both owners are told of the whole range.
		unmap := p.NewThread().Begin(Munmap, r.Start, r.Len()).InEvent()
		eachOnce(c, u, other, func(d *UFFD) { d.WantRange(uapi.UFFD_EVENT_UNMAP, r.Range) })
		unmap.Value(0)
		u.Quiet()
		other.Quiet()
	}},
	{Name: "event/remove", Rows: []string{"B.13.6", "C.28", "B.2.3", "D.events"}, Memory: small, Features: removeEvent, run: func(c *C) {
		p := c.Process()
		for _, advice := range []int{MadvDontneed, MadvRemove, MadvFree, MadvDontneedLocked} {
			if advice == MadvRemove && c.Memory != Shmem || advice == MadvFree && c.Memory != Anon {
				continue
			}
			u := p.UFFD(removeEvent)
			r := p.Map(3)
			p.Puts(r.At(1), 'a')
			u.Watch(r.Range, missing)
			drop := p.NewThread().Begin(Madvise, r.At(1), r.Page(), advice).InEvent()
			p.Sees(r.At(1), 'a') // it is told of before it happens
			u.WantRange(uapi.UFFD_EVENT_REMOVE, r.Pages(1, 1))
			drop.Value(0)
			r.WantLayout("0+3 rw-p um")
			if advice == MadvDontneed && c.Memory == Anon || advice == MadvRemove {
				p.NewThread().Load(r.At(1)).Blocked()
				u.WantFault(r.At(1), readFault)
			}
		}
	}},
	{Name: "event/remove-by-mapping", Rows: []string{"B.13.6"}, Memory: small, Features: removeEvent, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(removeEvent)
		r := p.Map(4)
		u.Watch(r.Pages(0, 1), missing)
		u.Watch(r.Pages(2, 2), missing)
		drop := p.NewThread().Begin(Madvise, r.Start, r.Len()-r.Page(), MadvDontneed).InEvent()
		// One after the other, each clipped to its mapping.
		u.WantRange(uapi.UFFD_EVENT_REMOVE, r.Pages(0, 1))
		drop.InEvent()
		c.Eventually("the second", func() bool { return u.Poll() == PollIn })
		u.WantRange(uapi.UFFD_EVENT_REMOVE, r.Pages(2, 1))
		drop.Value(0)
		u.Quiet()
	}},
	{Name: "event/remove-silent", Rows: []string{"B.13.6", "C.28"}, Memory: []Memory{Anon, Shmem}, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(0)
		r := p.Map(1)
		p.Puts(r.Start, 'a')
		u.Watch(r.Range, missing)
		advice := MadvDontneed
		if c.Memory == Shmem {
			advice = MadvRemove
		}
		p.Do(Madvise, r.Start, r.Page(), advice)
		u.Quiet()
		p.NewThread().Load(r.Start).Blocked()
		u.WantFault(r.Start, readFault)
	}},
	{Name: "event/punch-hole-is-silent", Rows: []string{"B.13.6", "C.28"}, Memory: shared, Features: removeEvent, run: func(c *C) {
		p := c.Process()
		u := p.UFFD(removeEvent)
		r := p.Map(1)
		p.Puts(r.Start, 'a')
		u.Watch(r.Range, missing)
		p.Do(Fallocate, r.fd, FallocPunchHole|FallocKeepSize, 0, r.Page())
		u.Quiet()
		p.NewThread().Load(r.Start).Blocked()
		u.WantFault(r.Start, readFault)
	}},
}

// eachOnce reads from each of two descriptors once, in the order in which
// they have something.
func eachOnce(c *C, a, b *UFFD, read func(*UFFD)) {
	left := []*UFFD{a, b}
	for len(left) > 0 {
		c.Eventually("an event", func() bool {
			i := slices.IndexFunc(left, func(d *UFFD) bool { return d.Poll() == PollIn })
			if i >= 0 {
				read(left[i])
				left = slices.Delete(left, i, i+1)
			}
			return i >= 0
		})
	}
}
