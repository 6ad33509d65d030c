// SPDX-License-Identifier: Apache-2.0

// Command trampoline compares ways in which a fault can be served where the
// kernel's userfaultfd is not there: by ptrace stops, as `faultline provide`
// does, and by signal handlers in the program.
//
//	go run ./bench/trampoline [-runs N] [-faults N] [-alone] [-json]
//
// The designs are in internal/workload/csrc/trampoline.c, whose first comment
// says what each does and what it leaves out; they are bound to one processor,
// and run one after the other, again and again. The last row is what `faultline
// provide` takes for the same, with the program bound to one processor, as in
// bench/provide; with -alone it is left out.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"github.com/faultline-go/faultline/internal/workload"
	"github.com/faultline-go/faultline/internal/workload/measure"
)

// A result is one line of the C program, or the medians of several.
type result struct {
	Design  string  `json:"design"`
	Faults  int     `json:"faults"`
	P50     float64 `json:"p50_ns"`
	P90     float64 `json:"p90_ns"`
	Lacking string  `json:"lacking,omitempty"` // why there are no numbers
}

// what says what the rows are. Its order is that of the table.
var what = []struct{ design, does string }{
	{"kernel", "the kernel's userfaultfd"},
	{"futex", "SIGSEGV and SIGSYS handlers that ask a supervisor by futex"},
	{"local", "SIGSEGV and SIGSYS handlers that decide by themselves"},
	{"ptrace", "three ptrace stops, tracer in C"},
	{"ptrace2", "two ptrace stops, tracer in C"},
	{"provided", "`faultline provide`"},
}

func main() {
	// The death of this thread kills what Command started.
	runtime.LockOSThread()
	runs := flag.Int("runs", 5, "`number` of runs of each design")
	faults := flag.Int("faults", 16384, "`number` of faults in a run")
	binary := flag.String("faultline", "", "`path` of the faultline command; built from the source if empty")
	alone := flag.Bool("alone", false, "measure the designs only")
	asJSON := flag.Bool("json", false, "print JSON instead of Markdown")
	flag.Parse()
	if *runs < 1 || *faults < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := measure.TempDir(func(dir string) error {
		if *alone {
			*binary = ""
		} else if *binary == "" {
			built, err := measure.Faultline(ctx, dir)
			if err != nil {
				return err
			}
			*binary = built
		}
		all, err := bench(ctx, dir, *runs, *faults, *binary)
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(os.Stdout).Encode(all)
		}
		return print(os.Stdout, all)
	})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "trampoline:", err)
		os.Exit(1)
	}
}

// bench runs all the designs in turn, and then faultline if binary is not
// empty, and begins again.
func bench(ctx context.Context, dir string, runs, faults int, binary string) ([]result, error) {
	designs, err := workload.Compile(ctx, dir, "trampoline")
	if err != nil {
		return nil, err
	}
	commands := [][]string{{designs, strconv.Itoa(faults)}}
	if binary != "" {
		program, err := workload.Compile(ctx, dir, "provide")
		if err != nil {
			return nil, err
		}
		commands = append(commands, []string{binary, "provide", "--",
			"taskset", "1", program, "fault", strconv.Itoa(faults)})
	}
	var all []result
	for range runs {
		for _, c := range commands {
			run, err := measure.Command(ctx, c...)
			if err != nil {
				return nil, err
			}
			lines, err := decode(run.Stdout)
			if err != nil {
				return nil, fmt.Errorf("read the output of %v: %w", c, err)
			}
			all = append(all, lines...)
		}
	}
	return summarise(all), nil
}

// decode reads the lines that a program has printed. The one that runs under
// faultline knows of no designs.
func decode(out []byte) (all []result, err error) {
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		r := result{Design: "provided"}
		if err := d.Decode(&r); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// summarise takes the medians of all runs of each design. Those that did not
// run have no row.
func summarise(all []result) (rows []result) {
	for _, w := range what {
		var p50, p90 []float64
		row := result{Design: w.design}
		for _, r := range all {
			if r.Design != w.design {
				continue
			}
			row.Faults, row.Lacking = r.Faults, r.Lacking
			p50, p90 = append(p50, r.P50), append(p90, r.P90)
		}
		if len(p50) == 0 {
			continue
		}
		row.P50, row.P90 = measure.Median(p50), measure.Median(p90)
		rows = append(rows, row)
	}
	return rows
}

// print writes a table: a ratio to the kernel says how many times as long a
// design takes, one to faultline how many times as long faultline takes.
func print(w io.Writer, rows []result) error {
	if err := measure.Machine(w); err != nil {
		return err
	}
	times := make(map[string]float64)
	for _, r := range rows {
		times[r.Design] = r.P50
	}
	ratio := func(above, below float64) string {
		if above == 0 || below == 0 {
			return "–"
		}
		return fmt.Sprintf("%.2f", above/below)
	}
	text := "\n| design | | p50, µs | p90, µs | p50 / kernel's | provided / p50 |\n|---|---|---|---|---|---|\n"
	for _, row := range what {
		for _, r := range rows {
			switch {
			case r.Design != row.design:
			case r.Lacking != "":
				text += fmt.Sprintf("| %s | %s | %s | | | |\n", r.Design, row.does, r.Lacking)
			default:
				text += fmt.Sprintf("| %s | %s | %.2f | %.2f | %s | %s |\n", r.Design, row.does, r.P50/1000, r.P90/1000,
					ratio(r.P50, times["kernel"]), ratio(times["provided"], r.P50))
			}
		}
	}
	_, err := io.WriteString(w, text)
	return err
}
