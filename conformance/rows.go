// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"slices"
)

// Row is one thing that the documented behaviour says. A is the 2015 patch, B
// the ABI of Linux 6.18, C what was observed on it beyond that, and D what
// the kernel's own tests are about.
type Row struct {
	ID   string `json:"id"`
	Text string `json:"text"`
	// Why says why there is no case; empty where there is one.
	Why string `json:"why,omitempty"`
}

// Rows returns every row, in order. The slice is the caller's.
func Rows() []Row {
	return slices.Concat(seedRows, abiRows, fillRows, deliveryRows, observedRows, selftestRows)
}

// Coverage returns the names of the cases of each row.
func Coverage(cases []Case) map[string][]string {
	out := map[string][]string{}
	for _, cs := range cases {
		for _, id := range cs.Rows {
			out[id] = append(out[id], cs.Name)
		}
	}
	return out
}

// featureRows are the rows of B.2 about single bits.
func featureRows() (rows []string) {
	for bit := range 17 {
		rows = append(rows, fmt.Sprintf("B.2.%d", bit))
	}
	return rows
}
