// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/faultline-go/faultline/internal/size"
	"github.com/faultline-go/faultline/runner"
)

// StatsSchema names the form of the summary of a run as JSON.
const StatsSchema = "faultline/stats/1"

// jsonStats is what run --stats --json prints. Sizes are bytes, times
// nanoseconds.
type jsonStats struct {
	Schema    string `json:"schema"`
	ElapsedNs int64  `json:"elapsed_ns"`
	Processes int64  `json:"processes"`
	Engaged   int64  `json:"engaged"`
	Memory    struct {
		Limit     uint64 `json:"limit"`
		Peak      uint64 `json:"peak"`
		OtherPeak uint64 `json:"other_peak"`
	} `json:"memory"`
	Faults struct {
		Fresh    int64 `json:"fresh"`
		Major    int64 `json:"major"`
		Rescued  int64 `json:"rescued"`
		Repeated int64 `json:"repeated"`
		Stale    int64 `json:"stale"`
		Parked   int64 `json:"parked"`
		Stalls   int64 `json:"stalls"`
		Slow     int64 `json:"slow"`
	} `json:"faults"`
	Latency struct {
		Count int64 `json:"count"`
		P50   int64 `json:"p50_ns"`
		P90   int64 `json:"p90_ns"`
		P99   int64 `json:"p99_ns"`
		Max   int64 `json:"max_ns"`
	} `json:"latency"`
	Readahead struct {
		Pages   int64 `json:"pages"`
		Useful  int64 `json:"useful"`
		Useless int64 `json:"useless"`
	} `json:"readahead"`
	Pages struct {
		In        int64 `json:"in"`
		Out       int64 `json:"out"`
		Unchanged int64 `json:"unchanged"`
		Unmovable int64 `json:"unmovable"`
		Lost      int64 `json:"lost"`
	} `json:"pages"`
	Store struct {
		Before uint64 `json:"bytes_before"`
		After  uint64 `json:"bytes_after"`
		Zero   uint64 `json:"zero_pages"`
		Word   uint64 `json:"word_pages"`
		Raw    uint64 `json:"raw_pages"`
		Size   uint64 `json:"size"`
		Errors int64  `json:"errors"`
	} `json:"store"`
	Events  int64 `json:"events"`
	Forks   int64 `json:"forks"`
	Starved int64 `json:"starved"`
}

// writeStats prints the summary of a run that has ended.
func writeStats(w io.Writer, s runner.Stats, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		return enc.Encode(toJSON(s))
	}
	noun := "processes"
	if s.Processes == 1 {
		noun = "process"
	}
	if s.Engaged == 0 {
		_, err := fmt.Fprintf(w, "faultline: %v, %d %s, untouched: at most %s resident, and the limit is %s\n",
			short(s.Elapsed), s.Processes, noun, size.Format(s.OtherPeak), size.Format(s.Limit))
		return err
	}
	pg, st := s.Pager, s.Pager.Store
	l := pg.Latency
	_, err := fmt.Fprintf(w, `faultline: %v, %d %s, %d brought under the limit
  memory     peak %s of %s; not counted in that, at most %s
  faults     %d fresh, %d from the store, %d on the way out, %d repeated; %d had to wait (%d for room), %d for a device
  latency    p50 %v, p90 %v, p99 %v, max %v
  readahead  %d pages, %d known useful, %d useless
  pages      %d in, %d out (%d of them unchanged), %d could not move, %d lost
  store      %s became %s (%s), %d zero, %d of one word, %d incompressible; size %s, %d errors
`,
		short(s.Elapsed), s.Processes, noun, s.Engaged,
		size.Format(pg.Peak), size.Format(s.Limit), size.Format(s.OtherPeak),
		pg.Fresh, pg.Major, pg.Rescued, pg.Repeated, pg.Parked, pg.Stalls, pg.Slow,
		short(l.P50), short(l.P90), short(l.P99), short(l.Max),
		pg.Ahead, pg.Useful, pg.Useless,
		pg.PagesIn, pg.PagesOut, pg.Clean, pg.Unmovable, pg.Lost,
		size.Format(st.BytesIn), size.Format(st.BytesOut), ratio(st.BytesIn, st.BytesOut), st.Zero, st.SameWord, st.Raw,
		size.Format(st.Size), pg.StoreErrors)
	return err
}

// ratio says how many times smaller something has become.
func ratio(before, after uint64) string {
	if after == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1fx", float64(before)/float64(after))
}

func toJSON(s runner.Stats) jsonStats {
	pg, st := s.Pager, s.Pager.Store
	j := jsonStats{
		Schema: StatsSchema, ElapsedNs: int64(s.Elapsed),
		Processes: s.Processes, Engaged: s.Engaged,
		Events: pg.Events, Forks: pg.Forks, Starved: pg.Starved,
	}
	j.Memory.Limit, j.Memory.Peak, j.Memory.OtherPeak = s.Limit, pg.Peak, s.OtherPeak
	j.Faults.Fresh, j.Faults.Major, j.Faults.Rescued = pg.Fresh, pg.Major, pg.Rescued
	j.Faults.Repeated, j.Faults.Stale = pg.Repeated, pg.Stale
	j.Faults.Parked, j.Faults.Stalls, j.Faults.Slow = pg.Parked, pg.Stalls, pg.Slow
	l := pg.Latency
	j.Latency.Count, j.Latency.P50, j.Latency.P90 = l.Count, int64(l.P50), int64(l.P90)
	j.Latency.P99, j.Latency.Max = int64(l.P99), int64(l.Max)
	j.Readahead.Pages, j.Readahead.Useful, j.Readahead.Useless = pg.Ahead, pg.Useful, pg.Useless
	j.Pages.In, j.Pages.Out, j.Pages.Unchanged = pg.PagesIn, pg.PagesOut, pg.Clean
	j.Pages.Unmovable, j.Pages.Lost = pg.Unmovable, pg.Lost
	j.Store.Before, j.Store.After = st.BytesIn, st.BytesOut
	j.Store.Zero, j.Store.Word, j.Store.Raw = st.Zero, st.SameWord, st.Raw
	j.Store.Size, j.Store.Errors = st.Size, pg.StoreErrors
	return j
}
