// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestMapsAsTheyAre: where nothing is registered, what the kernel says of memory is
// told letter by letter.
func TestMapsAsTheyAre(t *testing.T) {
	for _, name := range []string{"maps", "smaps"} {
		b, err := os.ReadFile("/proc/self/" + name)
		if err != nil {
			t.Fatal(err)
		}
		all, ok := parseMappings(string(b))
		if !ok {
			t.Fatalf("%s is not of the form of mappings:\n%s", name, b)
		}
		if got := textOf(join(cut(all, nil))); got != string(b) {
			t.Errorf("%s is told as\n%s\nnot\n%s", name, got, b)
		}
	}
}

func textOf(all []mapping) string {
	var b strings.Builder
	for i := range all {
		all[i].write(&b)
	}
	return b.String()
}

// FuzzParseMappings: every line is of some mapping, and what was understood is told
// so that it is understood the same.
func FuzzParseMappings(f *testing.F) {
	f.Add("7f0000000000-7f0000021000 rw-p 00000000 00:00 0 \n")
	f.Add("00400000-00401000 r-xp 00001000 fe:01 1234                               /usr/bin/a  b (deleted)\nSize:   4 kB\nVmFlags: rd ex \n")
	f.Add("1000-2000 rw-s 00000000 00:01 7 /memfd:x\n2000-3000 ---p 00000000 00:00 0 [heap]\nRss: 0 kB")
	f.Add("1000-2000 rw-p 0  0 x\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, ok := parseMappings(text)
		if !ok {
			return
		}
		lines := 0
		for _, m := range all {
			lines += 1 + len(m.more)
		}
		if want := strings.Count(strings.TrimSuffix(text, "\n")+"\n", "\n"); text != "" && lines != want {
			t.Errorf("%d lines of %d", lines, want)
		}
		told := textOf(all)
		again, ok := parseMappings(told)
		if !ok || !reflect.DeepEqual(again, all) {
			t.Errorf("%+v is told as %q, which is %+v", all, told, again)
		}
	})
}
