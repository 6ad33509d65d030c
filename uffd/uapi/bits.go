// SPDX-License-Identifier: Apache-2.0

package uapi

import (
	"strconv"
	"strings"
)

type bitName struct {
	bit  uint64
	name string
}

// bitString joins the names of the bits of v by |. What has no name follows
// as one hexadecimal number; zero is "0".
func bitString(v uint64, names []bitName) string {
	var b strings.Builder
	sep := func() {
		if b.Len() > 0 {
			b.WriteByte('|')
		}
	}
	for _, n := range names {
		if v&n.bit != 0 {
			sep()
			b.WriteString(n.name)
			v &^= n.bit
		}
	}
	if v != 0 || b.Len() == 0 {
		sep()
		if v != 0 {
			b.WriteString("0x")
		}
		b.WriteString(strconv.FormatUint(v, 16))
	}
	return b.String()
}
