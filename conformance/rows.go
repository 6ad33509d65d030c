// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
)

// featureRows are the rows of B.2 about single bits.
func featureRows() (rows []string) {
	for bit := range 17 {
		rows = append(rows, fmt.Sprintf("B.2.%d", bit))
	}
	return rows
}
