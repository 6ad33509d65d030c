// SPDX-License-Identifier: Apache-2.0

// Command vkernel measures the subsystem in software: what a fault costs, what
// the address space costs with a million VMAs, whether a wake depends on who
// else waits, and what memory is kept for a page.
//
//	go run ./bench/vkernel [-seconds S]
//
// Every number stands beside its goal; a goal that is missed ends the command
// with status 1.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
)

// A row is one number of the report.
type row struct {
	what  string
	goal  string // empty if there is none
	value string
	ok    bool
}

func main() {
	seconds := flag.Float64("seconds", 2, "`time` for each rate")
	vmas := flag.Int("vmas", 1_000_000, "`number` of VMAs")
	waiters := flag.Int("waiters", 100_000, "`number` of unrelated waiters")
	flag.Parse()
	if flag.NArg() > 0 || *vmas < 1000 || *waiters < 1000 {
		flag.Usage()
		os.Exit(2)
	}
	span := time.Duration(*seconds * float64(time.Second))
	var rows []row
	rows = append(rows, rates(span)...)
	rows = append(rows, tree(*vmas)...)
	rows = append(rows, unrelated(*waiters)...)
	rows = append(rows, memory()...)
	fmt.Printf("%s, %s/%s, %d processors\n\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	fmt.Println("| what | goal | measured | |")
	fmt.Println("|---|---|---|---|")
	missed := false
	for _, r := range rows {
		verdict := "reached"
		switch {
		case r.goal == "":
			verdict = ""
		case !r.ok:
			verdict, missed = "missed", true
		}
		fmt.Printf("| %s | %s | %s | %s |\n", r.what, r.goal, r.value, verdict)
	}
	if missed {
		os.Exit(1)
	}
}

// check ends the program: nothing that is measured may fail.
func check(what string, err error) {
	if errno, ok := err.(syscall.Errno); err == nil || ok && errno == 0 {
		return
	}
	fmt.Fprintf(os.Stderr, "vkernel: %s: %v\n", what, err)
	os.Exit(1)
}
