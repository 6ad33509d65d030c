// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"slices"

	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/mem"
)

func populate(m *machine, o Op) {
	if a := m.free(o.Arg[0]); a != nil {
		_, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
		advice := even([]int{conformance.MadvPopulateRead, conformance.MadvPopulateWrite}, o.Arg[4])
		m.begin(a, conformance.Madvise, r.Start, r.Len(), advice)
		a.brings(r, advice == conformance.MadvPopulateRead, advice == conformance.MadvPopulateWrite)
	}
}

func madvise(m *machine, o Op) {
	if a := m.free(o.Arg[0]); a != nil {
		_, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
		start, n := badRange(r, o.Arg[5])
		a.drops = near(start, n)
		advice := even([]int{
			conformance.MadvDontneed, conformance.MadvRemove, conformance.MadvDontneed, conformance.MadvDontneedLocked,
		}, o.Arg[4])
		switch {
		case o.Arg[6] == 63:
			advice = 99
		case o.Arg[7] >= 48: // nothing is short of memory, and so the content stays
			advice = conformance.MadvFree
		}
		m.begin(a, conformance.Madvise, start, n, advice)
	}
}

// advise gives advice that only the flags of memory remember, or nobody.
func advise(m *machine, o Op) {
	_, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
	start, n := badRange(r, o.Arg[5])
	advice := even([]int{
		conformance.MadvRandom, conformance.MadvSequential, conformance.MadvNormal, conformance.MadvDontfork,
		conformance.MadvDofork, conformance.MadvHugepage, conformance.MadvNohugepage, conformance.MadvWipeonfork,
		conformance.MadvKeeponfork, conformance.MadvWillneed,
	}, o.Arg[4])
	m.say("  %v", m.call(conformance.Madvise, start, n, advice))
}

// stale is true where a processor may still see a page that is gone. Linux
// 6.18 flushes what processors remember of dropped pages at the end of
// madvise, and sleeps for REMOVE events of later mappings before that: an
// access meanwhile finds the old page on one processor and faults on another.
func (m *machine) stale(at mem.Addr) bool {
	return slices.ContainsFunc(m.actors, func(a *actor) bool {
		return a.last == conformance.InEvent && a.drops.Contains(at)
	})
}

func mlock(m *machine, o Op) {
	// Only unlocking and locking what need not be brought in: the control
	// thread must not block.
	_, r := m.pages(o.Arg[1], o.Arg[2], o.Arg[3])
	if o.Arg[4]%2 == 0 {
		if a := m.free(o.Arg[0]); a != nil {
			m.begin(a, conformance.Mlock2, r.Start, r.Len(), pick([]int{0, conformance.MlockOnFault}, o.Arg[5]))
			a.brings(r, true, true)
		}
		return
	}
	m.say("  %v", m.call(conformance.Munlock, r.Start, r.Len()))
}

// lockall locks what will be mapped, or nothing. All of the process would be
// more than a script has to do with.
func lockall(m *machine, o Op) {
	const future, onFault = conformance.MclFuture, conformance.MclOnFault
	if flags := pick([]int{future, future | onFault, -1, onFault, 0}, o.Arg[0]); flags >= 0 {
		m.say("  %v", m.call(conformance.Mlockall, flags))
		return
	}
	m.say("  %v", m.call(conformance.Munlockall))
}
