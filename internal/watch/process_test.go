// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package watch

import (
	"io"
	"os"
	"slices"
	"testing"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/uffdtrace"
	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/tracee"
)

// The child of a process that has got filters between the fork and our hearing
// of it: it is taken to have them, and has not. Its calls must be seen.
func TestForkBeforeFilter(t *testing.T) {
	testutil.Need(t, filterCount(os.Getpid()) >= 0, "needs Linux 5.9, which tells how many filters there are")
	bin := workload.Build(t, "acts")
	w := newWatcher(uffdtrace.New(io.Discard, true))
	tr, err := tracee.Start(tracee.Options{Path: bin, Argv: []string{bin, "nothing"}, Env: os.Environ(), Handler: w})
	if err != nil {
		t.Fatal(err)
	}
	w.tracer = tr
	defer func() {
		tr.Kill()
		<-tr.Done()
	}()
	tr.Do(func() {
		w.start(tr.Root())
		p := w.procs[tr.Root().Pid()]
		th := tr.Root().Threads()[0]
		before := filterCount(th.Tid())
		w.passing = true
		want := p.lacking(nil, w.passing)
		p.filters = append(p.filters, want...) // of the parent
		w.recount(th.Tid(), p)
		w.cover(th, p)
		if !slices.Equal(p.filters[1:], want) || p.blind {
			t.Errorf("filters %+v, want %+v behind the first", p.filters, want)
		}
		if n := filterCount(th.Tid()); n != before+len(want) {
			t.Errorf("%d filters are in force, want %d", n, before+len(want))
		}
	})
}
