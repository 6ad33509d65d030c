// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/faultline-go/faultline/conformance"
)

// numArgs is how many numbers an operation has.
const numArgs = 8

// Op is one operation. The numbers choose threads, places, modes and so on
// from lists, whose first members are the plain ones: zero is simple.
type Op struct {
	Kind string
	Arg  [numArgs]uint16
}

// String returns the operation as a line of a script.
func (o Op) String() string {
	n := numArgs
	for n > 0 && o.Arg[n-1] == 0 {
		n--
	}
	var b strings.Builder
	b.WriteString(o.Kind)
	for _, a := range o.Arg[:n] {
		fmt.Fprintf(&b, " %d", a)
	}
	return b.String()
}

// Script is what is run on both sides.
type Script struct {
	// Memory has the kind of each region.
	Memory [regions]conformance.Memory
	Ops    []Op
}

// String returns the script as text, which Parse reads.
func (s Script) String() string {
	var b strings.Builder
	b.WriteString("memory")
	for _, m := range s.Memory {
		fmt.Fprintf(&b, " %v", m)
	}
	b.WriteByte('\n')
	for _, o := range s.Ops {
		fmt.Fprintln(&b, o)
	}
	return b.String()
}

// Small and Huge are the kinds of memory with small pages, and all kinds.
var (
	Small = []conformance.Memory{conformance.Anon, conformance.Shmem, conformance.PrivateShmem}
	All   = append(Small[:len(Small):len(Small)], conformance.Hugetlb, conformance.PrivateHugetlb)
)

// Parse reads the text of a script. Lines that begin with # say something to
// people.
func Parse(text string) (s Script, err error) {
	first := true
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || f[0][0] == '#':
		case first:
			if f[0] != "memory" || len(f) != 1+regions {
				return s, fmt.Errorf("%q is not the kinds of memory of %d regions", line, regions)
			}
			for i, name := range f[1:] {
				if s.Memory[i], err = parseMemory(name); err != nil {
					return s, err
				}
			}
			first = false
		default:
			o, err := parseOp(f)
			if err != nil {
				return s, err
			}
			s.Ops = append(s.Ops, o)
		}
	}
	if first {
		return s, fmt.Errorf("the script is empty")
	}
	return s, nil
}

func parseMemory(name string) (conformance.Memory, error) {
	for _, m := range All {
		if m.String() == name {
			return m, nil
		}
	}
	return 0, fmt.Errorf("%q is no kind of memory", name)
}

func parseOp(f []string) (Op, error) {
	o := Op{Kind: f[0]}
	if _, known := handlers[o.Kind]; !known || len(f) > 1+numArgs {
		return o, fmt.Errorf("%q is no operation", strings.Join(f, " "))
	}
	for i, a := range f[1:] {
		n, err := strconv.ParseUint(a, 10, 16)
		if err != nil {
			return o, fmt.Errorf("operation %s: %w", o.Kind, err)
		}
		o.Arg[i] = uint16(n)
	}
	return o, nil
}

// weights says how often each kind comes up.
var weights = []struct {
	kind string
	n    int
}{
	{"load", 8}, {"store", 8}, {"cas", 2}, {"write", 2}, {"populate", 2}, {"below", 2},
	{"mmap", 3}, {"munmap", 2}, {"mprotect", 3}, {"mremap", 3}, {"madvise", 5}, {"advise", 2}, {"mlock", 2}, {"lockall", 1}, {"mincore", 1}, {"mem", 2}, {"scan", 4},
	{"alias", 4}, {"punch", 2}, {"truncate", 3},
	{"open", 2}, {"close", 1}, {"api", 1}, {"request", 1},
	{"register", 10}, {"unregister", 3}, {"wake", 3},
	{"copy", 10}, {"zeropage", 5}, {"continue", 4}, {"poison", 3}, {"move", 5}, {"protect", 8},
	{"read", 10}, {"readv", 3}, {"poll", 2}, {"epoll", 3}, {"fork", 1}, {"child", 2}, {"signal", 2},
}

// Random returns the script of a seed, with n operations on some kinds of
// memory.
func Random(seed uint64, n int, kinds []conformance.Memory) Script {
	r := rand.New(rand.NewPCG(seed, 0x66617565))
	var s Script
	for i := range s.Memory {
		s.Memory[i] = kinds[r.IntN(len(kinds))]
	}
	total := 0
	for _, w := range weights {
		total += w.n
	}
	// So that there is something to play with.
	s.Ops = append(s.Ops, randomOp(r, "open"), randomOp(r, "register"))
	for len(s.Ops) < n {
		k := r.IntN(total)
		for _, w := range weights {
			if k -= w.n; k < 0 {
				s.Ops = append(s.Ops, randomOp(r, w.kind))
				break
			}
		}
	}
	return s
}

// randomOp makes an operation. Three in ten of its numbers are zero, which is
// the plain choice.
func randomOp(r *rand.Rand, kind string) Op {
	o := Op{Kind: kind}
	for i := range o.Arg {
		if r.IntN(10) >= 3 {
			o.Arg[i] = uint16(r.IntN(64))
		}
	}
	return o
}
