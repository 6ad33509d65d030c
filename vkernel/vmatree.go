// SPDX-License-Identifier: Apache-2.0

package vkernel

import "github.com/faultline-go/faultline/mem"

const fanout = 64

// node is one node of a vmaTree: a leaf holds VMAs, others nodes. What a search
// or a change needs to know of them is here, so that neither looks at more than
// one of them a level: among a million VMAs, each such look misses the cache.
type node struct {
	starts [fanout]mem.Addr // of the VMA, or of the first below
	ends   [fanout]mem.Addr // of the VMA, or of the last below
	n      int
	kids   *kids        // nil in a leaf
	vmas   [fanout]*vma // of a leaf
}

// kids is what a node that is no leaf has.
type kids struct {
	nodes [fanout]*node
	gaps  [fanout]uint64 // the largest hole within each
}

// vmaTree holds the VMAs of an address space in the order of their addresses,
// as a tree of wide nodes whose leaves are all at one depth. The lock of the
// address space protects it.
type vmaTree struct {
	root  *node
	count int
}

// place returns the index in nd of the last start that is not above a, -1 if
// all are. It looks at one start of each cache line, and then at one line: they
// are fetched together, where the steps of a binary search wait for each other.
func (nd *node) place(a mem.Addr) int {
	const line = cacheLine / 8
	from := 0
	for i := line; i < nd.n; i += line {
		if nd.starts[i] <= a {
			from = i
		}
	}
	i := from
	for _, start := range nd.starts[from:min(from+line, nd.n)] {
		if start <= a {
			i++
		}
	}
	return i - 1
}

// reach returns the index of the first that ends above a. Preconditions: one
// does.
func (nd *node) reach(a mem.Addr) int {
	i := max(nd.place(a), 0)
	if nd.ends[i] <= a {
		i++
	}
	return i
}

// gap returns the largest hole between VMAs below nd.
func (nd *node) gap() (most uint64) {
	starts, ends := nd.starts[:nd.n], nd.ends[:nd.n]
	for i := 1; i < len(starts) && i <= len(ends); i++ {
		most = max(most, uint64(starts[i]-ends[i-1]))
	}
	if nd.kids != nil {
		for _, gap := range nd.kids.gaps[:nd.n] {
			most = max(most, gap)
		}
	}
	return most
}

// note says in nd what kid i now is.
func (nd *node) note(i int) {
	kid := nd.kids.nodes[i]
	nd.starts[i], nd.ends[i] = 0, 0
	if kid.n > 0 {
		nd.starts[i], nd.ends[i] = kid.starts[0], kid.ends[kid.n-1]
	}
	nd.kids.gaps[i] = kid.gap()
}

// find returns the first VMA that ends above a, or nil.
func (t *vmaTree) find(a mem.Addr) *vma {
	nd := t.root
	if nd == nil || a >= nd.ends[nd.n-1] {
		return nil
	}
	for nd.kids != nil {
		nd = nd.kids.nodes[nd.reach(a)]
	}
	return nd.vmas[nd.reach(a)]
}

// next returns the VMA after v, or nil.
func (t *vmaTree) next(v *vma) *vma { return t.find(v.end) }

// prev returns the last VMA that starts below a, or nil.
func (t *vmaTree) prev(a mem.Addr) *vma {
	nd := t.root
	if nd == nil || a <= nd.starts[0] {
		return nil
	}
	for nd.kids != nil {
		nd = nd.kids.nodes[nd.place(a-1)]
	}
	return nd.vmas[nd.place(a-1)]
}

// insert adds v, which overlaps no other.
func (t *vmaTree) insert(v *vma) {
	t.count++
	if t.root == nil {
		t.root = &node{}
	}
	if right := t.root.insert(v); right != nil {
		root := &node{n: 2, kids: new(kids)}
		root.kids.nodes[0], root.kids.nodes[1] = t.root, right
		root.note(0)
		root.note(1)
		t.root = root
	}
}

// insert adds v below nd and returns the right half if nd had to be split.
func (nd *node) insert(v *vma) *node {
	if nd.kids == nil {
		i := nd.place(v.start) + 1
		nd.open(i)
		nd.starts[i], nd.ends[i], nd.vmas[i] = v.start, v.end, v
	} else {
		i := max(nd.place(v.start), 0)
		right := nd.kids.nodes[i].insert(v)
		nd.note(i)
		if right != nil {
			nd.open(i + 1)
			nd.kids.nodes[i+1] = right
			nd.note(i + 1)
		}
	}
	if nd.n < fanout {
		return nil
	}
	right := &node{}
	if nd.kids != nil {
		right.kids = new(kids)
	}
	nd.give(right, fanout/2)
	return right
}

