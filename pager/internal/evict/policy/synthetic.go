// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math/rand/v2"

	"github.com/faultline-go/faultline/mem"
)

// budget is the number of pages that the synthetic streams are made for.
const budget = 4096

// base is where the synthetic address space begins.
const base = mem.Page(0x7f000_0000)

// synthetic are the made-up streams. Each is a pure function of its seed.
var synthetic = []struct {
	name string
	make func(r *rand.Rand) []mem.Page
}{
	{"scan twice 4x", func(*rand.Rand) []mem.Page { return loop(4*budget, 2) }},
	{"loop 1.1x", func(*rand.Rand) []mem.Page { return loop(budget*11/10, 20) }},
	{"loop 2x", func(*rand.Rand) []mem.Page { return loop(2*budget, 20) }},
	{"zipf 4x", func(r *rand.Rand) []mem.Page { return zipf(r, 4*budget, 60*budget) }},
	{"uniform 2x", func(r *rand.Rand) []mem.Page { return hot(r, 0, 2*budget, 0, 30*budget) }},
	{"hot 90/10 of 4x", func(r *rand.Rand) []mem.Page { return hot(r, 4*budget/10, 4*budget, 0.9, 60*budget) }},
	{"hot 20% + scan", hotAndScan},
	{"stride 7", func(*rand.Rand) []mem.Page { return strided(2*budget, 7, 6) }},
	{"chase 1.5x", func(r *rand.Rand) []mem.Page { return chase(r, budget*3/2, 20) }},
	{"sliding window", func(r *rand.Rand) []mem.Page { return sliding(r, budget/2, 20*budget) }},
	{"phases", phases},
}

// loop goes through n pages in order, again and again.
func loop(n, rounds int) (s []mem.Page) {
	for range rounds {
		for i := range n {
			s = append(s, base+mem.Page(i))
		}
	}
	return s
}

// zipf draws from n scattered pages with the skew usual in caches.
func zipf(r *rand.Rand, n, accesses int) (s []mem.Page) {
	place := r.Perm(n)
	z := rand.NewZipf(r, 1.01, 8, uint64(n-1))
	for range accesses {
		s = append(s, base+mem.Page(place[z.Uint64()]))
	}
	return s
}

// hot draws from the first few of n pages with probability p, else from all.
func hot(r *rand.Rand, few, n int, p float64, accesses int) (s []mem.Page) {
	for range accesses {
		m := n
		if few > 0 && r.Float64() < p {
			m = few
		}
		s = append(s, base+mem.Page(r.IntN(m)))
	}
	return s
}

// hotAndScan works on a fifth of the budget and reads a large array once in
// the middle of it: ten hot accesses for each page of the array.
func hotAndScan(r *rand.Rand) []mem.Page {
	few := budget / 5
	s := hot(r, few, few, 1, 10*budget)
	for i := range 8 * budget {
		s = append(s, base+mem.Page(1<<20+i))
		s = append(s, hot(r, few, few, 1, 10)...)
	}
	return append(s, hot(r, few, few, 1, 10*budget)...)
}

// strided goes through n pages by step, with every offset, for some rounds.
func strided(n, step, rounds int) (s []mem.Page) {
	for range rounds {
		for o := range step {
			for i := o; i < n; i += step {
				s = append(s, base+mem.Page(i))
			}
		}
	}
	return s
}

// chase follows a random cycle through n pages.
func chase(r *rand.Rand, n, rounds int) (s []mem.Page) {
	order := r.Perm(n)
	for range rounds {
		for _, i := range order {
			s = append(s, base+mem.Page(i))
		}
	}
	return s
}

// sliding works at random in a window that moves on steadily: a page is used
// for a while and then never again. The worst that can happen to a policy
// that wants proof, and the best to a plain FIFO.
func sliding(r *rand.Rand, window, length int) (s []mem.Page) {
	for i := range length {
		for range 6 {
			s = append(s, base+mem.Page(i+r.IntN(window)))
		}
	}
	return s
}

// phases changes the hot set every now and then.
func phases(r *rand.Rand) (s []mem.Page) {
	for i := range 12 {
		for _, p := range hot(r, budget*3/4, 4*budget, 0.95, 12*budget) {
			s = append(s, p+mem.Page(i*3*budget))
		}
	}
	return s
}
