// SPDX-License-Identifier: Apache-2.0

// Policy replays page access streams against eviction policies and prints
// the ratio of faults to accesses of each.
//
//	go run ./pager/internal/evict/policy                  synthetic and recorded streams
//	go run ./pager/internal/evict/policy -stream FILE...  recorded streams of one's own
//	go run ./pager/internal/evict/policy -condense RAW -window 512 -limit 60000 -o FILE
//
// docs/policy.md explains the streams and the numbers.
package main

import (
	"embed"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/faultline-go/faultline/mem"
)

//go:embed testdata/*.pages
var recorded embed.FS

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "policy:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	fs := flag.NewFlagSet("policy", flag.ContinueOnError)
	stream := fs.Bool("stream", false, "replay the recorded streams named as arguments")
	raw := fs.String("condense", "", "condense the raw record in `file`")
	window := fs.Int("window", 512, "with -condense: leave out accesses to the last n pages kept")
	limit := fs.Int("limit", 0, "with -condense: keep only the first n accesses (0: all)")
	offset := fs.Float64("offset", 0, "add this share of a recorded stream's pages to its budgets")
	seed := fs.Uint64("seed", 1, "seed of the synthetic streams")
	to := fs.String("o", "", "with -condense: the `file` to write")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *raw != "" {
		return condenseFile(*raw, *to, *window, *limit, out)
	}
	rows, err := streams(*stream, fs.Args(), *seed, *offset)
	if err != nil {
		return err
	}
	return table(out, rows)
}

// row is one stream and the budgets to replay it with.
type row struct {
	name    string
	pages   []mem.Page
	budgets []int
}

// streams returns the recorded streams in files, or all that we bring along.
func streams(own bool, files []string, seed uint64, offset float64) ([]row, error) {
	var rows []row
	if own {
		for _, f := range files {
			pages, err := loadStream(f)
			if err != nil {
				return nil, err
			}
			rows = append(rows, recordedRow(f, pages, offset))
		}
		return rows, nil
	}
	for _, s := range synthetic {
		rows = append(rows, row{s.name, s.make(rand.New(rand.NewPCG(seed, 2))), []int{budget}})
	}
	brought, err := recorded.ReadDir("testdata")
	if err != nil {
		return nil, err
	}
	for _, f := range brought {
		in, err := recorded.Open("testdata/" + f.Name())
		if err != nil {
			return nil, err
		}
		pages, err := readStream(in)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		rows = append(rows, recordedRow(strings.TrimSuffix(f.Name(), ".pages"), pages, offset))
	}
	return rows, nil
}

// recordedRow replays a recorded stream with a third, a half and three
// quarters of the pages that it touches, or that much more by offset.
func recordedRow(name string, pages []mem.Page, offset float64) row {
	n := float64(distinct(pages))
	r := row{name: name, pages: pages}
	for _, share := range []float64{1. / 3, 1. / 2, 3. / 4} {
		r.budgets = append(r.budgets, max(int(n*(share+offset)), 1))
	}
	return r
}

func distinct(pages []mem.Page) int {
	seen := map[mem.Page]bool{}
	for _, p := range pages {
		seen[p] = true
	}
	return len(seen)
}

// ratio replays pages and returns the faults for each access.
func ratio(c cache, pages []mem.Page) float64 {
	misses := 0
	for _, p := range pages {
		if c.touch(p) {
			misses++
		}
	}
	return float64(misses) / float64(max(len(pages), 1))
}

func table(out io.Writer, rows []row) error {
	w := tabwriter.NewWriter(out, 0, 0, 1, ' ', tabwriter.AlignRight|tabwriter.Debug)
	fmt.Fprint(w, "stream\taccesses\tpages\tbudget\t")
	for _, p := range policies {
		fmt.Fprintf(w, "%s\t", p.name)
	}
	fmt.Fprintln(w, "brought in\t")
	for _, r := range rows {
		for _, n := range r.budgets {
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t", r.name, len(r.pages), distinct(r.pages), n)
			for _, p := range policies {
				c := p.make(n, r.pages)
				fmt.Fprintf(w, "%.3f\t", ratio(c, r.pages))
				if o, ok := c.(*ours); ok && o.tracker != nil {
					fmt.Fprintf(w, "%.3f\t", float64(o.brought)/float64(len(r.pages)))
				}
			}
			fmt.Fprintln(w)
		}
	}
	return w.Flush()
}

func condenseFile(raw, to string, window, limit int, out io.Writer) (err error) {
	in, err := os.Open(raw)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	pages, err := condense(in, window)
	if err != nil {
		return err
	}
	if limit > 0 && len(pages) > limit {
		pages = pages[:limit]
	}
	f, err := os.Create(to)
	if err != nil {
		return fmt.Errorf("-o: %w", err)
	}
	if err := writeStream(f, pages); err != nil {
		_ = f.Close()
		return err
	}
	fmt.Fprintf(out, "%d accesses to %d pages\n", len(pages), distinct(pages))
	return f.Close()
}
