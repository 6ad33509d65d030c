// SPDX-License-Identifier: Apache-2.0

// Command differential runs random operations on two kernels until they
// differ or there were enough.
//
//	go run ./bench/differential [-ops N] [-seed N] [-length N] [-a NAME] [-b NAME] [-memory KIND] [-without OP]
//	    [-keep]
//
// Each seed makes one script of -length operations; the seeds are counted up
// from -seed. A difference is shrunk and printed as a script, which belongs
// into internal/differential/testdata once it is understood. It ends with
// status 1 if there was one; with -keep it goes on to the next seed.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/conformance"
	"github.com/faultline-go/faultline/internal/differential"
)

// options are the command line.
type options struct {
	ops, length int
	seed        uint64
	a, b        string
	keep        bool
	kinds       []conformance.Memory // nil is the usual mixture
	without     []string
}

func main() {
	var o options
	names := strings.Join(conformance.BackendNames(), ", ")
	flag.IntVar(&o.ops, "ops", 100_000, "`number` of operations")
	flag.IntVar(&o.length, "length", 60, "`number` of operations of a script")
	flag.Uint64Var(&o.seed, "seed", 1, "the first `seed`")
	flag.StringVar(&o.a, "a", "kernel", "one side: `name` is one of "+names)
	flag.StringVar(&o.b, "b", "vkernel", "the other side")
	flag.BoolVar(&o.keep, "keep", false, "go on after a difference")
	flag.Func("memory", "only this `kind`, such as anon; may be given more than once", func(name string) error {
		for _, m := range differential.All {
			if m.String() == name {
				o.kinds = append(o.kinds, m)
				return nil
			}
		}
		return fmt.Errorf("choose from %v", differential.All)
	})
	flag.Func("without", "leave out operations of this `kind`, to see past a difference", func(kind string) error {
		o.without = append(o.without, kind)
		return nil
	})
	flag.Parse()
	if o.ops < 1 || o.length < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	differences, err := run(ctx, os.Stdout, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "differential:", err)
		os.Exit(2)
	}
	if differences > 0 {
		os.Exit(1)
	}
}

// patience is how long one difference is shrunk: a thread that never comes to
// rest takes seconds to be called a difference.
const patience = 30 * time.Second

// run compares until there were o.ops operations or ctx is done.
func run(ctx context.Context, w io.Writer, o options) (differences int, err error) {
	var sides [2]conformance.Backend
	for i, name := range []string{o.a, o.b} {
		open, known := conformance.Backends()[name]
		if !known {
			return 0, fmt.Errorf("unknown backend %q", name)
		}
		b, err := open()
		if err != nil {
			return 0, err
		}
		defer func() {
			// What the side has changed of the machine.
			if cerr := b.Close(); err == nil {
				err = cerr
			}
		}()
		sides[i] = b
	}
	begin, ops, seed := time.Now(), 0, o.seed
	for ; ops < o.ops && ctx.Err() == nil; seed++ {
		// Huge pages take long to clear: one script in eight.
		kinds := differential.Small
		if seed%8 == 0 {
			kinds = differential.All
		}
		if o.kinds != nil {
			kinds = o.kinds
		}
		s := differential.Random(seed, o.length, kinds)
		s.Ops = slices.DeleteFunc(s.Ops, func(op differential.Op) bool { return slices.Contains(o.without, op.Kind) })
		d := differential.Compare(sides[0], sides[1], s)
		if d != nil && ctx.Err() != nil {
			// What interrupts us, such as timeout(1) or a terminal, ends the
			// processes that are compared, too.
			break
		}
		ops += len(s.Ops)
		if d == nil {
			continue
		}
		differences++
		limited, cancel := context.WithTimeout(ctx, patience)
		d = differential.Shrink(limited, d, func(s differential.Script) *differential.Difference {
			return differential.Compare(sides[0], sides[1], s)
		})
		cancel()
		fmt.Fprintf(w, "# seed %d: A is %s, B is %s\n%v\n", seed, o.a, o.b, d)
		if !o.keep {
			seed++
			break
		}
	}
	fmt.Fprintf(w, "%s and %s: %d operations in %v, seeds %d to %d, %d differences\n",
		o.a, o.b, ops, time.Since(begin).Round(time.Millisecond), o.seed, seed-1, differences)
	return differences, ctx.Err()
}
