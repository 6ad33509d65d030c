// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/uffd/uapi"
)

// featureWhy says what faultline does with each feature of [uapi.FeatureTable].
var featureWhy = map[uapi.Features]string{
	uapi.UFFD_FEATURE_PAGEFAULT_FLAG_WP:  "write protection: eviction without MOVE, tracking of what was written",
	uapi.UFFD_FEATURE_EVENT_FORK:         "run follows a program that forks; without it the child would read zeros",
	uapi.UFFD_FEATURE_EVENT_REMAP:        "run follows memory that mremap moves",
	uapi.UFFD_FEATURE_EVENT_REMOVE:       "run learns that madvise dropped pages, and forgets them too",
	uapi.UFFD_FEATURE_MISSING_HUGETLBFS:  "serving huge pages",
	uapi.UFFD_FEATURE_MISSING_SHMEM:      "serving shared memory",
	uapi.UFFD_FEATURE_EVENT_UNMAP:        "run learns that memory was unmapped, and frees its pages in the store",
	uapi.UFFD_FEATURE_SIGBUS:             "handling faults inside the program",
	uapi.UFFD_FEATURE_THREAD_ID:          "run serves a fault on the processor where it happened, ten times faster",
	uapi.UFFD_FEATURE_MINOR_HUGETLBFS:    "installing huge pages without a copy",
	uapi.UFFD_FEATURE_MINOR_SHMEM:        "installing shared pages without a copy",
	uapi.UFFD_FEATURE_EXACT_ADDRESS:      "traces show the access and not just its page",
	uapi.UFFD_FEATURE_WP_HUGETLBFS_SHMEM: "tracking what was written to shared memory",
	uapi.UFFD_FEATURE_WP_UNPOPULATED:     "tracking what was written to memory that is not there yet",
	uapi.UFFD_FEATURE_POISON:             "a page that cannot be read back ends in SIGBUS, not in wrong bytes",
	uapi.UFFD_FEATURE_WP_ASYNC:           "tracking what was written without a message for each page",
	uapi.UFFD_FEATURE_MOVE:               "run takes cold pages out without stopping the program",
}

// ioctls are those that may be offered for a registered range.
var ioctls = []struct {
	name   string
	bit    uapi.Ioctls
	shared bool // offered for shared memory only
	since  string
	why    string
}{
	{"ioctl-wake", uapi.UFFDIO_BIT_WAKE, false, "4.3", "letting a waiting thread try again"},
	{"ioctl-copy", uapi.UFFDIO_BIT_COPY, false, "4.3", "bringing a page in"},
	{"ioctl-zeropage", uapi.UFFDIO_BIT_ZEROPAGE, false, "4.3", "bringing in a page that was never written"},
	{"ioctl-writeprotect", uapi.UFFDIO_BIT_WRITEPROTECT, false, "5.7", "tracking what is written"},
	{"ioctl-continue", uapi.UFFDIO_BIT_CONTINUE, true, "5.14", "installing shared pages without a copy"},
	{"ioctl-poison", uapi.UFFDIO_BIT_POISON, false, "6.6", "ending an access to a lost page in SIGBUS"},
	{"ioctl-move", uapi.UFFDIO_BIT_MOVE, false, "6.8", "taking a page out; tried on a page of our own"},
}

// featureName is how a feature is written on the command line.
func featureName(f uapi.Feature) string {
	return strings.ReplaceAll(strings.ToLower(f.Name), "_", "-")
}

func featureChecks() []check {
	var out []check
	for _, f := range uapi.FeatureTable() {
		out = append(out, check{featureName(f), featureWhy[f.Bit], func(p *probe) finding {
			return findFeature(p, f)
		}})
	}
	for _, i := range ioctls {
		out = append(out, check{i.name, i.why, func(p *probe) finding {
			a := p.uffd()
			set := a.anon
			if i.shared {
				set = a.shared
			}
			switch {
			case a.err != nil:
				return blocked("userfaultfd")
			case !set.Has(i.bit):
				return p.needsKernel(i.since)
			case i.bit == uapi.UFFDIO_BIT_MOVE && a.move != nil:
				return no("report this line to the authors of faultline", "offered, but a page could not be moved: %v", a.move)
			}
			return ok("offered, Linux %s", i.since)
		}})
	}
	return out
}

func findFeature(p *probe, f uapi.Feature) finding {
	a := p.uffd()
	switch {
	case a.err != nil:
		return blocked("userfaultfd")
	case !a.features.Has(f.Bit):
		return p.needsKernel(f.Since)
	case f.Bit == uapi.UFFD_FEATURE_EVENT_FORK && errors.Is(a.fork, unix.EPERM):
		return no(asRoot("CAP_SYS_PTRACE"), "the kernel has it, but asking for it takes CAP_SYS_PTRACE (EPERM)")
	case f.Bit == uapi.UFFD_FEATURE_EVENT_FORK && a.fork != nil:
		return no("report this line to the authors of faultline", "the kernel has it, but refuses to turn it on: %v", a.fork)
	}
	return ok("Linux %s", f.Since)
}

// needsKernel is the finding for what an older kernel lacks. A kernel that is
// new enough by its number lacks it by configuration or architecture.
func (p *probe) needsKernel(since string) finding {
	if p.olderThan(since) {
		return no("boot Linux "+since+" or newer", "needs Linux %s, this is %s", since, p.release)
	}
	return no("use a kernel built with it, and an architecture that has it",
		"Linux has it since %s, but this kernel (%s) was built without it or runs on an architecture that lacks it", since, p.release)
}
