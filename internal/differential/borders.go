// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/mem"
)

// badRange is start and length of r, with one of six chances borderline or
// bad. None reaches from r to memory of others: what is whole pages and ends
// within the address space is hardly more than r.
func badRange(r mem.Range, arg uint16) (start mem.Addr, n uint64) {
	start, n = r.Start, r.Len()
	switch arg {
	case 54:
		start++
	case 55:
		n++
	case 56:
		n--
	case 57:
		n = 0
	case 58:
		n = ^uint64(0)
	case 59:
		n = ^uint64(mem.PageSize) + 1
	case 60:
		n = ^uint64(start) + 1 // it ends at zero
	case 61:
		n = ^uint64(start) + 1 + mem.PageSize
	case 62:
		start = 1 << 63
	case 63:
		start, n = ^mem.Addr(mem.PageSize)+1, 2*mem.PageSize
	}
	return start, n
}

// near returns the whole pages that a call about a bad range may touch after
// all.
func near(start mem.Addr, n uint64) mem.Range {
	if n > gap {
		return mem.Range{}
	}
	return mem.Range{Start: start.Down(), End: (start + mem.Addr(n)).Up()}
}

// badProtection is now and then one that mprotect(2) refuses, or ignores.
func badProtection(prot int, arg uint16) int {
	switch arg {
	case 60:
		return prot | 1<<20
	case 61:
		return prot | conformance.ProtSem
	}
	return prot
}

// badMremap makes one of the arguments of an mremap bad. One that makes the
// mapping longer than there is memory is not among them: whether there is room
// for it is the machine's business.
func badMremap(arg uint16, start, to *mem.Addr, oldLen, newLen *uint64) {
	switch arg % 24 {
	case 0:
		*oldLen = 0
	case 1:
		*oldLen++
	case 2:
		*oldLen--
	case 3:
		*oldLen = 1 << 60
	case 4:
		*oldLen = 1 << 63
	case 5:
		*oldLen = ^uint64(0)
	case 6:
		*oldLen = ^uint64(mem.PageSize) + 1
	case 7:
		*oldLen = ^uint64(*start) + 1
	case 8:
		*oldLen = ^uint64(*start) + 1 + mem.PageSize
	case 9:
		*newLen = 0
	case 10:
		*newLen++
	case 11:
		*newLen--
	case 12:
		*newLen = 1 << 62
	case 13:
		*newLen = ^uint64(0)
	case 14:
		*newLen = ^uint64(mem.PageSize) + 1
	case 15:
		*to++
	case 16:
		*to = 1 << 63
	case 17:
		*to = ^mem.Addr(mem.PageSize) + 1
	case 18:
		*start++
	case 19:
		*start = 1 << 63
	case 20:
		*to = *start
	case 21:
		*oldLen, *newLen = 1<<60, *newLen+mem.PageSize
	case 22:
		*oldLen, *newLen = 0, 0
	case 23:
		*oldLen = ^uint64(0) - uint64(*start) - 1<<46 // within all addresses, and beyond memory
	}
}
