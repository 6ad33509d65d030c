// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"slices"
	"sync"
	"syscall"

	"github.com/faultline-go/faultline/mem"
)

type objectKind uint8

const (
	kindShmem   objectKind = iota // memfd, tmpfs, shared anonymous memory
	kindHugetlb                   // the same of huge pages
	kindRegular                   // a file that cannot be registered
)

// object is what shared memory maps: pages in the order of their offset.
type object struct {
	k     *Kernel
	id    uint64
	name  string
	kind  objectKind
	shift uint // of its pages

	// mu is taken with the lock of an address space held, before a slot's.
	mu    sync.Mutex
	size  uint64                       // protected by mu
	pages map[uint64]*[slotPages]frame // by page number / 512, frame plus one; protected by mu
	maps  map[*space]map[*vma]struct{} // protected by mu
	held  map[uint64]struct{}          // huge pages that are reserved, by number; protected by mu
	// phantoms are pages that the object has outside, empty, only because a
	// process was given a page of its own there; protected by mu.
	phantoms map[uint64]struct{}
	refs     int // files and VMAs; protected by mu
}

func (k *Kernel) newObject(kind objectKind, name string, size uint64) *object {
	o := &object{k: k, id: k.nextInode.Add(1), name: name, kind: kind, size: size, shift: mem.PageShift,
		pages: make(map[uint64]*[slotPages]frame), maps: make(map[*space]map[*vma]struct{}), refs: 1}
	if kind == kindHugetlb {
		o.shift = hugeShift
		o.held = make(map[uint64]struct{})
	}
	return o
}

// limit is the size that the object cannot exceed.
func (o *object) limit() uint64 {
	if o.kind == kindRegular {
		return maxRegularSize
	}
	return maxFileSize
}

// lookup returns the frame of page n. Preconditions: o.mu is held, as for the
// others that end in Locked.
func (o *object) lookupLocked(n uint64) (frame, bool) {
	if b := o.pages[n/slotPages]; b != nil && b[n%slotPages] != 0 {
		return b[n%slotPages] - 1, true
	}
	return 0, false
}

// storeLocked adds page n, with the reference of the caller.
func (o *object) storeLocked(n uint64, f frame) {
	b := o.pages[n/slotPages]
	if b == nil {
		b = new([slotPages]frame)
		o.pages[n/slotPages] = b
	}
	b[n%slotPages] = f + 1
	delete(o.phantoms, n)
	if o.kind == kindHugetlb {
		o.k.mem.huge.page(f).word.Or(frameCached)
		o.k.mem.huge.page(f).word.And(^uint32(frameExclusive))
		return
	}
	o.k.mem.set(f, frameCached)
	o.k.mem.clear(f, frameExclusive)
}

func (o *object) putFrame(f frame) {
	if o.kind == kindHugetlb {
		o.k.mem.huge.put(f)
	} else {
		o.k.mem.put(f)
	}
}

// dropLocked forgets the pages in [from, to).
func (o *object) dropLocked(from, to uint64) {
	for n := range o.phantoms {
		if n >= from && n < to {
			delete(o.phantoms, n)
		}
	}
	for key, b := range o.pages {
		base, left := key*slotPages, false
		if base+slotPages <= from || base >= to {
			continue
		}
		for i := range b {
			if n := base + uint64(i); b[i] != 0 && n >= from && n < to {
				o.putFrame(b[i] - 1)
				b[i] = 0
			}
			left = left || b[i] != 0
		}
		if !left {
			delete(o.pages, key)
		}
	}
}

// reserve promises huge pages for [from, to), those apart that are there.
func (o *object) reserve(from, to uint64) bool {
	if to-from > uint64(o.k.mem.huge.size()) {
		return false // so many that even to count them would take long
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	var need []uint64
	for n := from; n < to; n++ {
		if _, ok := o.lookupLocked(n); ok {
			continue
		}
		if _, ok := o.held[n]; !ok {
			need = append(need, n)
		}
	}
	if !o.k.mem.huge.reserve(len(need)) {
		return false
	}
	for _, n := range need {
		o.held[n] = struct{}{}
	}
	return true
}

// takeHugeLocked allocates huge page n, from its reservation if it has one.
func (o *object) takeHugeLocked(n uint64) (frame, bool) {
	_, held := o.held[n]
	f, ok := o.k.mem.huge.alloc(held)
	if ok {
		delete(o.held, n)
	}
	return f, ok
}

func (o *object) addMapping(as *space, v *vma) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.refs++
	if o.maps[as] == nil {
		o.maps[as] = make(map[*vma]struct{})
	}
	o.maps[as][v] = struct{}{}
}

func (o *object) dropMapping(as *space, v *vma) {
	o.mu.Lock()
	delete(o.maps[as], v)
	if len(o.maps[as]) == 0 {
		delete(o.maps, as)
	}
	o.mu.Unlock()
	o.put()
}

func (o *object) get() {
	o.mu.Lock()
	o.refs++
	o.mu.Unlock()
}

