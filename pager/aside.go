// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"time"

	"github.com/faultline-go/faultline/pager/internal/evict"
)

// aside holds resident pages that could not leave more than once in a row, because
// they are pinned, locked or not writable. They stay out of the queue for a time: were
// they in it, then whoever needs room in a space that has many of them would have all
// of them tried for each page that can leave. They are marked picked. Protected by
// Pager.mu.
type aside struct {
	lists [asideLists][]asidePage // by how long they stay; each in the order of due
	n     int                     // some of which may not be there any more
}

type asidePage struct {
	key   evict.Key
	stamp evict.Stamp // of the page, or it is another by now
	due   time.Time
}

const (
	asideFirst = 10 * time.Millisecond // and twice as long with every failure
	asideLists = 9                     // up to 2.56 s
)

// put sets a page aside that has failed stuck times in a row, two or more.
func (a *aside) put(k evict.Key, stamp evict.Stamp, stuck uint8) {
	i := min(int(stuck)-2, asideLists-1)
	a.lists[i] = append(a.lists[i], asidePage{k, stamp, time.Now().Add(asideFirst << i)})
	a.n++
}

// next returns the page of a list that may be tried again, if there is one by now.
func (a *aside) next(now time.Time) (asidePage, bool) {
	for i, l := range a.lists {
		if len(l) > 0 && !now.Before(l[0].due) {
			a.lists[i] = l[1:]
			a.n--
			return l[0], true
		}
	}
	return asidePage{}, false
}

// asides returns the number of pages that are set aside.
func (p *Pager) asides() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.aside.n
}

// requeue puts up to n pages that were set aside back into the queue. Those that are
// no more are forgotten, all that are due, or they would be taken for what cannot leave.
func (p *Pager) requeue(n int) {
	now := time.Now()
	for more := true; more && n > 0; {
		p.mu.Lock()
		for look := 0; look < asideLook && n > 0; look++ {
			var a asidePage
			if a, more = p.aside.next(now); !more {
				break
			}
			s := p.spaces[a.key.Space]
			if s == nil {
				continue
			}
			if e := s.table.peek(a.key.Page); e != nil && e.state == resident && e.is(picked) && e.stamp == a.stamp {
				e.clear(picked)
				e.stamp = p.queue.Return(a.key, a.stamp)
				n--
			}
		}
		p.mu.Unlock()
	}
}

// asideLook is how many are looked at under one hold of the lock, for which a fault may
// have to wait.
const asideLook = 64