// open makes room for one at i.
func (nd *node) open(i int) {
	copy(nd.starts[i+1:], nd.starts[i:nd.n])
	copy(nd.ends[i+1:], nd.ends[i:nd.n])
	if nd.kids == nil {
		copy(nd.vmas[i+1:], nd.vmas[i:nd.n])
	} else {
		copy(nd.kids.nodes[i+1:], nd.kids.nodes[i:nd.n])
		copy(nd.kids.gaps[i+1:], nd.kids.gaps[i:nd.n])
	}
	nd.n++
}

// shut takes out what is at i.
func (nd *node) shut(i int) {
	copy(nd.starts[i:], nd.starts[i+1:nd.n])
	copy(nd.ends[i:], nd.ends[i+1:nd.n])
	if nd.kids == nil {
		copy(nd.vmas[i:], nd.vmas[i+1:nd.n])
	} else {
		copy(nd.kids.nodes[i:], nd.kids.nodes[i+1:nd.n])
		copy(nd.kids.gaps[i:], nd.kids.gaps[i+1:nd.n])
	}
	nd.cut(nd.n - 1)
}

// cut leaves the first n, and keeps nothing of the others alive.
func (nd *node) cut(n int) {
	if nd.kids == nil {
		clear(nd.vmas[n:nd.n])
	} else {
		clear(nd.kids.nodes[n:nd.n])
	}
	nd.n = n
}

// give moves the last n of nd to the front of its right neighbour.
func (nd *node) give(right *node, n int) {
	from := nd.n - n
	prepend(right.starts[:], right.n, nd.starts[from:nd.n])
	prepend(right.ends[:], right.n, nd.ends[from:nd.n])
	if nd.kids == nil {
		prepend(right.vmas[:], right.n, nd.vmas[from:nd.n])
	} else {
		prepend(right.kids.nodes[:], right.n, nd.kids.nodes[from:nd.n])
		prepend(right.kids.gaps[:], right.n, nd.kids.gaps[from:nd.n])
	}
	right.n += n
	nd.cut(from)
}

// prepend puts more in front of the first n of s.
func prepend[T any](s []T, n int, more []T) {
	copy(s[len(more):], s[:n])
	copy(s, more)
}

// take moves the first n of the right neighbour of nd to its end.
func (nd *node) take(right *node, n int) {
	copy(nd.starts[nd.n:], right.starts[:n])
	copy(nd.ends[nd.n:], right.ends[:n])
	if nd.kids == nil {
		copy(nd.vmas[nd.n:], right.vmas[:n])
	} else {
		copy(nd.kids.nodes[nd.n:], right.kids.nodes[:n])
		copy(nd.kids.gaps[nd.n:], right.kids.gaps[:n])
	}
	nd.n += n
	for range n {
		right.shut(0)
	}
}

// remove takes v out.
func (t *vmaTree) remove(v *vma) {
	t.count--
	t.root.remove(v.start)
	for t.root.kids != nil && t.root.n == 1 {
		t.root = t.root.kids.nodes[0]
	}
	if t.root.n == 0 {
		t.root = nil
	}
}

func (nd *node) remove(a mem.Addr) {
	i := nd.place(a)
	if nd.kids == nil {
		nd.shut(i)
		return
	}
	kid := nd.kids.nodes[i]
	kid.remove(a)
	nd.note(i)
	if kid.n < fanout/4 && nd.n > 1 { // or nd is the root, about to be dropped
		nd.join(min(i, nd.n-2))
	}
}

// join makes kids i and i+1 of nd one, or evens the two out.
func (nd *node) join(i int) {
	l, r := nd.kids.nodes[i], nd.kids.nodes[i+1]
	total := l.n + r.n
	switch half := total / 2; {
	case total < fanout*3/4:
		l.take(r, r.n)
		nd.shut(i + 1)
		nd.note(i)
		return
	case l.n > half:
		l.give(r, l.n-half)
	default:
		l.take(r, half-l.n)
	}
	nd.note(i)
	nd.note(i + 1)
}

// resize gives v new bounds, which keep its place in the order.
func (t *vmaTree) resize(v *vma, r mem.Range) {
	t.root.resize(v.start, r)
	v.start, v.end = r.Start, r.End
}

// resize gives the VMA that starts at a new bounds.
func (nd *node) resize(a mem.Addr, r mem.Range) {
	i := nd.place(a)
	if nd.kids == nil {
		nd.starts[i], nd.ends[i] = r.Start, r.End
		return
	}
	nd.kids.nodes[i].resize(a, r)
	nd.note(i)
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
		if s.try(nd.ends[i], s.right) {
			return
		}
		if nd.kids != nil && nd.kids.gaps[i] >= s.n && nd.starts[i] < s.r.End {
			s.below(nd.kids.nodes[i])
			continue
		}
		s.right = nd.starts[i]
		s.right -= min(s.right, nd.first(i).guard())
	}
}

// first returns VMA i of a leaf, and the first below kid i of another node.
func (nd *node) first(i int) *vma {
	for nd.kids != nil {
		nd, i = nd.kids.nodes[i], 0
	}
	return nd.vmas[i]
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
