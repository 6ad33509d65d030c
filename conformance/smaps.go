// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"strconv"
	"strings"

	"github.com/faultline-go/faultline/mem"
)

// parseSmaps reads lines of mappings, each followed by one of VmFlags.
func parseSmaps(text string, r mem.Range) (out []VMA, err error) {
	keep := false
	for line := range strings.Lines(text) {
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok {
			if keep {
				out[len(out)-1].Flags = strings.TrimSpace(flags)
			}
			continue
		}
		addrs, rest, _ := strings.Cut(line, " ")
		from, to, _ := strings.Cut(addrs, "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 != nil || err2 != nil || !hasPerms(rest) {
			return nil, errors.New("smaps line " + strconv.Quote(line) + " is not of the form of a mapping")
		}
		v := VMA{Range: mem.Range{Start: mem.Addr(start), End: mem.Addr(end)}, Perms: rest[:4]}
		if keep = v.Overlaps(r); keep {
			out = append(out, v)
		}
	}
	return out, nil
}

// hasPerms reports whether s begins with the permissions of a mapping.
func hasPerms(s string) bool {
	const yes, no = "rwxs", "---p"
	if len(s) < len(yes) {
		return false
	}
	for i := range yes {
		if s[i] != yes[i] && s[i] != no[i] {
			return false
		}
	}
	return true
}