func (o *object) put() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.refs--; o.refs > 0 {
		return
	}
	o.dropLocked(0, ^uint64(0))
	if o.kind == kindHugetlb {
		o.k.mem.huge.unreserve(len(o.held))
		clear(o.held)
	}
}

// unmapPages drops the entries of [from, to) in bytes from every address
// space; private copies go only if the file has become shorter. The pages
// have left the object before, so that no fault brings them back.
func (o *object) unmapPages(from, to uint64, copies bool) {
	o.mapped(from, to, func(as *space, v *vma, r mem.Range) { as.zapObject(v, r, copies) })
}

// mapped calls fn for every part of a VMA that shows any of [from, to), with the
// lock of the address space held for reading.
func (o *object) mapped(from, to uint64, fn func(as *space, v *vma, r mem.Range)) {
	o.mu.Lock()
	spaces := make([]*space, 0, len(o.maps))
	for as := range o.maps {
		spaces = append(spaces, as)
	}
	o.mu.Unlock()
	slices.SortFunc(spaces, func(a, b *space) int { return int(a.id) - int(b.id) })
	for _, as := range spaces {
		as.mu.RLock()
		o.mu.Lock()
		vmas := make([]*vma, 0, len(o.maps[as]))
		for v := range o.maps[as] {
			vmas = append(vmas, v)
		}
		o.mu.Unlock()
		for _, v := range vmas {
			lo, hi := max(from, v.off), min(to, v.offset(v.end))
			if lo < hi {
				fn(as, v, mem.MakeRange(v.start+mem.Addr(lo-v.off), hi-lo))
			}
		}
		as.mu.RUnlock()
	}
}

// zapObject drops the entries of r that map the object. The marker of a
// write protection of shared memory stays behind, as in the kernel.
func (as *space) zapObject(v *vma, r mem.Range, copies bool) {
	m := &as.k.mem
	if v.hugetlb() {
		as.pt.updateHuge(r, func(_ mem.Addr, e pte) pte {
			if e.present() {
				m.huge.put(e.frame())
			}
			if copies {
				return 0
			}
			return e & pteWP // copies and poison go too
		})
		return
	}
	as.pt.update(r, func(_ mem.Addr, e pte) pte {
		// The page of zeros is nobody's copy.
		if e.present() && (copies || e.frame() == 0 || m.has(e.frame(), frameCached)) {
			m.put(e.frame())
			if !v.is(vmWP) {
				return 0
			}
			return e & pteWP
		}
		if copies {
			e &^= ptePoison
		}
		return e
	})
}

// truncate sets the size.
func (o *object) truncate(size uint64) syscall.Errno {
	mask := uint64(1)<<o.shift - 1
	if o.kind == kindHugetlb && size&mask != 0 {
		return EINVAL
	}
	o.mu.Lock()
	old := o.size
	o.size = size
	first := (size + mask) >> o.shift
	o.dropLocked(first, ^uint64(0))
	if f, ok := o.lookupLocked(size >> o.shift); ok && size&mask != 0 && o.kind != kindHugetlb && !o.k.mem.bare {
		p, mu := o.k.mem.page(f)
		mu.Lock()
		clear(p[size&mask:])
		mu.Unlock()
	}
	o.mu.Unlock()
	if size < old || o.kind == kindHugetlb {
		// Behind a file of huge pages there is nothing either when it has become
		// longer, be it poison that somebody put there.
		o.unmapPages(first<<o.shift, ^uint64(0)>>1, true)
	}
	return 0
}

// punch drops the whole pages of [off, off+n) and zeroes the rest.
func (o *object) punch(off, n uint64) {
	mask := uint64(1)<<o.shift - 1
	from, to := (off+mask)>>o.shift, (off+n)>>o.shift
	o.mu.Lock()
	if from < to {
		o.dropLocked(from, to)
	}
	o.zeroLocked(off, min(off+n, from<<o.shift))
	if to >= from {
		o.zeroLocked(max(off, to<<o.shift), off+n)
	}
	o.mu.Unlock()
	switch {
	case from < to:
		o.unmapPages(from<<o.shift, to<<o.shift, false)
	case o.kind == kindShmem && to == 0:
		// For a hole that ends within the first page, Linux 6.18 unmaps all
		// pages behind it. Their content stays.
		o.unmapPages(from<<o.shift, maxFileSize, false)
	}
}

// zeroLocked clears [from, to), which lies in one page.
func (o *object) zeroLocked(from, to uint64) {
	if from >= to || o.k.mem.bare {
		return
	}
	f, ok := o.lookupLocked(from >> o.shift)
	if !ok {
		return
	}
	var p []byte
	var mu *sync.Mutex
	if o.kind == kindHugetlb {
		h := o.k.mem.huge.page(f)
		p, mu = h.data, &h.mu
	} else {
		small, lock := o.k.mem.page(f)
		p, mu = small[:], lock
	}
	mask := uint64(1)<<o.shift - 1
	mu.Lock()
	clear(p[from&mask : (to-1)&mask+1])
	mu.Unlock()
}
