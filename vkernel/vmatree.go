// SPDX-License-Identifier: Apache-2.0

package vkernel

import "github.com/faultline-go/faultline/mem"

const fanout = 64

// node is one node of a vmaTree: a leaf holds VMAs, others nodes. Its keys
// are the starts of what it holds.
type node struct {
	n    int
	keys [fanout]mem.Addr
	kids [fanout]*node // not of a leaf
	vmas [fanout]*vma  // of a leaf
	leaf bool
	// span is from the first start to the last end below, and gap the
	// largest hole between VMAs within.
	span mem.Range
	gap  uint64
}

// vmaTree holds the VMAs of an address space in the order of their addresses,
// as a tree of wide nodes whose leaves are all at one depth. The lock of the
// address space protects it.
type vmaTree struct {
	root  *node
	count int
}

// place returns the index in nd of the last key that is not above a, -1 if
// all are.
func (nd *node) place(a mem.Addr) int {
	lo, hi := 0, nd.n
	for lo < hi {
		mid := (lo + hi) / 2
		if nd.keys[mid] <= a {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo - 1
}

// summarize computes what nd says of all that is below it.
func (nd *node) summarize() {
	nd.gap = 0
	if nd.n == 0 {
		nd.span = mem.Range{}
		return
	}
	for i := range nd.n {
		var in mem.Range
		if nd.leaf {
			in = mem.Range{Start: nd.vmas[i].start, End: nd.vmas[i].end}
		} else {
			in = nd.kids[i].span
			nd.gap = max(nd.gap, nd.kids[i].gap)
		}
		nd.keys[i] = in.Start
		if i == 0 {
			nd.span.Start = in.Start
		} else {
			nd.gap = max(nd.gap, uint64(in.Start-nd.span.End))
		}
		nd.span.End = in.End
	}
}

// find returns the first VMA that ends above a, or nil.
func (t *vmaTree) find(a mem.Addr) *vma {
	nd := t.root
	if nd == nil || a >= nd.span.End {
		return nil
	}
	for !nd.leaf {
		i := max(nd.place(a), 0)
		if nd.kids[i].span.End <= a {
			i++
		}
		nd = nd.kids[i]
	}
	i := max(nd.place(a), 0)
	if nd.vmas[i].end <= a {
		i++
	}
	return nd.vmas[i]
}

// next returns the VMA after v, or nil.
func (t *vmaTree) next(v *vma) *vma { return t.find(v.end) }

// prev returns the last VMA that starts below a, or nil.
func (t *vmaTree) prev(a mem.Addr) *vma {
	nd := t.root
	if nd == nil || a <= nd.span.Start {
		return nil
	}
	for !nd.leaf {
		nd = nd.kids[nd.place(a-1)]
	}
	return nd.vmas[nd.place(a-1)]
}

// insert adds v, which overlaps no other.
func (t *vmaTree) insert(v *vma) {
	t.count++
	if t.root == nil {
		t.root = &node{leaf: true}
	}
	right := t.root.insert(v)
	if right != nil {
		root := &node{n: 2}
		root.kids[0], root.kids[1] = t.root, right
		root.summarize()
		t.root = root
	}
}

// insert adds v below nd and returns the right half if nd had to be split.
func (nd *node) insert(v *vma) *node {
	var right *node
	if nd.leaf {
		i := nd.place(v.start) + 1
		copy(nd.vmas[i+1:], nd.vmas[i:nd.n])
		nd.vmas[i] = v
		nd.n++
	} else {
		i := max(nd.place(v.start), 0)
		if split := nd.kids[i].insert(v); split != nil {
			copy(nd.kids[i+2:], nd.kids[i+1:nd.n])
			nd.kids[i+1] = split
			nd.n++
		}
	}
	if nd.n == fanout {
		right = &node{leaf: nd.leaf, n: fanout / 2}
		half := fanout - right.n
		copy(right.kids[:], nd.kids[half:])
		copy(right.vmas[:], nd.vmas[half:])
		clear(nd.kids[half:])
		clear(nd.vmas[half:])
		nd.n = half
		right.summarize()
	}
	nd.summarize()
	return right
}

// remove takes v out.
func (t *vmaTree) remove(v *vma) {
	t.count--
	t.root.remove(v.start)
	for !t.root.leaf && t.root.n == 1 {
		t.root = t.root.kids[0]
	}
	if t.root.n == 0 {
		t.root = nil
	}
}

func (nd *node) remove(a mem.Addr) {
	i := nd.place(a)
	if nd.leaf {
		copy(nd.vmas[i:], nd.vmas[i+1:nd.n])
		nd.n--
		nd.vmas[nd.n] = nil
		nd.summarize()
		return
	}
	nd.kids[i].remove(a)
	if nd.kids[i].n < fanout/4 {
		nd.join(i)
	}
	nd.summarize()
}

// join makes kid i of nd one with a neighbour, or evens the two out.
func (nd *node) join(i int) {
	if nd.n == 1 {
		return // the root, about to be dropped
	}
	if i == nd.n-1 {
		i--
	}
	l, r := nd.kids[i], nd.kids[i+1]
	var kids [2 * fanout]*node
	var vmas [2 * fanout]*vma
	copy(kids[:], l.kids[:l.n])
	copy(kids[l.n:], r.kids[:r.n])
	copy(vmas[:], l.vmas[:l.n])
	copy(vmas[l.n:], r.vmas[:r.n])
	total := l.n + r.n
	l.n, r.n = total, 0
	if total >= fanout*3/4 {
		l.n, r.n = total/2, total-total/2
	}
	fill := func(x *node, from int) {
		clear(x.kids[:])
		clear(x.vmas[:])
		copy(x.kids[:], kids[from:from+x.n])
		copy(x.vmas[:], vmas[from:from+x.n])
		x.summarize()
	}
	fill(l, 0)
	if r.n > 0 {
		fill(r, l.n)
		return
	}
	copy(nd.kids[i+1:], nd.kids[i+2:nd.n])
	nd.n--
	nd.kids[nd.n] = nil
}

// resize gives v new bounds, which keep its place in the order.
func (t *vmaTree) resize(v *vma, r mem.Range) {
	old := v.start
	v.start, v.end = r.Start, r.End
	t.root.refresh(old)
}

func (nd *node) refresh(a mem.Addr) {
	if !nd.leaf {
		nd.kids[max(nd.place(a), 0)].refresh(a)
	}
	nd.summarize()
}

// highestGap returns the start of the highest n bytes within r that no VMA
// has, at a multiple of align.
func (t *vmaTree) highestGap(r mem.Range, n, align uint64) (mem.Addr, bool) {
	s := gapSearch{r: r, n: n, align: align, right: r.End}
	if t.root != nil {
		s.below(t.root)
	}
	if !s.found {
		s.try(r.Start, s.right)
	}
	return s.at, s.found
}

type gapSearch struct {
	r        mem.Range
	n, align uint64
	right    mem.Addr // start of what was visited last
	at       mem.Addr
	found    bool
}

// try looks into the hole from lo to hi.
func (s *gapSearch) try(lo, hi mem.Addr) bool {
	lo, hi = max(lo, s.r.Start), min(hi, s.r.End)
	if hi <= lo || uint64(hi-lo) < s.n {
		return false
	}
	at := (hi - mem.Addr(s.n)) &^ mem.Addr(s.align-1)
	if at < lo {
		return false
	}
	s.at, s.found = at, true
	return true
}

func (s *gapSearch) below(nd *node) {
	for i := nd.n - 1; i >= 0 && !s.found && s.right > s.r.Start; i-- {
		if nd.leaf {
			v := nd.vmas[i]
			if s.try(v.end, s.right) {
				return
			}
			s.right = v.start - min(v.start, v.guard())
			continue
		}
		kid := nd.kids[i]
		if s.try(kid.span.End, s.right) {
			return
		}
		if kid.gap < s.n || kid.span.Start >= s.r.End {
			s.right = kid.span.Start
			if first := kid.first(); first.guard() > 0 {
				s.right -= min(s.right, first.guard())
			}
			continue
		}
		s.below(kid)
	}
}

// first returns the first VMA below nd.
func (nd *node) first() *vma {
	for !nd.leaf {
		nd = nd.kids[0]
	}
	return nd.vmas[0]
}

// all calls fn for every VMA that r touches, in order, until it returns
// false. fn must not change the tree.
func (t *vmaTree) all(r mem.Range, fn func(v *vma) bool) {
	for v := t.find(r.Start); v != nil && v.start < r.End; v = t.next(v) {
		if !fn(v) {
			return
		}
	}
}
