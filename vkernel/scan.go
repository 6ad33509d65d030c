// SPDX-License-Identifier: Apache-2.0

package vkernel

import (
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// PageCategory is a set of what PAGEMAP_SCAN tells of a page.
type PageCategory uint64

// Categories of pages.
const (
	PageWPAllowed PageCategory = 1 << iota // registered for asynchronous protection
	PageWritten                            // not protected
	PageFile
	PagePresent
	PageSwapped
	PageZero
	PageHuge
	PageSoftDirty // none is: not every kernel keeps account
	PageGuard     // nor is there a way to make one
)

// Flags of a scan.
const (
	ScanWPMatching   = 1 // protect what matches, in the same step
	ScanCheckWPAsync = 2 // fail where protection is not asynchronous
)

// PagemapScan is the argument of the PAGEMAP_SCAN ioctl of /proc/PID/pagemap.
type PagemapScan struct {
	Flags    int
	Range    mem.Range
	Regions  int    // at most so many are returned; no limit if zero
	MaxPages uint64 // at most so many pages match; no limit if zero
	// A page matches whose categories, with those of Inverted turned over,
	// have all of Mask, and one of AnyOf unless that is zero.
	Inverted, Mask, AnyOf PageCategory
	Return                PageCategory // what is told of a page
	// Nowhere says that regions are asked for, and no place for them is given.
	Nowhere bool
}

// PageRegion is a run of pages with the same categories.
type PageRegion struct {
	Range      mem.Range
	Categories PageCategory
}

// scan is a scan under way.
type scan struct {
	PagemapScan
	as    *space
	out   []PageRegion
	pages uint64
	end   mem.Addr
	full  bool
}

// PagemapScan scans the pages of a process. It returns the regions that match
// and the address at which the scan has stopped, which is zero only if it has
// not begun.
func (th *Thread) PagemapScan(p *Process, arg PagemapScan) ([]PageRegion, mem.Addr, syscall.Errno) {
	th.enter()
	defer th.leave()
	const all = PageGuard<<1 - 1
	switch {
	case arg.Flags&^(ScanWPMatching|ScanCheckWPAsync) != 0, !arg.Range.Start.Aligned(),
		(arg.Inverted|arg.Mask|arg.AnyOf|arg.Return)&^all != 0:
		return nil, 0, EINVAL
	case arg.Range.Start > arg.Range.End || arg.Range.End > taskSize:
		return nil, 0, EFAULT
	case arg.Nowhere:
		return nil, 0, EINVAL
	}
	arg.Range.End = arg.Range.End.Up()
	as := p.as.Load()
	as.mu.RLock()
	defer as.mu.RUnlock()
	s := scan{PagemapScan: arg, as: as, end: arg.Range.End}
	errno := syscall.Errno(0)
	if !arg.Range.Empty() {
		as.vmas.all(arg.Range, func(v *vma) bool {
			errno = s.vma(v)
			return errno == 0 && !s.full
		})
	}
	if errno != 0 {
		return nil, s.end, errno
	}
	return s.out, s.end, 0
}

func (s *scan) vma(v *vma) syscall.Errno {
	allowed := v.is(vmWP) && v.uffd.has(uapi.UFFD_FEATURE_WP_ASYNC)
	var base PageCategory
	switch {
	case allowed:
		base = PageWPAllowed
	case s.Flags&ScanCheckWPAsync != 0:
		return EPERM
	case s.Flags&ScanWPMatching != 0:
		return 0
	}
	r := s.Range.Intersect(v.rng())
	s.as.learn(v, r)
	size := v.pageMask() + 1
	for a := r.Start; a < r.End && !s.full; a = (a + size) &^ (size - 1) {
		s.page(v, a, min((a+size)&^(size-1), r.End), base)
	}
	return 0
}

// page looks at one page and protects it if it matches.
func (s *scan) page(v *vma, a, end mem.Addr, c PageCategory) {
	protect := s.Flags&ScanWPMatching != 0
	sl := s.as.pt.slot(a, protect)
	if sl == nil {
		if !v.hugetlb() {
			c |= PageWritten
		}
		s.match(a, end, c)
		return
	}
	sl.mu.Lock()
	defer sl.mu.Unlock()
	e := sl.huge
	if v.hugetlb() {
		c |= PageHuge
	} else {
		e = sl.get(index(a))
	}
	// A huge page that is not there does not count as written, as any other
	// does.
	if e&pteWP == 0 && (e != 0 || !v.hugetlb()) {
		c |= PageWritten
	}
	switch bits := s.as.k.pagemap(e, v.hugetlb()); {
	case e.present():
		c |= PagePresent
		if bits&(1<<61) != 0 {
			c |= PageFile
		}
		if e.frame() == 0 && !v.hugetlb() {
			c |= PageZero
		}
	case e.marker():
		c |= PageSwapped
	}
	// A huge page that is not there matches what does not ask for written ones,
	// and stays without a mark.
	if !s.match(a, end, c) || !protect || c&PageWritten == 0 {
		return
	}
	switch {
	case !v.hugetlb():
		sl.set(index(a), e.protect())
	case e&ptePoison == 0:
		sl.huge = e.protect()
	}
}

// match adds the page to the result if it belongs there and there is room.
func (s *scan) match(a, end mem.Addr, c PageCategory) bool {
	seen := c ^ s.Inverted
	if seen&s.Mask != s.Mask || s.AnyOf != 0 && seen&s.AnyOf == 0 {
		return false
	}
	told := c & s.Return
	last := len(s.out) - 1
	joins := last >= 0 && s.out[last].Range.End == a && s.out[last].Categories == told
	pages := uint64(end-a) >> mem.PageShift
	if !joins && s.Regions > 0 && len(s.out) == s.Regions || s.MaxPages > 0 && s.pages+pages > s.MaxPages {
		s.full, s.end = true, a
		return false
	}
	s.pages += pages
	if joins {
		s.out[last].Range.End = end
	} else {
		s.out = append(s.out, PageRegion{mem.Range{Start: a, End: end}, told})
	}
	return true
}
