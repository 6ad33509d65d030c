// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/faultline-go/faultline/internal/size"
	"github.com/faultline-go/faultline/runner"
)

// progressMode says how a run is reported while it goes on.
type progressMode uint8

const (
	progressNone progressMode = iota
	progressLine              // one line of a terminal, redrawn
	progressPlain
	progressJSON
)

// ProgressSchema names the form of a progress line as JSON.
const ProgressSchema = "faultline/progress/1"

const (
	redraw   = 250 * time.Millisecond
	logEvery = time.Second
)

// progressNames are the values of --progress.
var progressNames = []string{"auto", "plain", "json", "none"}

func parseProgress(s string) (progressMode, error) {
	switch s {
	case "auto":
		if term.IsTerminal(int(os.Stderr.Fd())) && os.Getenv("TERM") != "dumb" {
			return progressLine, nil
		}
		return progressNone, nil
	case "plain":
		return progressPlain, nil
	case "json":
		return progressJSON, nil
	case "none":
		return progressNone, nil
	}
	return 0, fmt.Errorf("unknown form %q: use auto, plain, json or none", s)
}

// progress reports a run, and lets other lines through in between.
type progress struct {
	mode progressMode

	mu    sync.Mutex
	w     io.Writer // protected by mu
	drawn bool      // a status line stands on the terminal; protected by mu

	quit chan struct{}
	done sync.WaitGroup
}

func newProgress(w io.Writer, mode progressMode) *progress {
	return &progress{mode: mode, w: w, quit: make(chan struct{})}
}

// start begins to report what stats returns.
func (p *progress) start(stats func() runner.Stats) {
	if p.mode == progressNone {
		return
	}
	every := logEvery
	if p.mode == progressLine {
		every = redraw
	}
	p.done.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		last := stats()
		for {
			select {
			case <-p.quit:
				return
			case <-tick.C:
				now := stats()
				p.report(now, last)
				last = now
			}
		}
	})
}

// stop ends the report and clears the line.
func (p *progress) stop() {
	close(p.quit)
	p.done.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clearLocked()
}

// Write prints a line of talk.
func (p *progress) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clearLocked()
	return p.w.Write(b)
}

func (p *progress) clearLocked() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}

// jsonProgress is a line of --progress json. Sizes are bytes.
type jsonProgress struct {
	Schema    string  `json:"schema"`
	ElapsedNs int64   `json:"elapsed_ns"`
	Limit     uint64  `json:"limit"`
	Resident  uint64  `json:"resident"`
	Outside   uint64  `json:"outside"`
	Stored    uint64  `json:"stored"`
	Faults    int64   `json:"faults"`
	FaultRate float64 `json:"faults_per_second"`
	P50Ns     int64   `json:"latency_p50_ns"`
	P99Ns     int64   `json:"latency_p99_ns"`
}

func (p *progress) report(now, last runner.Stats) {
	rate := 0.0
	if d := (now.Elapsed - last.Elapsed).Seconds(); d > 0 {
		rate = float64(faults(now)-faults(last)) / d
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pg := now.Pager
	switch p.mode {
	case progressJSON:
		// An error to write has nowhere to be told.
		_ = json.NewEncoder(p.w).Encode(jsonProgress{
			Schema: ProgressSchema, ElapsedNs: int64(now.Elapsed), Limit: now.Limit,
			Resident: pg.Resident, Outside: pg.Outside, Stored: pg.Store.LiveBytes,
			Faults: faults(now), FaultRate: rate,
			P50Ns: int64(pg.Latency.P50), P99Ns: int64(pg.Latency.P99),
		})
	case progressPlain:
		fmt.Fprintf(p.w, "faultline: %v: %s\n", now.Elapsed.Round(time.Second), describe(now, rate))
	case progressLine:
		if !cooked() {
			return
		}
		line := "faultline: " + describe(now, rate)
		if width, _, err := term.GetSize(int(os.Stderr.Fd())); err == nil && len(line) >= width && width > 1 {
			line = line[:width-1]
		}
		fmt.Fprint(p.w, "\r\x1b[K"+line)
		p.drawn = true
	}
}

// cooked reports whether the terminal is ours to write on: a program that
// has switched off echo or line editing paints the screen itself, and a job
// in the background should be silent.
func cooked() bool {
	fd := int(os.Stderr.Fd())
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil || t.Lflag&unix.ICANON == 0 || t.Lflag&unix.ECHO == 0 {
		return false
	}
	front, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err == nil && front == unix.Getpgrp()
}

func faults(s runner.Stats) int64 { return s.Pager.Fresh + s.Pager.Major + s.Pager.Rescued }

// describe is the text of a status line.
func describe(s runner.Stats, rate float64) string {
	pg := s.Pager
	if s.Engaged == 0 {
		return fmt.Sprintf("resident %s, below the limit of %s", size.Format(s.Other), size.Format(s.Limit))
	}
	return fmt.Sprintf("resident %s of %s, outside %s (%s), %.0f faults/s, p50 %v p99 %v",
		size.Format(pg.Resident), size.Format(s.Limit), size.Format(pg.Outside),
		ratio(pg.Outside, pg.Store.LiveBytes), rate, short(pg.Latency.P50), short(pg.Latency.P99))
}

// short leaves out digits that say nothing.
func short(d time.Duration) time.Duration {
	switch {
	case d < 100*time.Microsecond:
		return d.Round(100 * time.Nanosecond)
	case d < 100*time.Millisecond:
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}

// lineHandler prints log records as single lines of talk.
type lineHandler struct {
	w     io.Writer
	attrs []slog.Attr
}

// Enabled is slog.Handler's: information is for --stats.
func (h *lineHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

// Handle is slog.Handler's.
func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString("faultline: " + r.Message)
	add := func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	_, err := io.WriteString(h.w, oneLine(b.String())+"\n")
	return err
}

// WithAttrs is slog.Handler's.
func (h *lineHandler) WithAttrs(as []slog.Attr) slog.Handler {
	return &lineHandler{h.w, append(h.attrs[:len(h.attrs):len(h.attrs)], as...)}
}

// WithGroup is slog.Handler's; nothing here groups.
func (h *lineHandler) WithGroup(string) slog.Handler { return h }
