// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/faultline-go/faultline/mem"
)

// FuzzParseSmaps: what is taken for mappings is read back the same, and a range has
// those of all that overlap it.
func FuzzParseSmaps(f *testing.F) {
	f.Add("7f0000000000-7f0000021000 rw-p 00000000 00:00 0 \nVmFlags: rd wr mr mw me ac \n", uint64(0x7f0000020000), uint64(0x7f0000030000))
	f.Add("1000-2000 rw-p 00000000 00:00 0\nVmFlags: rd um\n2000-3000 ---s 00000000 00:00 1 x", uint64(0x2000), uint64(0x2001))
	f.Add("VmFlags: rd\n2000-1000 r--p 0 0:0 0\n", uint64(0), uint64(1))
	f.Add("1-2 abc\n", uint64(0), uint64(5))
	f.Fuzz(func(t *testing.T, text string, from, to uint64) {
		all, err := parseSmaps(text, mem.Range{End: ^mem.Addr(0)})
		if err != nil {
			return
		}
		var told strings.Builder
		for _, v := range all {
			fmt.Fprintf(&told, "%08x-%08x %s 00000000 00:00 0 \nVmFlags: %s \n", uint64(v.Start), uint64(v.End), v.Perms, v.Flags)
		}
		again, err := parseSmaps(told.String(), mem.Range{End: ^mem.Addr(0)})
		if err != nil || !slices.Equal(again, all) {
			t.Errorf("%+v is read back as %+v, %v", all, again, err)
		}
		r := mem.Range{Start: mem.Addr(from), End: mem.Addr(to)}
		some, err := parseSmaps(text, r)
		want := slices.DeleteFunc(slices.Clone(all), func(v VMA) bool { return !v.Overlaps(r) })
		if err != nil || !slices.Equal(some, want) {
			t.Errorf("%v has %+v, %v, not %+v", r, some, err, want)
		}
	})
}
