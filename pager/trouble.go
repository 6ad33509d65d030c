// SPDX-License-Identifier: Apache-2.0

package pager

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/mem"
)

// trouble is a state of which the user is told when it begins and when it has
// passed. If it comes and goes, as with a store that is nearly full, that is
// once a minute and not every time.
type trouble struct {
	on   atomic.Bool // read by anyone; the rest is the evictor's
	told bool        // the user knows that it is there
	last time.Time   // when the user was told
}

// tellEvery is the least time between two tellings.
const tellEvery = time.Minute

// begin says that the trouble is there, as often as that shows. It reports
// whether the user is to be told.
func (t *trouble) begin() (tell bool) {
	t.on.Store(true)
	if t.told || !t.last.IsZero() && time.Since(t.last) < tellEvery {
		return false
	}
	t.told, t.last = true, time.Now()
	return true
}

// end says that it has passed. It reports whether the user is to be told: who
// does not know of it need not.
func (t *trouble) end() (tell bool) {
	if !t.on.Swap(false) {
		return false
	}
	tell, t.told = t.told, false
	return tell
}

// must reports an ioctl that failed in a way for which there is no remedy.
func (s *Space) must(op string, r mem.Range, errno syscall.Errno) {
	if errno == 0 || s.noteGone(errno) {
		return
	}
	s.p.log.Error(fmt.Sprintf("%s %v: %v", op, r, errno), "space", s.cfg.Name)
}

// noteGone reports whether errno says that the address space has ended,
// after which nobody waits in it any more.
func (s *Space) noteGone(errno syscall.Errno) bool {
	if errno != syscall.ESRCH {
		return false
	}
	s.gone.Store(true)
	return true
}
